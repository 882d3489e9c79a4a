"""What happened within the last while, per pool: a bounded ring of times and numbers.

It owns how past values are kept and summed up. A moment exactly as long ago as the window is wide
lies outside of it, as in the controllers that are rebuilt here.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from gpuloop.reasoning.baselines.controller import Rows
from gpuloop.schemas.policy import CONTROL_TICK_US, Flags, Floats, Integers

NEVER_US: Final = -(2**62)
"""Before every window, and still far from the ends of 64 bits."""


@dataclass(slots=True)
class Ring(Rows):
    """The latest values of n pools; each row turns on its own."""

    times_us: Integers
    values: Floats
    place: Integers

    @classmethod
    def empty(cls, pools: int, slots: int) -> "Ring":
        """Return a ring that holds `slots` values per pool."""
        return cls(
            np.full((pools, slots), NEVER_US, np.int64),
            np.zeros((pools, slots)),
            np.zeros(pools, np.int64),
        )

    @classmethod
    def of_ticks(cls, pools: int, window_us: int) -> "Ring":
        """Return a ring that holds a window of one value per control tick, the present included."""
        return cls.empty(pools, max(1, -(-window_us // CONTROL_TICK_US)))

    def push(self, now_us: Integers, values: Floats, where: Flags) -> None:
        """Keep a value of each flagged pool in the place of its oldest."""
        rows = np.flatnonzero(where)
        at = self.place[rows]
        self.times_us[rows, at] = now_us[rows]
        self.values[rows, at] = values[rows]
        self.place[rows] = (at + 1) % self.values.shape[1]

    def since(self, now_us: Integers, window_us: int) -> Flags:
        """Return which values (n, slots) are younger than the window."""
        inside: Flags = self.times_us > (now_us - window_us)[:, None]
        return inside

    def largest(self, now_us: Integers, window_us: int, otherwise: Floats) -> Floats:
        """Return the largest of `otherwise` and the values within the window."""
        inside = np.where(self.since(now_us, window_us), self.values, -np.inf)
        largest: Floats = np.maximum(otherwise, inside.max(axis=1, initial=-np.inf))
        return largest

    def smallest(self, now_us: Integers, window_us: int, otherwise: Floats) -> Floats:
        """Return the smallest of `otherwise` and the values within the window."""
        inside = np.where(self.since(now_us, window_us), self.values, np.inf)
        smallest: Floats = np.minimum(otherwise, inside.min(axis=1, initial=np.inf))
        return smallest

    def total(self, now_us: Integers, window_us: int) -> Floats:
        """Return the sum of the values within the window."""
        inside: Floats = np.where(self.since(now_us, window_us), self.values, 0.0).sum(axis=1)
        return inside
