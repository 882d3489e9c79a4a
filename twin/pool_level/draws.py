"""Luck for compiled code: keyed by what it happens to, as `twin.draws`, but over integers."""

from math import cos, exp, log, pi, sqrt
from typing import Any, Final

import numpy as np

from gpuloop.twin.pool_level.compiling import compiled

LOST_FOR, ECC_FATAL, ECC_FOR, VICTIM, STRIKES = range(5)
"""What a draw decides; `STRIKES` and the numbers after it are what strikes a node in an hour."""

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)


@compiled
def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


@compiled
def uniform(seed: Any, what: int, subject: int, instant: int) -> float:
    """Return a number in (0, 1); SplitMix64's finaliser over each part of the key in turn."""
    x = _mix(seed + _GOLDEN * np.uint64(what + 1))
    x = _mix(x + _GOLDEN * np.uint64(subject + 1))
    x = _mix(x + _GOLDEN * np.uint64(instant + 1))
    return (float(x >> np.uint64(11)) + 0.5) * 2.0**-53


@compiled
def lognormal(
    median: float, sigma: float, seed: Any, what: int, subject: int, instant: int
) -> float:
    """Return a lognormal number with this median and log standard deviation."""
    radius = sqrt(-2.0 * log(uniform(seed, what, 2 * subject, instant)))
    normal = radius * cos(2.0 * pi * uniform(seed, what, 2 * subject + 1, instant))
    return median * exp(sigma * normal)
