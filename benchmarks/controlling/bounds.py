"""The clairvoyant bound of a class's days, told as the runs of one more controller.

Rows are bound one by one and those of a pool are pooled at each rate so that they cost least
together; no pool pays with its service for another's. The programme knows whole spans of days; what
of its cost belongs to which day, for the bootstrap, is read off the nodes it pays for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from benchmarks.controlling.apart import PROCESSES, say, workers
from benchmarks.controlling.clairvoyant import Clairvoyant, Frontier, pooled
from benchmarks.controlling.classes import LoadClass
from benchmarks.controlling.entrants import Cast
from benchmarks.controlling.evaluate import Plan
from benchmarks.controlling.frontier import Runs
from benchmarks.controlling.gather import cells_of
from benchmarks.controlling.play import SLOTS, prices

from gpuloop.schemas.policy import Floats
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.pool_level.worlds import PoolWorlds

CLAIRVOYANT: Final = "clairvoyant"
SOLVED: Final = (0.25, 0.5, 1.0, 2.0)
"""Violation rates of a pool at which the bound is solved, over the tuned rule's in that pool."""
RATES: Final = (0.0, *SOLVED, 4.0)
"""Those at which it is told. Beyond what was solved tangents bound it, as cost is convex."""


def bounds_apart(
    cast: Cast, rules: Mapping[LoadClass, Runs], tuned: float, *, processes: int = PROCESSES
) -> dict[LoadClass, Runs | None]:
    """Return the bound of each class, several at once; `rules` are the rule's runs on each.

    The processes end with this one.
    """
    if processes == 1:
        return {load: _bound(cast, load, rule, tuned) for load, rule in rules.items()}
    with workers(processes) as executor:
        found = {
            load: executor.submit(_bound, cast, load, rule, tuned) for load, rule in rules.items()
        }
        return {load: one.result() for load, one in found.items()}


def _bound(cast: Cast, load: LoadClass, rule: Runs, tuned: float) -> Runs | None:
    plan = cast.plan()
    return bound(plan, worlds_of(plan), load, rule, tuned, say)


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
    """Return the bound of the days of a class around the tuned rule's violation rates.

    `worlds` are those of the plan at their beginning, and stay there. The settings are `RATES`;
    where a pool has no bound, nothing of it is judged. None: no pool has one.
    """
    place = rule.settings.index(tuned)
    on_demand = prices(plan.stage)
    chosen = cells_of(load, plan.classes)
    shape = (1, len(RATES), len(rule.pools), len(rule.days))
    violated, judged, cost_usd = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for column, pool in enumerate(rule.pools):
        mine = np.array([name == pool for name in plan.pools]) & chosen.any(axis=1)
        rows = [int(row) for row in np.flatnonzero(mine)]
        jobs = rule.judged[0, place, column]
        usual = float(rule.violated[0, place, column].sum() / max(jobs.sum(), 1.0))
        frontiers: list[Frontier] = []
        for done, row in enumerate(rows):
            tell(f"bounding {load} days of {pool}, row {row}", done / len(rows))
            whole = Clairvoyant(worlds, row, days=chosen[row].tolist(), on_demand=on_demand[row])
            frontiers.append(whole.frontier(_rates(usual, SOLVED)))
        spread = _by_day(plan, rows, frontiers, rule.days)
        for setting, rate in enumerate(_rates(usual, RATES, apart=True)):
            cost = pooled(frontiers, rate)
            if cost is not None:
                cost_usd[0, setting, column] = spread * cost
                violated[0, setting, column] = jobs * rate
                judged[0, setting, column] = jobs
    if not judged.any():
        return None
    return Runs(
        name=CLAIRVOYANT,
        settings=RATES,
        pools=rule.pools,
        days=rule.days,
        violated=violated,
        judged=judged,
        cost_usd=cost_usd,
    )


def _rates(usual: float, factors: Sequence[float], *, apart: bool = False) -> list[float]:
    """Return rates of at most 1 around the usual one; equal ones once, unless told apart."""
    rates = [min(1.0, usual * factor) for factor in factors]
    return rates if apart else sorted(set(rates))


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
    total = float(shares.sum())
    return shares / total if total > 0.0 else shares
