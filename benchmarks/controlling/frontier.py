"""How controllers compare at equal service and at equal cost, with intervals, from their days.

A controller runs at several settings of its service knob; each is a point of violation rate and
cost. Its frontier is the Pareto set of these points: who has a setting that is cheaper and serves
better would not use the other. It is not their convex hull, which would credit mixtures of settings
that nobody ran. Between neighbouring points cost is linear in the logarithm of the rate where both
rates are positive, else in the rate. At a rate (or a cost) beyond the last point of the set, up to
the largest that was run, the last point holds, as it does better for less. Elsewhere there is no
comparison: nothing is extrapolated.

Intervals come from a bootstrap over days that draws the same days for all controllers and settings,
and for one that was trained with several seeds its seeds as well. Where a comparison is not
possible in a draw the draw could have come out anywhere: it counts as the lowest for the lower
bound and as the highest for the upper.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

DRAWS: Final = 2_000
FEWEST_EVENTS: Final = 100
"""Violations of the tuned rule below which a ratio would say nothing."""
TAIL: Final = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What one controller's settings came to on the days of one class.

    Attributes:
        name: of the controller.
        settings: values of its service knob, in any order.
        days: names of the days, in any order, the same for all that are compared.
        violated: (seeds, settings, days) violations; one seed for whoever was not trained.
        judged: (seeds, settings, days) jobs, or service minutes, that could have been violated.
        cost_usd: (seeds, settings, days).

    Raises:
        ValueError: shapes differ, a number is missing or impossible, or a name comes twice.

    """

    name: str
    settings: tuple[float, ...]
    days: tuple[str, ...]
    violated: Floats
    judged: Floats
    cost_usd: Floats

    def __post_init__(self) -> None:
        """Refuse what is not whole."""
        shape = (len(self.violated), len(self.settings), len(self.days))
        for what in ("violated", "judged", "cost_usd"):
            numbers = getattr(self, what)
            if numbers.shape != shape or not numbers.size:
                raise ValueError(f"{self.name}: {what} is {numbers.shape} and not {shape}")
            if not np.all(np.isfinite(numbers)):
                raise ValueError(f"{self.name}: {what} holds what is not a number")
        if np.any(self.violated < 0) or np.any(self.violated > self.judged):
            raise ValueError(f"{self.name}: more is violated than was judged, or less than none")
        if len(set(self.days)) < len(self.days) or len(set(self.settings)) < len(self.settings):
            raise ValueError(f"{self.name}: a day or a setting comes twice")

    def on(self, days: tuple[str, ...]) -> "Runs":
        """Return the same with its days in this order.

        Raises:
            ValueError: the days are not its own.

        """
        if set(days) != set(self.days):
            raise ValueError(f"{self.name} ran on other days")
        places = [self.days.index(day) for day in days]
        arrays = (a[:, :, places] for a in (self.violated, self.judged, self.cost_usd))
        violated, judged, cost_usd = arrays
        return Runs(
            name=self.name, settings=self.settings, days=days, violated=violated, judged=judged,
            cost_usd=cost_usd,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio, 1 where both are equal, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Incomparable:
    """Why there is no ratio."""

    reason: str


Comparison = Ratio | Incomparable


@dataclass(frozen=True, slots=True)
class Points:
    """Settings as points, (draws, settings) each: violation rate and US dollars a day.

    A setting that judged nobody in a draw is no point there.
    """

    rate: Floats
    cost: Floats
    known: Flags


@dataclass(frozen=True, slots=True)
class Read:
    """What a frontier says at one place, (draws,), and where it says anything."""

    value: Floats
    known: Flags


class Draws:
    """Which days, and which seeds, each draw counts how often; the first row is all days once."""

    def __init__(self, days: tuple[str, ...], *, seed: int, draws: int = DRAWS) -> None:
        """Draw days; their order does not matter to what is drawn."""
        self.days: Final = tuple(sorted(days))
        rng = np.random.default_rng([seed, 0])
        count = len(self.days)
        drawn = rng.multinomial(count, np.full(count, 1 / count), draws)
        self._days: Final = np.vstack([np.ones(count), drawn])
        self._seed: Final = seed

    def points(self, runs: Runs) -> Points:
        """Return the settings of a controller in every draw."""
        runs = runs.on(self.days)
        seeds = self._seeds(len(runs.violated))
        violated, judged, cost = (
            np.einsum("bd,skd,bs->bk", self._days, numbers, seeds, optimize=True)
            for numbers in (runs.violated, runs.judged, runs.cost_usd)
        )
        known = judged > 0
        rate = np.divide(violated, judged, out=np.zeros_like(violated), where=known)
        return Points(rate, cost / seeds.sum(1)[:, None] / len(self.days), known)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One controller beside the rule and HPA on one class; ratios below 1 are in its favour."""

    name: str
    events: int
    days: int
    violations_at_equal_cost_vs_rule: Comparison
    cost_at_equal_service_vs_rule: Comparison
    avoidable_cost_vs_hpa: Comparison
    avoidable_cost_vs_rule: Comparison


def compare(
    one: Runs,
    *,
    rule: Runs,
    tuned: float,
    hpa: Runs,
    clairvoyant: Runs | None,
    seed: int,
    draws: int = DRAWS,
) -> Compared:
    """Compare a controller at the service, and at the cost, of the rule's tuned setting.

    Args:
        one: the controller.
        rule: the rule, at all its settings.
        tuned: that setting of the rule which its tuning chose.
        hpa: the autoscaler whose avoidable cost is beaten or not.
        clairvoyant: the bound from which on cost is avoidable, None where it is not known.
        seed: of the draws.
        draws: how many.

    Raises:
        ValueError: they ran on different days, or the rule not at its tuned setting.

    """
    if tuned not in rule.settings:
        raise ValueError(f"the rule did not run at its tuned setting {tuned}")
    place = rule.settings.index(tuned)
    sampled = Draws(rule.days, seed=seed, draws=draws)
    ours, rules, hpas = (sampled.points(runs) for runs in (one, rule, hpa))
    bound = None if clairvoyant is None else sampled.points(clairvoyant)
    rate = Read(rules.rate[:, place], rules.known[:, place])
    cost = Read(rules.cost[:, place], rules.known[:, place])
    cost_ours, cost_rule, cost_hpa = (cost_at(points, rate) for points in (ours, rules, hpas))
    events = round(float(rule.violated[:, place].sum() / len(rule.violated)))

    def ratio(above: Read, below: Read, who: str) -> Comparison:
        if events < FEWEST_EVENTS:
            return Incomparable(f"insufficient events: {events} violations of the rule")
        return _ratio(above, below, who, len(rule.days))

    def avoidable(other: Read, who: str) -> Comparison:
        if bound is None:
            return Incomparable("the clairvoyant cost is not known")
        least = cost_at(bound, rate)
        return ratio(_above(cost_ours, least), _above(other, least), f"{who}, clairvoyant")

    return Compared(
        name=one.name,
        events=events,
        days=len(rule.days),
        violations_at_equal_cost_vs_rule=ratio(
            rate_at(ours, cost), rate_at(rules, cost), f"{one.name}, {rule.name}"
        ),
        cost_at_equal_service_vs_rule=ratio(cost_ours, cost_rule, f"{one.name}, {rule.name}"),
        avoidable_cost_vs_hpa=avoidable(cost_hpa, f"{one.name}, {hpa.name}"),
        avoidable_cost_vs_rule=avoidable(cost_rule, f"{one.name}, {rule.name}"),
    )


def _above(cost: Read, least: Read) -> Read:
    return Read(cost.value - least.value, cost.known & least.known)


def _ratio(above: Read, below: Read, who: str, days: int) -> Comparison:
    """Return a ratio and its interval; row 0 is all days, the others are draws."""
    known = above.known & below.known
    if not known[0]:
        return Incomparable(f"no overlap of the frontiers of {who}")
    if below.value[0] <= 0:
        return Incomparable(f"nothing to divide by: {who}")
    if days < 2:
        return Incomparable("one day tells nothing about others")
    known &= below.value > 0
    ratios = np.divide(above.value, below.value, out=np.zeros(len(known)), where=known)
    low = _quantile(np.where(known, ratios, -np.inf)[1:], TAIL)
    high = _quantile(np.where(known, ratios, np.inf)[1:], 1 - TAIL)
    if not (np.isfinite(low) and np.isfinite(high)):
        share = 1 - float(known[1:].mean())
        return Incomparable(f"no overlap of the frontiers of {who} in {share:.0%} of the draws")
    return Ratio(float(ratios[0]), low, high)


def _quantile(numbers: Floats, level: float) -> float:
    """Return the order statistic at a level, the outer one of two: infinite numbers stay apart."""
    place = level * (len(numbers) - 1)
    return float(np.sort(numbers)[int(np.floor(place) if level < 0.5 else np.ceil(place))])
