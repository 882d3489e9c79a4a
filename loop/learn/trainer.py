"""SAC and TD3 from stable-baselines3, fed with transitions instead of an environment.

A stream has no `env.step`: transitions arrive when rewards do. So the model is built on spaces
alone, its own replay buffer is filled, and `train` is called for a fixed number of gradient steps,
which makes a round a pure function of (transitions, seed, configuration). Global generators are
seeded here, which is why one process trains one policy at a time.
"""

from collections.abc import Iterable
from typing import Any, Final, Literal

import gymnasium
import msgspec
import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed

from gpuloop.loop.learn.experience import ACTION_SIZE, OBSERVATION_SIZE, Transition
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import HOUR_US

Algorithm = Literal["sac", "td3"]

GAMMA: Final = float(np.exp(-CONTROL_TICK_US / HOUR_US))
"""Discount per control tick: effects are weighed over about an hour."""


class TrainerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a policy is trained; part of what makes a version reproducible."""

    algorithm: Algorithm = "sac"
    hidden: tuple[int, ...] = (64, 64)
    batch_size: int = 128
    learning_rate: float = 3e-4
    buffer_size: int = 200_000
    entropy_start: float = 0.02
    target_entropy: float = -2.0 * ACTION_SIZE
    target_noise: float = 0.1
    exploration_noise: float = 0.2


class _Spaces(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Carries the spaces to the model; the stream is the only environment there is."""

    observation_space = Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float32)
    action_space = Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)


class Trainer:
    """One policy in training."""

    def __init__(
        self, config: TrainerConfig, *, seed: int, normaliser: Normaliser, device: str = "cpu"
    ) -> None:
        """Build the networks; the actor starts at a zero offset, which is the rule itself."""
        torch.set_num_threads(1)
        set_random_seed(seed)
        self.config = config
        self.normaliser = normaliser
        self.updates = 0
        self._mean = np.asarray(normaliser.mean, np.float32)
        self._scale = np.asarray(normaliser.scale, np.float32)
        shared: dict[str, Any] = {
            "policy": "MlpPolicy",
            "env": _Spaces(),
            "gamma": GAMMA,
            "batch_size": config.batch_size,
            "buffer_size": config.buffer_size,
            "learning_rate": config.learning_rate,
            "policy_kwargs": {"net_arch": list(config.hidden)},
            "seed": seed,
            "device": device,
        }
        self.model: SAC | TD3
        if config.algorithm == "sac":
            self.model = SAC(
                ent_coef=f"auto_{config.entropy_start}",
                target_entropy=config.target_entropy,
                **shared,
            )
        else:
            self.model = TD3(target_policy_noise=config.target_noise, **shared)
        self.model.set_logger(configure(None, []))
        with torch.no_grad():
            last = self._linear_layers()[-1]
            last.weight.mul_(0.01)
            last.bias.zero_()
        if isinstance(self.model, TD3):
            self.model.actor_target.load_state_dict(self.model.actor.state_dict())

    def normalise(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return observations as the networks see them."""
        clip = self.normaliser.clip
        scaled = (observations - self._mean) / self._scale
        return np.asarray(np.clip(scaled, -clip, clip), np.float32)

    def add(self, transitions: Iterable[Transition]) -> None:
        """Store transitions; the task is continuing, so none of them is terminal."""
        buffer = self.model.replay_buffer
        if buffer is None:
            raise RuntimeError("the model has no replay buffer")
        for one in transitions:
            buffer.add(
                self.normalise(one.observation[None]),
                self.normalise(one.next_observation[None]),
                one.action[None],
                np.array([one.reward], np.float32),
                np.array([False]),
                [{}],
            )

    def update(self, gradient_steps: int) -> None:
        """Take gradient steps; with less than a batch stored, none."""
        buffer = self.model.replay_buffer
        if buffer is None or buffer.size() < self.config.batch_size:
            return
        self.model.train(gradient_steps=gradient_steps, batch_size=self.config.batch_size)
        self.updates += gradient_steps

    def act(
        self, observations: NDArray[np.float32], *, explore: bool = False
    ) -> NDArray[np.float32]:
        """Return actions in [-1, 1] for raw observations, one row each.

        SAC explores by sampling its own distribution, TD3 by Gaussian noise on its action.
        """
        inputs = torch.as_tensor(self.normalise(observations), device=self.model.device)
        with torch.no_grad():
            actions = self.model.actor._predict(inputs, deterministic=not explore)
            if explore and isinstance(self.model, TD3):
                noise = torch.randn_like(actions) * self.config.exploration_noise
                actions = torch.clamp(actions + noise, -1.0, 1.0)
        return np.asarray(actions.cpu().numpy(), np.float32)

    def export(self) -> tuple[ActorSpec, bytes]:
        """Return the deterministic actor as a spec and safetensors."""
        spec = ActorSpec(
            observation_size=OBSERVATION_SIZE, action_size=ACTION_SIZE, hidden=self.config.hidden
        )
        tensors = {}
        for index, layer in enumerate(self._linear_layers()):
            tensors[f"layer.{index}.weight"] = layer.weight.detach().cpu().numpy()
            tensors[f"layer.{index}.bias"] = layer.bias.detach().cpu().numpy()
        return spec, save_safetensors(tensors)

    def start_from(self, weights: bytes) -> None:
        """Load an exported actor, so that training goes on from a known policy.

        Raises:
            ValueError: the weights are for another shape of actor.
        """
        tensors = load_safetensors(weights)
        layers = self._linear_layers()
        if len(tensors) != 2 * len(layers):
            raise ValueError(f"{len(tensors)} tensors for {len(layers)} layers")
        with torch.no_grad():
            for index, layer in enumerate(layers):
                for name in ("weight", "bias"):
                    tensor = tensors[f"layer.{index}.{name}"]
                    target = getattr(layer, name)
                    if tuple(target.shape) != tensor.shape:
                        raise ValueError(f"layer.{index}.{name} has shape {tensor.shape}")
                    target.copy_(torch.as_tensor(tensor))
        if isinstance(self.model, TD3):
            self.model.actor_target.load_state_dict(self.model.actor.state_dict())

    def _linear_layers(self) -> list[torch.nn.Linear]:
        actor = self.model.actor
        return [
            module
            for name, module in actor.named_modules()
            if isinstance(module, torch.nn.Linear) and not name.startswith("log_std")
        ]


def fit_normaliser(observations: NDArray[np.float32], *, clip: float = 5.0) -> Normaliser:
    """Return the statistics of a set of observations, to be frozen with a policy."""
    scale = observations.std(axis=0)
    return Normaliser(
        mean=tuple(round(float(x), 6) for x in observations.mean(axis=0)),
        scale=tuple(round(float(max(x, 0.05)), 6) for x in scale),
        clip=clip,
    )
