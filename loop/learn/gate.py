"""The check that earns a policy its alpha: paired days in the twin, on weeks it never saw.

Policy and rule meet the same draws, so only the day-by-day differences count, and days, not ticks,
are what is counted: neighbouring ticks repeat each other. Each alpha gets Student's t interval of
its mean daily difference, widened (Bonferroni) by how many alphas are tried, so that all intervals
hold at once with 90 %. No alpha earns its place unless its lower bound is above zero: of policies
without effect at most 5 % do, as long as their daily differences spread about normally and days do
not lean on each other. 0 is a usual answer.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from math import pi, sqrt
from typing import Final

import msgspec
import numpy as np

ALPHAS: Final = (0.25, 0.5, 1.0)
CONFIDENCE: Final = 0.9
"""That all intervals hold at once; half of the rest is the risk of a false pass."""

MIN_DAYS: Final = 5
"""With fewer days nobody can tell whether their differences spread normally."""

MOST_USD: Final = 1e9
"""Where an interval ends that has no end, that of a single day."""

STEPS: Final = 20_000


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


def check_alpha(alpha: float, differences_usd: Sequence[float], *, tried: int) -> AlphaCheck:
    """Return the interval of the mean daily difference to the rule, of one alpha among `tried`."""
    days = np.asarray(differences_usd, np.float64)
    mean, margin = float(days.mean()), np.inf
    if len(days) > 1:
        beyond = (1.0 - CONFIDENCE) / 2 / tried
        spread = float(days.std(ddof=1))
        margin = student_t(beyond, len(days) - 1) * spread / sqrt(len(days)) if spread else 0.0
    return AlphaCheck(
        alpha=alpha,
        days=len(days),
        mean_usd_per_day=round(mean, 2),
        low_usd_per_day=round(max(mean - margin, -MOST_USD), 2),
        high_usd_per_day=round(min(mean + margin, MOST_USD), 2),
    )


@cache
def student_t(beyond: float, freedom: int) -> float:
    """Return the value that Student's t exceeds with probability `beyond`, below a half.

    The distribution is integrated over the angle atan(t / sqrt(freedom)), where its density is
    cos^(freedom - 1) and everything is finite.
    """
    edges = np.linspace(0.0, pi / 2, STEPS + 1)
    weights = np.cos((edges[1:] + edges[:-1]) / 2) ** (freedom - 1)
    inside = np.concatenate([[0.0], np.cumsum(weights)]) / (2.0 * weights.sum())
    return sqrt(freedom) * float(np.tan(np.interp(0.5 - beyond, inside, edges)))


def earn_alpha(
    differences_usd: Mapping[float, Sequence[float]], *, tried: int | None = None
) -> Gate:
    """Return the alpha with the best lower bound above zero, or 0 when none has one.

    `tried` is how many alphas are judged together, where there are others than these.
    """
    checks = tuple(
        check_alpha(alpha, differences_usd[alpha], tried=tried or len(differences_usd))
        for alpha in sorted(differences_usd)
    )
    best = max(checks, key=lambda check: check.low_usd_per_day, default=None)
    convinced = best is not None and best.days >= MIN_DAYS and best.low_usd_per_day > 0
    return Gate(alpha=best.alpha if best is not None and convinced else 0.0, checks=checks)
