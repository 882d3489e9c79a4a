"""What a controller's settings cost and whom they let wait, in one pool, as a frontier.

A controller runs at several settings of its service knob; each is a point of violation rate and
cost. Its frontier is the Pareto set of these points: who has a setting that is cheaper and serves
better would not use the other. It is not their convex hull, which would credit mixtures of settings
that nobody ran. Between neighbouring points cost is linear in the logarithm of the rate where both
rates are positive, else in the rate. At a rate (or a cost) beyond the last point of the set, up to
the largest that was run, the last point holds, as it does better for less. Elsewhere a frontier
says nothing: nothing is extrapolated.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

DRAWS: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What one controller's settings came to on the days of one class, pool by pool.

    A pool that has no day of the class on a date has zeros there.

    Attributes:
        name: of the controller.
        settings: values of its service knob, in any order.
        pools: names of the pools, the same for all that are compared and in the same order.
        days: names of the days, in any order, the same for all that are compared.
        violated: (seeds, settings, pools, days) violations; one seed for whoever was not trained.
        judged: (seeds, settings, pools, days) jobs, or service minutes, that could have been.
        cost_usd: (seeds, settings, pools, days).

    Raises:
        ValueError: shapes differ, a number is missing or impossible, or a name comes twice.

    """

    name: str
    settings: tuple[float, ...]
    pools: tuple[str, ...]
    days: tuple[str, ...]
    violated: Floats
    judged: Floats
    cost_usd: Floats

    def __post_init__(self) -> None:
        """Refuse what is not whole."""
        names = (self.settings, self.pools, self.days)
        shape = (len(self.violated), *map(len, names))
        for what in ("violated", "judged", "cost_usd"):
            numbers = getattr(self, what)
            if numbers.shape != shape or not numbers.size:
                raise ValueError(f"{self.name}: {what} is {numbers.shape} and not {shape}")
            if not np.all(np.isfinite(numbers)):
                raise ValueError(f"{self.name}: {what} holds what is not a number")
        if np.any(self.violated < 0) or np.any(self.violated > self.judged):
            raise ValueError(f"{self.name}: more is violated than was judged, or less than none")
        if any(len(set(each)) < len(each) for each in names):
            raise ValueError(f"{self.name}: a day, a pool or a setting comes twice")

    def on(self, days: tuple[str, ...]) -> "Runs":
        """Return the same with its days in this order.

        Raises:
            ValueError: the days are not its own.

        """
        if set(days) != set(self.days):
            raise ValueError(f"{self.name} ran on other days")
        places = [self.days.index(day) for day in days]
        arrays = (a[..., places] for a in (self.violated, self.judged, self.cost_usd))
        violated, judged, cost_usd = arrays
        return Runs(
            name=self.name, settings=self.settings, pools=self.pools, days=days, violated=violated,
            judged=judged, cost_usd=cost_usd,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Points:
    """Settings as points in one pool, (draws, settings) each.

    Violation rate, US dollars a day, and jobs that were judged in all days, the mean of seeds. A
    setting that judged nobody in a draw is no point there.
    """

    rate: Floats
    cost: Floats
    judged: Floats

    @property
    def known(self) -> Flags:
        """Return where settings are points."""
        return self.judged > 0


@dataclass(frozen=True, slots=True)
class Read:
    """What a frontier says at one place, (draws,), and where it says anything; 0 elsewhere."""

    value: Floats
    known: Flags


class Draws:
    """Which days, and which seeds, each draw counts how often; the first row is all days once.

    A day is drawn with all its pools, and for all controllers alike.
    """

    def __init__(self, days: tuple[str, ...], *, seed: int, draws: int = DRAWS) -> None:
        """Draw days; their order does not matter to what is drawn."""
        self.days: Final = tuple(sorted(days))
        rng = np.random.default_rng([seed, 0])
        count = len(self.days)
        drawn = rng.multinomial(count, np.full(count, 1 / count), draws)
        self._days: Final = np.vstack([np.ones(count), drawn])
        self._seed: Final = seed

    def points(self, runs: Runs) -> tuple[Points, ...]:
        """Return the settings of a controller in every draw, by pool."""
        runs = runs.on(self.days)
        seeds = self._seeds(len(runs.violated))
        violated, judged, cost = (
            np.einsum("bd,skpd,bs->pbk", self._days, numbers, seeds, optimize=True)
            for numbers in (runs.violated, runs.judged, runs.cost_usd)
        )
        rate = np.divide(violated, judged, out=np.zeros_like(violated), where=judged > 0)
        drawn = seeds.sum(1)[:, None]
        cost = cost / drawn / len(self.days)
        return tuple(map(Points, rate, cost, judged / drawn))

    def _seeds(self, count: int) -> Floats:
        rng = np.random.default_rng([self._seed, 1])
        drawn = rng.multinomial(count, np.full(count, 1 / count), len(self._days) - 1)
        return np.vstack([np.ones(count), drawn])


def cost_at(points: Points, rate: Read) -> Read:
    """Return what a frontier costs at violation rates, (draws,)."""
    return _read(points.rate, points.cost, points.known, rate, logarithm=(True, False))


def rate_at(points: Points, cost: Read) -> Read:
    """Return which violation rates a frontier reaches at costs, (draws,)."""
    return _read(points.cost, points.rate, points.known, cost, logarithm=(False, True))


def _read(x: Floats, y: Floats, known: Flags, at: Read, *, logarithm: tuple[bool, bool]) -> Read:
    """Return y of the Pareto set at x; which of the two is a rate says `logarithm`."""
    kept = _kept(x, y, known)
    place = at.value[:, None]
    left = np.where(kept & (x <= place), x, -np.inf).argmax(1)
    right = np.where(kept & (x >= place), x, np.inf).argmin(1)
    rows = np.arange(len(x))
    begun = np.any(kept & (x <= place), axis=1)
    inside = at.known & begun & np.any(known & (x >= place), axis=1)
    # Beyond the last point kept, where it is still within what was run, that point holds.
    right = np.where(np.any(kept & (x >= place), axis=1), right, left)
    x0, x1, y0, y1 = x[rows, left], x[rows, right], y[rows, left], y[rows, right]
    rates = (x0, x1) if logarithm[0] else (y0, y1)
    positive = (rates[0] > 0) & (rates[1] > 0)
    of_x, of_y = (positive if one else np.zeros(len(x), bool) for one in logarithm)
    x0, x1, x_at = (_log(one, of_x & inside) for one in (x0, x1, at.value))
    y0, y1 = (_log(one, of_y & inside) for one in (y0, y1))
    width = x1 - x0
    share = np.divide(x_at - x0, width, out=np.zeros(len(x)), where=inside & (width > 0))
    value = y0 + share * (y1 - y0)
    value = np.exp(value, out=value.copy(), where=of_y & inside)
    return Read(np.where(inside, value, 0.0), inside)


def pareto(points: Points) -> Flags:
    """Return which settings, (draws, settings), no other beats in rate and in cost."""
    return _kept(points.rate, points.cost, points.known)


def _kept(x: Floats, y: Floats, known: Flags) -> Flags:
    no_worse = (x[:, None, :] <= x[:, :, None]) & (y[:, None, :] <= y[:, :, None])
    better = (x[:, None, :] < x[:, :, None]) | (y[:, None, :] < y[:, :, None])
    kept: Flags = known & ~np.any(no_worse & better & known[:, None, :], axis=2)
    return kept


def _log(numbers: Floats, where: Flags) -> Floats:
    return np.log(numbers, out=numbers.astype(np.float64), where=where)
