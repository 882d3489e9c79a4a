"""Prioritised replay: what surprised the critics is seen more often, and weighs less for it.

Schaul et al., "Prioritized Experience Replay" (2016), proportional variant. With `exponent` 0 the
buffer is stable-baselines3's own, draw by draw. Draws come from numpy's global generator, which a
model seeds when it is made, as the library's do.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

LEAST_PRIORITY: Final = 1e-3
"""Added to every error, so that nothing is never seen again."""


class SumTree:
    """Weights in the leaves of a binary tree whose inner nodes are sums, all in one array.

    Both operations take n leaves at once and cost n times the depth.
    """

    def __init__(self, leaves: int) -> None:
        """Hold `leaves` weights, all 0."""
        self._depth: Final = max(leaves - 1, 1).bit_length()
        self._first: Final = 1 << self._depth
        self._sums: Final = np.zeros(2 * self._first)

    @property
    def total(self) -> float:
        """Return the sum of all weights."""
        return float(self._sums[1])

    def __getitem__(self, places: Places) -> Floats:
        """Return the weights at some places."""
        found: Floats = self._sums[self._first + places]
        return found

    def __setitem__(self, places: Places, weights: Floats | float) -> None:
        """Set the weights at some places; of a place given twice the last one stands.

        Sums are made anew from both children, so that no rounding error builds up.
        """
        nodes = self._first + np.asarray(places, np.int64)
        self._sums[nodes] = weights
        for _ in range(self._depth):
            nodes = np.unique(nodes >> 1)
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def find(self, marks: Floats) -> Places:
        """Return for each mark in [0, total) the leaf within whose share of the sum it falls."""
        nodes, left = np.ones(len(marks), np.int64), np.array(marks, np.float64)
        for _ in range(self._depth):
            nodes *= 2
            sums = self._sums[nodes]
            # A mark that rounding put on the edge must not fall into a leaf that weighs nothing.
            right = (left >= sums) & (self._sums[nodes + 1] > 0.0)
            left = np.where(right, left - sums, left)
            nodes += right
        return nodes - self._first


@dataclass(frozen=True, slots=True, kw_only=True)
class Priorities:
    """How prioritised replay is: errors count to the power of `exponent`.

    `correction` is how far the bias is corrected that this brings: 1 is all of it.
    """

    exponent: float = 0.0
    correction: float = 0.6


class PrioritisedReplayBuffer(ReplayBuffer):
    """A replay buffer that draws by priority, one stratum of the sum for each sample.

    After `sample`, `weights` (n, 1) are how much each of the samples counts, 1 at most, and
    `learnt` takes the critics' errors about them. With more than one of `n_steps` a sample's reward
    is that of several steps, and its discount says how many they were.
    """

    def __init__(
        self, *args: Any, priorities: Priorities, n_steps: int, gamma: float, **kwargs: Any
    ) -> None:
        """Hold nothing; what comes is most urgent until it was seen once."""
        super().__init__(*args, **kwargs)
        self.weights = torch.ones(0, 1)
        self._priorities: Final = priorities
        self._n_steps: Final = n_steps
        self._gamma: Final = gamma
        self._tree: Final = SumTree(self.buffer_size * self.n_envs)
        self._most = 1.0
        self._drawn: Places = np.zeros(0, np.int64)

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store one transition of each environment."""
        places = self.pos * self.n_envs + np.arange(self.n_envs)
        super().add(*args, **kwargs)
        self._tree[places] = self._most

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw a batch, with replacement; `env` may not scale what is drawn."""
        if env is not None:
            raise ValueError("observations are scaled before they are stored")
        if self._priorities.exponent == 0.0:
            self.weights = torch.ones(batch_size, 1, device=self.device)
            if self._n_steps == 1:
                return super().sample(batch_size)
            steps = np.random.randint(0, self.size(), batch_size)
            return self._gather(steps, np.random.randint(0, self.n_envs, batch_size))
        total = self._tree.total
        marks = (np.arange(batch_size) + np.random.random(batch_size)) * (total / batch_size)
        self._drawn = self._tree.find(marks)
        chances = self._tree[self._drawn] / total
        weights = (self.size() * self.n_envs * chances) ** -self._priorities.correction
        self.weights = self.to_torch((weights / weights.max()).astype(np.float32)[:, None])
        return self._gather(*np.divmod(self._drawn, self.n_envs))

    def learnt(self, errors: NDArray[np.float32]) -> None:
        """Take the absolute errors (n,) about the samples last drawn as their new priorities."""
        if self._priorities.exponent == 0.0:
            return
        urgency = (errors.astype(np.float64) + LEAST_PRIORITY) ** self._priorities.exponent
        self._tree[self._drawn] = urgency
        self._most = max(self._most, float(urgency.max()))

    def priorities(self) -> Floats:
        """Return the priority of every place and, last, that of what comes new."""
        places = np.arange(self.buffer_size * self.n_envs)
        return np.append(self._tree[places], self._most)

    def set_priorities(self, priorities: Floats) -> None:
        """Take over what `priorities` said of a buffer that held the same."""
        self._tree[np.arange(len(priorities) - 1)] = priorities[:-1]
        self._most = float(priorities[-1])

    def _gather(self, steps: Places, envs: Places) -> ReplayBufferSamples:
        """Return the transitions at some steps of some environments, over up to n steps each.

        None reaches beyond an end, a truncation or the newest step.
        """
        ahead = (steps[:, None] + np.arange(self._n_steps)) % self.buffer_size
        column = envs[:, None]
        ends = (self.dones[ahead, column] > 0) | (self.timeouts[ahead, column] > 0)
        ends |= ahead == (self.pos - 1) % self.buffer_size
        length = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, self._n_steps)
        weights = self._gamma ** np.arange(self._n_steps)
        weights = np.where(np.arange(self._n_steps) < length[:, None], weights, 0.0)
        last = (steps + length - 1) % self.buffer_size
        ended = self.dones[last, envs] * (1.0 - self.timeouts[last, envs])
        return ReplayBufferSamples(
            observations=self.to_torch(self.observations[steps, envs]),
            actions=self.to_torch(self.actions[steps, envs]),
            next_observations=self.to_torch(self.next_observations[last, envs]),
            dones=self.to_torch(ended.astype(np.float32)[:, None]),
            rewards=self.to_torch(
                (self.rewards[ahead, column] * weights).sum(axis=1).astype(np.float32)[:, None]
            ),
            discounts=self.to_torch((self._gamma**length).astype(np.float32)[:, None]),
        )
