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

Frontiers = dict[tuple[LoadClass, int], Frontier]
"""What a row costs at least on its days of a class."""


def bounds_apart(
    cast: Cast, rules: Mapping[LoadClass, Runs], tuned: float, *, processes: int = PROCESSES
) -> dict[LoadClass, Runs | None]:
    """Return the bound of each class; `rules` are the rule's runs on each, `tuned` its setting.

    Rows are shared out among processes that end with this one.
    """
    if processes == 1:
        found = _share(cast, rules, tuned, 0, 1)
    else:
        with workers(processes) as executor:
            shares = [
                executor.submit(_share, cast, rules, tuned, share, processes)
                for share in range(processes)
            ]
            found = {at: frontier for one in shares for at, frontier in one.result().items()}
    plan = cast.plan()
    return {load: bound(plan, load, rule, tuned, found) for load, rule in rules.items()}


def _share(
    cast: Cast, rules: Mapping[LoadClass, Runs], tuned: float, share: int, processes: int
) -> Frontiers:
    """Bind every so manyth row, those of most jobs first; the first share speaks for all."""
    plan = cast.plan()

    def tell(what: str, done: float) -> None:
        if share == 0:
            say(what, done)

    return frontiers(plan, worlds_of(plan), rules, tuned, tell, share=share, shares=processes)


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


def frontiers(
    plan: Plan,
    worlds: PoolWorlds,
    rules: Mapping[LoadClass, Runs],
    tuned: float,
    tell: Callable[[str, float], None],
    *,
    share: int = 0,
    shares: int = 1,
) -> Frontiers:
    """Return what rows cost at least on days of a class, around the tuned rule's violation rates.

    `worlds` are those of the plan at their beginning, and stay there. Rows are taken in the order
    of how many jobs they have, as time goes with that, so that shares of them take equally long.
    """
    jobs = worlds.rules.last - worlds.rules.first
    asked = [
        (load, row)
        for load in rules
        for row in np.flatnonzero(cells_of(load, plan.classes).any(axis=1)).tolist()
    ]
    asked.sort(key=lambda at: -jobs[at[1]])
    on_demand = prices(plan.stage)
    found: Frontiers = {}
    for load, row in asked[share::shares]:
        done = len(found) * shares / len(asked)
        tell(f"bounding {load} days of {plan.pools[row]}, row {row}", done)
        days = [one == load for one in plan.classes[row]]
        whole = Clairvoyant(worlds, row, days=days, on_demand=on_demand[row])
        usual = _usual(rules[load], tuned, plan.pools[row])
        found[load, row] = whole.frontier(_rates(usual, SOLVED))
    return found


def bound(plan: Plan, load: LoadClass, rule: Runs, tuned: float, solved: Frontiers) -> Runs | None:
    """Return the bound of the days of a class from what its rows cost at least.

    The settings are `RATES`; where a pool has no bound, nothing of it is judged. None: no pool has
    one.
    """
    place = rule.settings.index(tuned)
    shape = (1, len(RATES), len(rule.pools), len(rule.days))
    violated, judged, cost_usd = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for column, pool in enumerate(rule.pools):
        rows = [row for one, row in sorted(solved) if one == load and plan.pools[row] == pool]
        mine = [solved[load, row] for row in rows]
        jobs = rule.judged[0, place, column]
        spread = _by_day(plan, rows, mine, rule.days)
        for setting, rate in enumerate(_rates(_usual(rule, tuned, pool), RATES, apart=True)):
            cost = pooled(mine, rate)
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


def _usual(rule: Runs, tuned: float, pool: str) -> float:
    """Return the share of a pool's jobs that violated under the tuned rule."""
    place, column = rule.settings.index(tuned), rule.pools.index(pool)
    judged = float(rule.judged[0, place, column].sum())
    return float(rule.violated[0, place, column].sum()) / max(judged, 1.0)


def _rates(usual: float, factors: Sequence[float], *, apart: bool = False) -> list[float]:
    """Return rates of at most 1 around the usual one; equal ones once, unless told apart."""
    rates = [min(1.0, usual * factor) for factor in factors]
    return rates if apart else sorted(set(rates))


def _by_day(
    plan: Plan, rows: Sequence[int], solved: Sequence[Frontier], days: tuple[str, ...]
) -> Floats:
    """Return the share of all rows' cost that falls on each named day."""
    found = dict.fromkeys(days, 0.0)
    for row, frontier in zip(rows, solved, strict=True):
        if not frontier.bounds:
            continue
        middle = frontier.bounds[len(frontier.bounds) // 2]
        for date, share in zip(plan.dates[row], middle.by_day, strict=True):
            if share > 0.0:
                found[date] += share * middle.cost_usd
    shares: Floats = np.array(list(found.values()))
    total = float(shares.sum())
    return shares / total if total > 0.0 else shares
