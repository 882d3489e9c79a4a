"""How controllers compare at equal service and at equal cost, pool by pool, with intervals.

Pools differ: one has a thousand small jobs a day, another forty wide ones that cost ten times as
much. Service is therefore equal only where it is equal in every pool. Each pool of a controller has
a frontier of its own (`frontier`); it is read at what the rule's tuned setting came to in that pool
and what is read is summed over the pools before any ratio is taken:

- cost at equal service: costs at each pool's own violation rate of the tuned rule;
- violations at equal cost: rates at each pool's own cost of the tuned rule, times the jobs that
  were judged under it there;
- avoidable cost: costs at equal service less what the clairvoyant bound has to pay for it in each
  pool.

A pool in which the tuned rule let nobody wait asks the same of the others: equal service there is
the cheapest setting that let nobody wait either. One of which nothing was judged (in a draw: none
of its days) counts for nothing. Where the frontier of any other pool says nothing there is no
ratio: a sum without that pool would hide where a controller fails. Whether there are violations
enough is a matter of all pools together, as only their sum is compared.

Intervals come from a bootstrap over days that draws the same days for all pools, controllers and
settings, and for one that was trained with several seeds its seeds as well. Where a comparison is
not possible in a draw the draw could have come out anywhere: it counts as the lowest for the lower
bound and as the highest for the upper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from benchmarks.controlling.frontier import (
    DRAWS,
    Draws,
    Flags,
    Floats,
    Points,
    Read,
    Runs,
    cost_at,
    rate_at,
)

FEWEST_EVENTS: Final = 100
"""Violations of the tuned rule, in all pools, below which a ratio would say nothing."""
TAIL: Final = 0.025


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
        ValueError: they ran on different days or pools, or the rule not at its tuned setting.

    """
    if tuned not in rule.settings:
        raise ValueError(f"the rule did not run at its tuned setting {tuned}")
    for other in (one, hpa, clairvoyant):
        if other is not None and other.pools != rule.pools:
            raise ValueError(f"{other.name} ran in other pools")
    place = rule.settings.index(tuned)
    sampled = Draws(rule.days, seed=seed, draws=draws)
    equal = _Equal(rule.pools, sampled.points(rule), place)
    ours, rules, hpas = (sampled.points(runs) for runs in (one, rule, hpa))
    bound = None if clairvoyant is None else sampled.points(clairvoyant)
    events = round(float(rule.violated[:, place].sum() / len(rule.violated)))

    def ratio(above: "_Sum", below: "_Sum", who: str) -> Comparison:
        if events < FEWEST_EVENTS:
            return Incomparable(f"insufficient events: {events} violations of the rule")
        return _ratio(above, below, who, len(rule.days))

    def avoidable(other: tuple[Points, ...], who: str) -> Comparison:
        if bound is None:
            return Incomparable("the clairvoyant cost is not known")
        return ratio(
            equal.avoidable(ours, bound), equal.avoidable(other, bound), f"{who}, clairvoyant"
        )

    pair = f"{one.name}, {rule.name}"
    return Compared(
        name=one.name,
        events=events,
        days=len(rule.days),
        violations_at_equal_cost_vs_rule=ratio(
            equal.violations(ours), equal.violations(rules), pair
        ),
        cost_at_equal_service_vs_rule=ratio(equal.cost(ours), equal.cost(rules), pair),
        avoidable_cost_vs_hpa=avoidable(hpas, f"{one.name}, {hpa.name}"),
        avoidable_cost_vs_rule=avoidable(rules, pair),
    )


@dataclass(frozen=True, slots=True)
class _Sum:
    """What all pools come to, (draws,), where every one of them is known, and in which it is not.

    `unknown` are the pools whose frontiers say nothing over all days.
    """

    value: Floats
    known: Flags
    unknown: tuple[str, ...]


class _Equal:
    """Where everyone is read: at what the rule's tuned setting came to in each pool."""

    def __init__(self, pools: Sequence[str], rule: tuple[Points, ...], tuned: int) -> None:
        self._pools = pools
        self._judged = [points.judged[:, tuned] for points in rule]
        self._rates = [Read(p.rate[:, tuned], p.known[:, tuned]) for p in rule]
        self._costs = [Read(p.cost[:, tuned], p.known[:, tuned]) for p in rule]

    def cost(self, points: tuple[Points, ...]) -> _Sum:
        """Return US dollars a day at equal service."""
        return self._sum(list(map(cost_at, points, self._rates)))

    def violations(self, points: tuple[Points, ...]) -> _Sum:
        """Return violations at equal cost, of the jobs that the tuned rule was judged by."""
        rates = map(rate_at, points, self._costs)
        return self._sum(
            [
                Read(rate.value * judged, rate.known)
                for rate, judged in zip(rates, self._judged, strict=True)
            ]
        )

    def avoidable(self, points: tuple[Points, ...], bound: tuple[Points, ...]) -> _Sum:
        """Return US dollars a day at equal service beyond what they have to be."""
        pairs = zip(
            map(cost_at, points, self._rates), map(cost_at, bound, self._rates), strict=True
        )
        return self._sum(
            [Read(cost.value - least.value, cost.known & least.known) for cost, least in pairs]
        )

    def _sum(self, reads: list[Read]) -> _Sum:
        known = [
            one.known | (judged == 0.0) for one, judged in zip(reads, self._judged, strict=True)
        ]
        value = np.sum([one.value for one in reads], axis=0)
        unknown = [pool for pool, one in zip(self._pools, known, strict=True) if not one[0]]
        return _Sum(value, np.logical_and.reduce(known), tuple(unknown))


def _ratio(above: _Sum, below: _Sum, who: str, days: int) -> Comparison:
    """Return a ratio and its interval; row 0 is all days, the others are draws."""
    known = above.known & below.known
    if not known[0]:
        where = ", ".join(dict.fromkeys((*above.unknown, *below.unknown)))
        return Incomparable(f"no overlap of the frontiers of {who} in {where}")
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
