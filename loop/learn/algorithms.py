"""SAC and TD3 whose critics weigh their samples, and whose actor may be held to what was done.

They are stable-baselines3's, with the gradient step spelt out: it has no place where a sample's
weight could enter or its error leave. With equal weights and nothing held they take the same steps,
which a test sees. Held to what was done, TD3 is TD3+BC (Fujimoto and Gu, "A Minimalist Approach to
Offline Reinforcement Learning", 2021): the critic's say is scaled by its own mean size, so that
`imitation` weighs a squared distance in actions whatever rewards are measured in.
"""

from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update
from torch import Tensor

from gpuloop.loop.learn.replay import PrioritisedReplayBuffer


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _least(critics: Sequence[Tensor]) -> Tensor:
    """Return the smaller of the critics' values, (n, 1)."""
    return torch.cat(list(critics), dim=1).min(dim=1, keepdim=True).values


def _buffer_of(model: SAC | TD3) -> PrioritisedReplayBuffer:
    assert isinstance(model.replay_buffer, PrioritisedReplayBuffer)
    return model.replay_buffer


def _teach_critics(model: SAC | TD3, data: ReplayBufferSamples, aim: Tensor, share: float) -> None:
    """Move both critics towards an aim (n, 1), and say how far off they were."""
    buffer = _buffer_of(model)
    errors = [values - aim for values in model.critic(data.observations, data.actions)]
    loss = share * sum(((buffer.weights * error**2).mean() for error in errors), torch.zeros(()))
    _step(model.critic.optimizer, loss)
    off = torch.stack([error.detach().abs() for error in errors]).mean(dim=0)
    buffer.learnt(off.squeeze(1).cpu().numpy())


def _discounted(model: SAC | TD3, data: ReplayBufferSamples, values: Tensor) -> Tensor:
    discount = model.gamma if data.discounts is None else data.discounts
    return data.rewards + (1 - data.dones) * discount * values


class WeighingSAC(SAC):
    """Soft actor-critic over a prioritised buffer."""

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Take gradient steps."""
        self.policy.set_training_mode(True)
        for step in range(gradient_steps):
            data = _buffer_of(self).sample(batch_size)
            actions, likely = self.actor.action_log_prob(data.observations)
            likely = likely.reshape(-1, 1)
            temperature = self._temper(likely)
            with torch.no_grad():
                then, then_likely = self.actor.action_log_prob(data.next_observations)
                values = _least(self.critic_target(data.next_observations, then))
                values = values - temperature * then_likely.reshape(-1, 1)
                aim = _discounted(self, data, values)
            _teach_critics(self, data, aim, share=0.5)
            values = _least(self.critic(data.observations, actions))
            _step(self.actor.optimizer, (temperature * likely - values).mean())
            if step % self.target_update_interval == 0:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        self._n_updates += gradient_steps

    def _temper(self, likely: Tensor) -> Tensor:
        """Return the entropy's coefficient, and move it towards its target where it is learnt."""
        if self.ent_coef_optimizer is None or self.log_ent_coef is None:
            return self.ent_coef_tensor
        temperature = torch.exp(self.log_ent_coef.detach())
        missing = (likely + float(self.target_entropy)).detach()
        _step(self.ent_coef_optimizer, -(self.log_ent_coef * missing).mean())
        return temperature


class WeighingTD3(TD3):
    """TD3 over a prioritised buffer; with `imitation` above 0 it is TD3+BC."""

    def __init__(self, *args: Any, imitation: float = 0.0, **kwargs: Any) -> None:
        """Build the networks."""
        super().__init__(*args, **kwargs)
        self.imitation = imitation

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take gradient steps."""
        self.policy.set_training_mode(True)
        for _ in range(gradient_steps):
            self._n_updates += 1
            data = _buffer_of(self).sample(batch_size)
            with torch.no_grad():
                noise = torch.empty_like(data.actions).normal_(0, self.target_policy_noise)
                noise = noise.clamp(-self.target_noise_clip, self.target_noise_clip)
                then = (self.actor_target(data.next_observations) + noise).clamp(-1, 1)
                values = _least(self.critic_target(data.next_observations, then))
                aim = _discounted(self, data, values)
            _teach_critics(self, data, aim, share=1.0)
            if self._n_updates % self.policy_delay == 0:
                _step(self.actor.optimizer, self._regret(data))
                for network, target in (
                    (self.critic, self.critic_target),
                    (self.actor, self.actor_target),
                ):
                    polyak_update(network.parameters(), target.parameters(), self.tau)

    def _regret(self, data: ReplayBufferSamples) -> Tensor:
        """Return the actor's loss."""
        actions = self.actor(data.observations)
        values = self.critic.q1_forward(data.observations, actions)
        if self.imitation == 0.0:
            return -values.mean()
        size = values.detach().abs().mean().clamp(min=1e-6)
        apart = torch.nn.functional.mse_loss(actions, data.actions)
        return -values.mean() / size + self.imitation * apart
