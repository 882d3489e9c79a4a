"""SAC, TD3 and TD3+BC, in an environment or fed with transitions.

In the twin a trainer is given an environment and learns by acting in it. A stream has no
`env.step`: transitions arrive when rewards do. There the model is built on spaces alone, its own
replay buffer is filled, and `train` is called for a fixed number of gradient steps, which makes a
round a pure function of (transitions, seed, configuration). A model seeds the global generators
when it is made, which is why one process trains one policy at a time.
"""

import copy
from collections.abc import Callable, Collection, Iterable
from fractions import Fraction
from typing import Any, Final, Literal

import gymnasium
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecEnv

from gpuloop.loop.learn.algorithms import WeighingSAC, WeighingTD3
from gpuloop.loop.learn.experience import ACTION_SIZE, OBSERVATION_SIZE, Transition
from gpuloop.loop.learn.exploration import RowNoise
from gpuloop.loop.learn.replay import Priorities, PrioritisedReplayBuffer
from gpuloop.loop.learn.spaces import Scaling, action_box, observation_box
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import HOUR_US

Algorithm = Literal["sac", "td3"]

GAMMA: Final = float(np.exp(-CONTROL_TICK_US / HOUR_US))
"""Discount per control tick: effects are weighed over about an hour."""

MAX_STEPS_APART: Final = 60
"""Steps between two trainings at most, so less than one update a step is still exact enough."""


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
    imitation: float = 0.0
    """How much TD3's actor is held to the actions it learns from: above 0 it is TD3+BC."""
    priority_exponent: float = 0.0
    """How much more often surprises are replayed: 0 draws all alike, 1 by their size."""
    priority_correction: float = 0.6
    averaging: int = 0
    """Updates over which the exported actor is a mean of what it was; 0 exports the last one.

    Rewards are mostly luck here, and an actor follows its critic's last mistake; its mean does not.
    """
    n_steps: int = 1
    """Control ticks whose rewards are summed before the critic is asked."""


class _Spaces(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Carries the spaces to the model where the stream is the only environment there is."""

    observation_space = observation_box()
    action_space = action_box()


class _Watch(BaseCallback):
    """Tells how many transitions have been made, at every step."""

    def __init__(self, step: Callable[[int], None]) -> None:
        super().__init__()
        self._step = step

    def _on_step(self) -> bool:
        self._step(self.num_timesteps)
        return True


class Trainer:
    """One policy in training."""

    def __init__(
        self,
        config: TrainerConfig,
        *,
        seed: int,
        normaliser: Normaliser,
        env: VecEnv | None = None,
        device: str = "cpu",
    ) -> None:
        """Build the networks; the actor starts at a zero offset, which is the rule itself.

        An `env` must show its observations through the same normaliser.
        """
        torch.set_num_threads(1)
        self.config = config
        self.normaliser = normaliser
        self.normalise: Final = Scaling(normaliser)
        shared: dict[str, Any] = {
            "policy": "MlpPolicy",
            "env": _Spaces() if env is None else env,
            "gamma": GAMMA,
            "batch_size": config.batch_size,
            "buffer_size": config.buffer_size,
            "learning_rate": config.learning_rate,
            "policy_kwargs": {"net_arch": list(config.hidden)},
            "replay_buffer_class": PrioritisedReplayBuffer,
            "replay_buffer_kwargs": {
                "priorities": Priorities(
                    exponent=config.priority_exponent, correction=config.priority_correction
                ),
                "n_steps": config.n_steps,
                "gamma": GAMMA,
            },
            "seed": seed,
            "device": device,
        }
        self.model: WeighingSAC | WeighingTD3
        if config.algorithm == "sac":
            self.model = WeighingSAC(
                ent_coef=f"auto_{config.entropy_start}",
                target_entropy=config.target_entropy,
                **shared,
            )
        else:
            rows = 1 if env is None else env.num_envs
            noise = RowNoise(config.exploration_noise, rows, ACTION_SIZE)
            self.model = WeighingTD3(
                target_policy_noise=config.target_noise,
                action_noise=noise,
                imitation=config.imitation,
                **shared,
            )
        # `configure` would leave an empty folder in /tmp for each model.
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        with torch.no_grad():
            last = _linear_layers(self.model.actor)[-1]
            last.weight.mul_(0.01)
            last.bias.zero_()
        if isinstance(self.model, TD3):
            self.model.actor_target.load_state_dict(self.model.actor.state_dict())
        self.averaged: Final = copy.deepcopy(self.model.actor).requires_grad_(requires_grad=False)
        """What is exported: the mean of what the actor was, where it is averaged."""
        self._averaged_at = 0

    @property
    def updates(self) -> int:
        """Return how many gradient steps were taken."""
        return self.model._n_updates

    def add(self, transitions: Iterable[Transition]) -> None:
        """Store transitions; the task is continuing, so none of them is terminal.

        With an environment they come tick by tick, one of each pool.

        Raises:
            ValueError: the last tick is not whole.

        """
        buffer, made = self.buffer, list(transitions)
        if len(made) % buffer.n_envs:
            raise ValueError(f"{len(made)} transitions are not whole ticks of {buffer.n_envs}")
        for first in range(0, len(made), buffer.n_envs):
            tick = made[first : first + buffer.n_envs]
            buffer.add(
                self.normalise(np.stack([one.observation for one in tick])),
                self.normalise(np.stack([one.next_observation for one in tick])),
                np.stack([one.action for one in tick]),
                np.array([one.reward for one in tick], np.float32),
                np.full(len(tick), fill_value=False),
                [{} for _ in tick],
            )

    def update(self, gradient_steps: int) -> None:
        """Take gradient steps; with less than a batch stored, none."""
        if self._stored() >= self.config.batch_size:
            self.model.train(gradient_steps=gradient_steps, batch_size=self.config.batch_size)

    def learn(
        self, transitions: int, *, updates_per_transition: float, tell: Callable[[int], None]
    ) -> None:
        """Act in the environment, explore and train, for so many transitions.

        Trains at every step, or at every few where that makes whole gradient steps, as soon as a
        batch is stored. SAC explores by sampling its own distribution, TD3 by Gaussian noise on
        its action. `tell` is told the transitions made so far, those of earlier calls included:
        where one call ends the next goes on.
        """
        model = self.model
        share = Fraction(updates_per_transition * model.n_envs).limit_denominator(MAX_STEPS_APART)
        model.train_freq = (share.denominator, "step")
        model._convert_train_freq()
        model.gradient_steps = share.numerator
        model.learning_starts = max(0, self.config.batch_size - self._stored())
        if isinstance(model.action_noise, RowNoise):
            model.action_noise.reset()

        def step(made: int) -> None:
            self._average()
            tell(made)

        self._averaged_at = self.updates
        model.learn(transitions, callback=_Watch(step), reset_num_timesteps=False)

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return actions in [-1, 1] for raw observations, one row each."""
        inputs = torch.as_tensor(self.normalise(observations), device=self.model.device)
        with torch.no_grad():
            actions = self.model.actor._predict(inputs, deterministic=True)
        return np.asarray(actions.cpu().numpy(), np.float32)

    def export(self, untried: Collection[int] = ()) -> tuple[ActorSpec, bytes]:
        """Return the deterministic actor as a spec and safetensors.

        It says 0 in the dimensions that were `untried`: what it would say there is noise.
        """
        spec = ActorSpec(
            observation_size=OBSERVATION_SIZE, action_size=ACTION_SIZE, hidden=self.config.hidden
        )
        tensors = {}
        actor = self.averaged if self.config.averaging else self.model.actor
        layers = _linear_layers(actor)
        for index, layer in enumerate(layers):
            for name in ("weight", "bias"):
                tensor = getattr(layer, name).detach().cpu().numpy().copy()
                if index == len(layers) - 1:
                    tensor[list(untried)] = 0.0
                tensors[f"layer.{index}.{name}"] = tensor
        return spec, save_safetensors(tensors)

    def start_from(self, weights: bytes) -> None:
        """Load an exported actor, so that training goes on from a known policy.

        Raises:
            ValueError: the weights are for another shape of actor.
        """
        tensors = load_safetensors(weights)
        layers = _linear_layers(self.model.actor)
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
        self.averaged.load_state_dict(self.model.actor.state_dict())

    @property
    def buffer(self) -> PrioritisedReplayBuffer:
        """Return where transitions are stored."""
        buffer = self.model.replay_buffer
        if not isinstance(buffer, PrioritisedReplayBuffer):
            raise RuntimeError("the model has no replay buffer")
        return buffer

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Return what moves them; SAC's temperature has one of its own."""
        model = self.model
        found = {"actor": model.actor.optimizer, "critic": model.critic.optimizer}
        if isinstance(model, WeighingSAC) and model.ent_coef_optimizer is not None:
            found["entropy"] = model.ent_coef_optimizer
        return found

    def entropy(self) -> float:
        """Return the logarithm of SAC's temperature, 0 for TD3."""
        model = self.model
        if isinstance(model, WeighingSAC) and model.log_ent_coef is not None:
            return float(model.log_ent_coef.detach().cpu())
        return 0.0

    def set_entropy(self, logarithm: float) -> None:
        """Set the logarithm of SAC's temperature; TD3 has none."""
        model = self.model
        if isinstance(model, WeighingSAC) and model.log_ent_coef is not None:
            with torch.no_grad():
                model.log_ent_coef.fill_(logarithm)

    def _average(self) -> None:
        """Move the exported actor towards the present one, by as much as was learnt meanwhile."""
        if self.config.averaging:
            share = 1.0 - float(np.exp((self._averaged_at - self.updates) / self.config.averaging))
            polyak_update(self.model.actor.parameters(), self.averaged.parameters(), share)
        self._averaged_at = self.updates

    def _stored(self) -> int:
        return self.buffer.size() * self.model.n_envs


def _linear_layers(actor: torch.nn.Module) -> list[torch.nn.Linear]:
    return [
        module
        for name, module in actor.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("log_std")
    ]
