"""From a folder of traces to the worlds of its scored days, and which class each day is of.

Scored days are lived through in stretches of a week, side by side; each begins with the jobs that
run in the trace at that moment, whoever is compared. Where a folder has too few days of a class for
the rule to let a hundred jobs wait, generated weeks stand in for all of them and are called
synthetic. How many days that takes is a number by class, fixed on seeds that are not scored.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from benchmarks.controlling.classes import CLASSES, LoadClass, class_of, days_by_pool
from benchmarks.controlling.play import Stage
from benchmarks.controlling.splits import Span, Split
from msgspec.structs import replace
from numpy.typing import NDArray

from gpuloop.reasoning.baselines.schedule import by_hour
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import PoolConfig, TwinConfig
from gpuloop.twin.demand import choose_pool
from gpuloop.twin.workload import DAY_US, Generator, Workload, build_workload, kept

Floats = NDArray[np.float64]

WEEK: Final = 7
FEWEST_DAYS: Final[Mapping[LoadClass, int]] = MappingProxyType(
    {"steady": 50, "cyclical": 50, "bursty": 5, "flash": 50}
)
"""Days of a class, of one pool each, below which a folder has too few of it.

On generated weeks of the seeds 700 to 702 the tuned rule let two jobs wait on a pool's day, on
bursty days of the tuning week 88: fewer days hold fewer than the hundred that a ratio takes.
"""
SYNTHETIC_DAYS: Final = 28
"""Generated days that stand in for a class, of each pool; by the same figures 150 wait on them."""
SYNTHETIC_SEED: Final = 900
"""The first of the generated weeks'; nothing was trained, tuned or fixed on any of their seeds."""
HEADROOM: Final = 1.25
"""A new fleet's ceiling over the most that its first days demanded at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Worlds to live through.

    Attributes:
        stage: the worlds.
        classes: (rows, days) the class that each pool's day is scored as, None where it is not.
        dates: (rows, days) what each is called.
        synthetic: classes whose days are generated.

    """

    stage: Stage
    classes: tuple[tuple[LoadClass | None, ...], ...]
    dates: tuple[tuple[str, ...], ...]
    synthetic: frozenset[LoadClass]

    @property
    def pools(self) -> tuple[str, ...]:
        """Return the pool that each row is, (rows,)."""
        return tuple(pool.name for config in self.stage.configs for pool in config.pools)


def plan(split: Split, config: TwinConfig, *, traces: Path | None, rule: RuleConfig) -> Plan:
    """Return the worlds of a folder's scored days, and generated weeks of the classes it lacks."""
    length = min(WEEK, max((span.days for span in split.test), default=WEEK))
    if split.bounds is not None:
        config = bounded(config, split.bounds, traces)
    weeks = [(span, _on(config, span, length, traces)) for span in _weeks(split.test, length)]
    real = [_classes(one, workload, span) for span, (one, workload) in weeks]
    found = Counter(load for world in real for row in world for load in row)
    lacking = [load for load in CLASSES if found[load] < FEWEST_DAYS[load]]
    real = [
        tuple(tuple(None if load in lacking else load for load in row) for row in world)
        for world in real
    ]
    weeks_each = range(ceil(SYNTHETIC_DAYS / length))
    synthetic = [(load, week) for load in lacking for week in weeks_each]
    generated = [_generated(config, load, week) for load, week in synthetic]
    made = [
        tuple(
            tuple(load if one == load else None for one in row)
            for row in _classes(one, workload, Span(one.start_us, length), length)
        )
        for (load, _), (one, workload) in zip(synthetic, generated, strict=True)
    ]
    worlds = [world for _, world in weeks] + generated
    named = [""] * len(weeks) + [f"{load} {week + 1}, " for load, week in synthetic]
    return Plan(
        stage=Stage(
            configs=[one for one, _ in worlds],
            workloads=[workload for _, workload in worlds],
            traces=traces,
            days=length,
            rule=rule,
        ),
        classes=tuple(row for world in (*real, *made) for row in world),
        dates=tuple(
            tuple(f"{name}{date}" for date in Span(one.start_us, length).dates)
            for name, (one, _) in zip(named, worlds, strict=True)
            for _ in one.pools
        ),
        synthetic=frozenset(lacking),
    )


def only(plan: Plan, load: LoadClass) -> Plan:
    """Return the worlds of a plan that have days of a class; no other class is scored in them."""
    pools = len(plan.pools) // len(plan.stage.configs)
    kept = [
        world
        for world in range(len(plan.stage.configs))
        if any(load in row for row in plan.classes[world * pools : (world + 1) * pools])
    ]
    rows = [world * pools + pool for world in kept for pool in range(pools)]
    stage = dataclasses.replace(
        plan.stage,
        configs=[plan.stage.configs[world] for world in kept],
        workloads=[plan.stage.workloads[world] for world in kept],
    )
    classes = [tuple(one if one == load else None for one in plan.classes[row]) for row in rows]
    return Plan(
        stage=stage,
        classes=tuple(classes),
        dates=tuple(plan.dates[row] for row in rows),
        synthetic=plan.synthetic & {load},
    )


def reclaimed(config: TwinConfig, factor: float) -> TwinConfig:
    """Return a fleet whose spot nodes are taken back so many times as often."""
    return replace(
        config,
        pools=tuple(
            replace(pool, spot_reclaims_per_node_hour=factor * pool.spot_reclaims_per_node_hour)
            for pool in config.pools
        ),
    )


def _on(
    config: TwinConfig, span: Span, length: int, traces: Path | None
) -> tuple[TwinConfig, Workload]:
    one = replace(config, start_us=span.end_us - length * DAY_US)
    return one, philly(one, traces)


def philly(config: TwinConfig, traces: Path | None) -> Workload:
    """Return a folder's jobs for a world."""
    return build_workload(
        traces, "philly", start_us=config.start_us, seed=config.seed, shape=config.shape
    )


def _generated(config: TwinConfig, load: LoadClass, week: int) -> tuple[TwinConfig, Workload]:
    seed = SYNTHETIC_SEED + CLASSES.index(load) + len(CLASSES) * week
    return replace(config, seed=seed, shape=load), Generator(load, seed, config.start_us)


def _classes(
    config: TwinConfig, workload: Workload, scored: Span, days: int | None = None
) -> tuple[tuple[LoadClass | None, ...], ...]:
    """Return the class of each pool's days from the world's start to the end of what is scored."""
    days = days or (scored.end_us - config.start_us) // DAY_US
    told = days_by_pool(workload, config, first_us=config.start_us, days=days)
    lead = (scored.first_us - config.start_us) // DAY_US
    return tuple(
        tuple(
            class_of(day) if column >= lead else None for column, day in enumerate(told[pool.name])
        )
        for pool in config.pools
    )


def _weeks(spans: Sequence[Span], length: int) -> list[Span]:
    """Return spans in stretches of at most `length` days, the first of each the shorter one.

    A shorter one is led in by days before it, so that all stretches are of one length.
    """
    found = []
    for span in spans:
        for end_us in sorted(range(span.end_us, span.first_us, -length * DAY_US)):
            first_us = max(span.first_us, end_us - length * DAY_US)
            found.append(Span(first_us, (end_us - first_us) // DAY_US))
    return found


def bounded(config: TwinConfig, bounds: Span, traces: Path | None) -> TwinConfig:
    """Return a fleet for jobs that nobody has seen, as large as its first days call for."""
    demand = demanded(config, philly(replace(config, start_us=bounds.first_us), traces), bounds)
    return replace(config, pools=tuple(_sized(pool, demand[pool.name]) for pool in config.pools))


def _sized(pool: PoolConfig, gpus: Floats) -> PoolConfig:
    """Return a pool that holds what was demanded of it, in the proportions it had."""
    most = max(2, ceil(HEADROOM * float(gpus.max()) / pool.gpus_per_node))
    usual = min(most, max(1, ceil(float(gpus.mean()) / pool.gpus_per_node)))
    spot = round(pool.spot_nodes / max(1, pool.on_demand_nodes + pool.spot_nodes) * usual)
    return replace(
        pool,
        nodes_min=min(most, max(1, round(pool.nodes_min / pool.nodes_max * most))),
        nodes_max=most,
        on_demand_nodes=usual - spot,
        spot_nodes=spot,
    )


def demanded(config: TwinConfig, workload: Workload, span: Span) -> dict[str, Floats]:
    """Return GPUs at work in each hour of a span, by pool, if nothing ever waited."""
    found = {pool.name: np.zeros(span.days * 24) for pool in config.pools}
    hours = range(span.first_us // HOUR_US, span.end_us // HOUR_US)
    arriving = [job for hour in hours for job in workload.arrivals(hour)]
    jobs = (*workload.running_at(span.first_us), *arriving)
    for job in kept(jobs, config.arrival_share, config.seed):
        since_us = max(job.submitted_us - span.first_us, 0)
        begins, ends = since_us // HOUR_US, ceil((since_us + job.work_us) / HOUR_US)
        found[choose_pool(config.seed, job, config.pools).name][begins:ends] += job.gpus
    return found


def scheduled(
    config: TwinConfig, traces: Path | None, span: Span
) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Return what a schedule is fitted to: what each hour of the week demanded of each pool."""
    workload = philly(replace(config, start_us=span.first_us), traces)
    hours = span.first_us + np.arange(span.days * 24) * HOUR_US
    return {pool: by_hour(hours, gpus) for pool, gpus in demanded(config, workload, span).items()}
