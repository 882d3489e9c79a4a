"""What a decider has read of its pools, and the facts that their features are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.loop.decide.features import READINGS, SOON_US, Facts
from gpuloop.loop.decide.memory import PoolMemory
from gpuloop.schemas.messages import Offer, PoolState
from gpuloop.schemas.policy import ON_DEMAND, PRICE, SPOT
from gpuloop.schemas.units import MINUTE_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """The moment of observation and how old its main inputs are then."""

    now_us: int
    tick_us: int
    demand_us: int
    capacity_us: int
    forecast_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One pool, read: scalars for the batch and for its facts."""

    pool: PoolState
    ready: tuple[float, float]
    ordered: float
    arriving: float
    oldest_wait_us: int
    present: list[float]
    low: list[float]
    high: list[float]
    nodes_min: float
    nodes_max: float
    queued: float
    peak: float
    forecast: list[list[float]]
    trusted: bool
    at_risk: float
    node_cost: tuple[float, float]
    market: float
    reference: float
    interruptions: float
    budget: float
    utilisation_target: float
    fresh: tuple[bool, bool, bool, bool]
    offers: tuple[Offer | None, Offer | None]
    wait_target_us: int
    ages: Ages


def facts_of(rows: Sequence[Row], memories: Sequence[PoolMemory]) -> Facts:
    """Return the facts of some pools, in their order."""
    found = [_facts(row, memory) for row, memory in zip(rows, memories, strict=True)]
    columns: dict[str, NDArray[Any]] = {}
    for name in Facts.__dataclass_fields__:
        column = np.array([one[name] for one in found], bool if name in FLAGS else float)
        columns[name] = column.reshape(len(found), *SHAPES.get(name, ()))
    return Facts(**columns)


Fact = float | Sequence[float] | Sequence[Sequence[float]]

FLAGS: Final = frozenset({"whole", "forecast_trusted", "offers_known"})
SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "ready": (2,),
    "asked": (2,),
    "node_cost": (2,),
    "readings": (len(READINGS), 3),
    "forecast_gpus": (3, 3),
}
"""Of facts that are more than one number of a pool."""


def _facts(row: Row, memory: PoolMemory) -> dict[str, Fact]:
    return {
        **_times(row),
        **_demand(row, memory),
        **_machines(row),
        "asked": [row.present[ON_DEMAND], row.present[SPOT]],
        "forecast_gpus": row.forecast,
        "forecast_trusted": row.trusted,
        "quote": row.present[PRICE],
        "node_cost": row.node_cost,
        "market": row.market,
        "interruptions": row.interruptions,
    }


def _times(row: Row) -> dict[str, Fact]:
    ages, pool = row.ages, row.pool
    fetched = [ages.now_us - offer.fetched_at_us for offer in row.offers if offer is not None]
    heard_us = max((service.event_time_us for service in pool.services), default=pool.tick_us)
    return {
        "now_us": ages.now_us,
        "tick_age_us": ages.tick_us,
        "demand_age_us": ages.demand_us,
        "capacity_age_us": ages.capacity_us,
        "forecast_age_us": ages.forecast_us,
        "offer_age_us": max(0, max(fetched, default=ages.now_us)),
        "service_age_us": max(ages.tick_us, pool.tick_us + ages.tick_us - heard_us),
        "offers_known": bool(fetched),
        "wait_target_us": row.wait_target_us,
    }


def _demand(row: Row, memory: PoolMemory) -> dict[str, Fact]:
    pool, now_us = row.pool, row.ages.now_us
    first, last = memory.samples[0], memory.samples[-1]
    waited = sum(queue.jobs * now_us - queue.submitted_sum_us for queue in pool.queues)
    return {
        "whole": pool.shards_reported >= pool.shards_expected,
        "gpus_per_node": pool.gpus_per_node,
        "gpus_allocated": pool.gpus_allocated,
        "gpus_queued": row.queued,
        "jobs_queued": sum(queue.jobs for queue in pool.queues),
        "waited_us": waited,
        "oldest_wait_us": row.oldest_wait_us,
        "window_minutes": max(1.0, (last.tick_us - first.tick_us) / MINUTE_US),
        "arrived_gpus": last.arrived_gpus - first.arrived_gpus,
        "arrived_jobs": last.arrived_jobs - first.arrived_jobs,
        "refused_jobs": last.refused_jobs - first.refused_jobs,
    }


def _machines(row: Row) -> dict[str, Fact]:
    pool, now_us = row.pool, row.ages.now_us
    gpus = sum(service.gpus for service in pool.services)
    busy = sum(service.gpus * service.utilisation for service in pool.services)
    readings = []
    for name in READINGS:
        one = pool.features.get(name)
        if one is None or one.value is None:
            readings.append([np.nan, 0.0, 0.0])
        else:
            readings.append([one.value, one.age_us, one.quality])
    qualities = [feature.quality for feature in pool.features.values()]
    shards = pool.shards_reported / max(1, pool.shards_expected)
    return {
        "nodes_max": row.nodes_max,
        "ready": row.ready,
        "ordered": row.ordered,
        "soon": sum(
            arrival <= now_us + SOON_US
            for tranche in pool.tranches
            for arrival in tranche.pending_arrival_us
        ),
        "service_utilisation": busy / max(1, gpus),
        "first_token_p95_us": max(
            (service.first_token_p95_us for service in pool.services), default=0
        ),
        "readings": readings,
        "telemetry_quality": min(1.0, sum(qualities) / max(1, len(qualities)) * shards),
    }
