"""The check that earns a policy its alpha: paired days in the twin, on weeks it never saw.

Policy and rule meet the same draws, so only the day-by-day differences count, and days, not ticks
or seeds, are what is resampled: neighbouring ticks repeat each other. No alpha earns its place
unless the lower confidence bound of its mean difference is above zero, so 0 is a usual answer.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

ALPHAS: Final = (0.25, 0.5, 1.0)
CONFIDENCE: Final = 0.9
RESAMPLES: Final = 10_000
MIN_DAYS: Final = 5
"""With fewer days their interval says nothing, however wide the margin."""


class AlphaCheck(msgspec.Struct, frozen=True, kw_only=True):
    """How one alpha did against the rule, in US dollars a day."""

    alpha: float
    days: int
    mean_usd_per_day: float
    low_usd_per_day: float
    high_usd_per_day: float


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict: the alpha that was earned and every check behind it."""

    alpha: float
    checks: tuple[AlphaCheck, ...]

    def figures(self) -> dict[str, float]:
        """Return the checks as flat numbers, as a policy version stores them."""
        return {
            f"alpha_{check.alpha:g}_{name}": value
            for check in self.checks
            for name, value in (
                ("days", float(check.days)),
                ("mean_usd_per_day", check.mean_usd_per_day),
                ("low_usd_per_day", check.low_usd_per_day),
                ("high_usd_per_day", check.high_usd_per_day),
            )
        }


def check_alpha(alpha: float, differences_usd: Sequence[float], *, seed: int) -> AlphaCheck:
    """Return the bootstrap interval of the mean daily difference to the rule."""
    days = np.asarray(differences_usd, np.float64)
    rng = np.random.default_rng(seed)
    means = days[rng.integers(0, len(days), (RESAMPLES, len(days)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return AlphaCheck(
        alpha=alpha,
        days=len(days),
        mean_usd_per_day=round(float(days.mean()), 2),
        low_usd_per_day=round(float(low), 2),
        high_usd_per_day=round(float(high), 2),
    )


def earn_alpha(differences_usd: Mapping[float, Sequence[float]], *, seed: int) -> Gate:
    """Return the alpha with the best lower bound above zero, or 0 when none has one."""
    checks = tuple(
        check_alpha(alpha, differences_usd[alpha], seed=seed) for alpha in sorted(differences_usd)
    )
    best = max(checks, key=lambda check: check.low_usd_per_day, default=None)
    convinced = best is not None and best.days >= MIN_DAYS and best.low_usd_per_day > 0
    return Gate(alpha=best.alpha if best is not None and convinced else 0.0, checks=checks)
