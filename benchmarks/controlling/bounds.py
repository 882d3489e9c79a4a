"""The clairvoyant bound of a class's days, told as the runs of one more controller.

Rows are bound one by one and pooled at each rate so that they cost least together. The programme
knows whole spans of days; what of its cost belongs to which day, for the bootstrap, is read off the
nodes it pays for.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from benchmarks.controlling.clairvoyant import Clairvoyant, Frontier, pooled
from benchmarks.controlling.classes import LoadClass
from benchmarks.controlling.evaluate import Plan
from benchmarks.controlling.frontier import Runs
from benchmarks.controlling.gather import cells_of
from benchmarks.controlling.play import SLOTS, prices

from gpuloop.schemas.policy import Floats
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.pool_level.worlds import PoolWorlds

CLAIRVOYANT: Final = "clairvoyant"
RATES: Final = (0.25, 0.5, 1.0, 2.0)
"""Violation rates at which the bound is solved, over the tuned rule's."""


def worlds_of(plan: Plan) -> PoolWorlds:
    """Return the worlds of a plan at their beginning."""
    stage = plan.stage
    return build_pool_worlds(
        list(stage.configs),
        hours=stage.days * 24 + 1,
        traces=stage.traces,
        workload=list(stage.workloads),
        slots=SLOTS,
    )


def bound(
    plan: Plan,
    worlds: PoolWorlds,
    load: LoadClass,
    rule: Runs,
    tuned: float,
    tell: Callable[[str, float], None],
) -> Runs | None:
    """Return the bound of the days of a class around the tuned rule's violation rate.

    `worlds` are those of the plan at their beginning, and stay there. None where there is no such
    rate, or no bound at any.
    """
    place = rule.settings.index(tuned)
    usual = float(rule.violated[:, place].sum() / max(rule.judged[:, place].sum(), 1.0))
    if usual <= 0.0:
        return None
    rates = [min(1.0, usual * factor) for factor in RATES]
    on_demand = prices(plan.stage)
    chosen = cells_of(load, plan.classes)
    rows = [int(row) for row in np.flatnonzero(chosen.any(axis=1))]
    frontiers: list[Frontier] = []
    for done, row in enumerate(rows):
        tell(f"bounding {load} days of row {row}", done / len(rows))
        whole = Clairvoyant(worlds, row, days=chosen[row].tolist(), on_demand=on_demand[row])
        frontiers.append(whole.frontier(rates))
    costs = [pooled(frontiers, rate) for rate in rates]
    known = [place for place, cost in enumerate(costs) if cost is not None]
    if not known:
        return None
    spread = _by_day(plan, rows, frontiers, rule.days)
    judged = rule.judged[:1, place]
    return Runs(
        name=CLAIRVOYANT,
        settings=tuple(rates[one] for one in known),
        days=rule.days,
        violated=np.stack([judged[0] * rates[one] for one in known])[None],
        judged=np.repeat(judged, len(known), axis=0)[None],
        cost_usd=np.stack([spread * float(costs[one] or 0.0) for one in known])[None],
    )


def _by_day(
    plan: Plan, rows: Sequence[int], frontiers: Sequence[Frontier], days: tuple[str, ...]
) -> Floats:
    """Return the share of all rows' cost that falls on each named day."""
    found = dict.fromkeys(days, 0.0)
    for row, frontier in zip(rows, frontiers, strict=True):
        if not frontier.bounds:
            continue
        middle = frontier.bounds[len(frontier.bounds) // 2]
        for date, share in zip(plan.dates[row], middle.by_day, strict=True):
            if share > 0.0:
                found[date] += share * middle.cost_usd
    shares: Floats = np.array(list(found.values()))
    shares /= shares.sum()
    return shares
