"""The features of one pool: ratios with an age and a quality, by name.

They are what policies see and nothing else: what may be acted on is settled in the batch. The
meaning and order of these features is `FEATURE_VERSION`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, log1p, pi, sin
from typing import Final

import numpy as np

from gpuloop.actuators.envelope import EnvelopeConfig, EnvelopeState, migration_budget, stop_budget
from gpuloop.loop.decide.memory import PoolMemory
from gpuloop.schemas.messages import Offer, PoolState
from gpuloop.schemas.policy import ON_DEMAND, PRICE, SPOT, Floats, PoolBatch
from gpuloop.schemas.units import HOUR_US, MINUTE_US

CAPACITY_AGE_MAX_US: Final = 5 * MINUTE_US
LATENCY_TARGET_US: Final = 2_000_000
SOON_US: Final = 5 * MINUTE_US
DAY_US: Final = 24 * HOUR_US
WEEK_US: Final = 7 * DAY_US
MOST: Final = 4.0
"""Where open-ended ratios end."""

Value = tuple[float, int, float]
"""A feature's value, age in microseconds and quality."""


@dataclass(slots=True, kw_only=True)
class Row:
    """One pool, read: scalars for the batch and the features that follow from them."""

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
    features: dict[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """The moment of observation and how old its main inputs are then."""

    now_us: int
    tick_us: int
    demand_us: int
    capacity_us: int
    forecast_us: int


def pool_features(
    row: Row,
    memory: PoolMemory,
    offers: Sequence[Offer | None],
    ages: Ages,
    wait_target_us: int,
) -> None:
    """Fill in all features of a pool but those that follow from the rule and the guards."""
    _load(row, memory, ages.demand_us, wait_target_us, ages.now_us)
    _capacity(row, ages.capacity_us, ages.now_us)
    _hardware(row, ages.tick_us)
    _forecast(row, ages.forecast_us)
    _money(row, offers, ages.capacity_us, ages.now_us)
    _clock(row, ages.now_us)


def guard_features(
    rows: Sequence[Row],
    memories: Sequence[PoolMemory],
    batch: PoolBatch,
    wish: Floats,
    envelope: EnvelopeState,
    config: EnvelopeConfig,
) -> None:
    """Fill in the rule's wish, the last execution and what the guards have left."""
    limit = np.where(batch.delta > 0.0, batch.delta, 1.0)
    steps = np.clip((wish - batch.present) / limit, -MOST, MOST)
    since_growth = batch.tick_us - envelope.last_growth_us
    cooling = np.clip(1.0 - since_growth / max(1, config.shrink_after_growth_us), 0.0, 1.0)
    stops = stop_budget(batch.present[:, [ON_DEMAND, SPOT]].sum(axis=1), config)
    stops_left = np.clip(1.0 - envelope.stopped / stops, 0.0, 1.0)
    moves_left = np.clip(
        1.0 - envelope.migrated / migration_budget(batch.running_jobs, config), 0.0, 1.0
    )
    for index, (row, memory) in enumerate(zip(rows, memories, strict=True)):
        put = row.features.__setitem__
        put("rule_on_demand_step", (float(steps[index, ON_DEMAND]), 0, 1.0))
        put("rule_spot_step", (float(steps[index, SPOT]), 0, 1.0))
        put("last_on_demand_step", (memory.last_steps[ON_DEMAND], 0, 1.0))
        put("last_spot_step", (memory.last_steps[SPOT], 0, 1.0))
        put("cooldown_ratio", (float(cooling[index]), 0, 1.0))
        put("flap_budget_ratio", (float(stops_left[index]), 0, 1.0))
        put("migration_budget_ratio", (float(moves_left[index]), 0, 1.0))


def _load(row: Row, memory: PoolMemory, age: int, wait_target_us: int, now_us: int) -> None:
    pool, queues = row.pool, row.pool.queues
    gpus = max(1.0, sum(row.ready) * pool.gpus_per_node)
    jobs = sum(queue.jobs for queue in queues)
    waited = sum(queue.jobs * now_us - queue.submitted_sum_us for queue in queues)
    first, last = memory.samples[0], memory.samples[-1]
    minutes = max(1.0, (last.tick_us - first.tick_us) / MINUTE_US)
    arrived, refused = (
        last.arrived_jobs - first.arrived_jobs,
        last.refused_jobs - first.refused_jobs,
    )
    per_window = (last.arrived_gpus - first.arrived_gpus) * 15.0 / minutes
    whole = 1.0 if pool.shards_reported >= pool.shards_expected else 0.5
    put = row.features.__setitem__
    put("allocated_ratio", (within(pool.gpus_allocated / gpus), age, whole))
    put("queued_gpus_ratio", (within(row.queued / gpus), age, whole))
    put("queued_jobs_log", (within(log1p(jobs) / 5.0), age, whole))
    put("oldest_wait_ratio", (within(row.oldest_wait_us / wait_target_us), age, whole))
    put("mean_wait_ratio", (within(waited / max(1, jobs) / wait_target_us), age, whole))
    put("arrival_rate_ratio", (within(per_window / gpus), age, whole))
    put("refusal_ratio", (max(0.0, refused / max(1, arrived + refused)), age, whole))


def _capacity(row: Row, age: int, now_us: int) -> None:
    most = max(1.0, row.nodes_max)
    soon = sum(
        arrival <= now_us + SOON_US
        for tranche in row.pool.tranches
        for arrival in tranche.pending_arrival_us
    )
    put = row.features.__setitem__
    put("on_demand_ratio", (within(row.ready[0] / most), age, 1.0))
    put("spot_ratio", (within(row.ready[1] / most), age, 1.0))
    put("pending_ratio", (within(row.ordered / most), age, 1.0))
    put("pending_soon_ratio", (within(soon / most), age, 1.0))
    put("capacity_age_ratio", (within(age / CAPACITY_AGE_MAX_US), 0, 1.0))


def _hardware(row: Row, age: int) -> None:
    pool = row.pool
    gpus = sum(service.gpus for service in pool.services)
    busy = sum(service.gpus * service.utilisation for service in pool.services) / max(1, gpus)
    slowest = max((service.first_token_p95_us for service in pool.services), default=0)
    heard_us = max((service.event_time_us for service in pool.services), default=pool.tick_us)
    service_age = max(age, pool.tick_us + age - heard_us)
    put = row.features.__setitem__
    put("service_utilisation", (busy, service_age, 1.0))
    put("service_latency_ratio", (within(slowest / LATENCY_TARGET_US), service_age, 1.0))
    for name in ("utilisation", "throttled"):
        feature = pool.features.get(name)
        if feature is None or feature.value is None:
            put(name, (0.0, age, 0.0))
        else:
            put(name, (within(feature.value), feature.age_us + age, feature.quality))
    qualities = [feature.quality for feature in pool.features.values()]
    shards = pool.shards_reported / max(1, pool.shards_expected)
    mean = sum(qualities) / max(1, len(qualities))
    put("telemetry_quality", (min(1.0, mean * shards), age, 1.0))


def _forecast(row: Row, age: int) -> None:
    gpus = max(1.0, (row.present[ON_DEMAND] + row.present[SPOT]) * row.pool.gpus_per_node)
    quality = 1.0 if row.trusted else 0.0
    near, far = row.forecast[0], row.forecast[2]
    put = row.features.__setitem__
    put("forecast_15m_ratio", (within(near[1] / gpus), age, quality))
    put("forecast_60m_ratio", (within(far[1] / gpus), age, quality))
    put("forecast_spread_ratio", (within((far[2] - far[0]) / gpus), age, quality))


def _money(row: Row, offers: Sequence[Offer | None], capacity_age: int, now_us: int) -> None:
    per_node = max(1, row.pool.gpus_per_node)
    quote = row.present[PRICE]
    nodes = row.present[ON_DEMAND] + row.present[SPOT]
    spent = sum(
        count * cost
        for count, cost in zip(row.present[:2], row.node_cost, strict=True)
        if count and cost < np.inf
    )
    cost = spent / nodes / per_node if nodes else 0.0
    ages = [now_us - offer.fetched_at_us for offer in offers if offer is not None]
    age, known = max(0, max(ages, default=now_us)), 1.0 if ages else 0.0
    on_demand, spot = row.node_cost
    both = on_demand < np.inf and spot < np.inf and on_demand > 0.0
    put = row.features.__setitem__
    put("price_ratio", (within(quote / cost) if cost else 1.0, capacity_age, float(cost > 0.0)))
    put("spot_discount", (1.0 - spot / on_demand if both else 0.0, age, known if both else 0.0))
    priced = row.market > 0.0  # An unknown price is NaN, whatever other offers there are.
    put("market_ratio", (within(quote / row.market) if priced else 1.0, age, float(priced)))
    put("interruption_rate", (within(10.0 * row.interruptions), age, known))


def _clock(row: Row, now_us: int) -> None:
    put = row.features.__setitem__
    for name, period_us in (("day", DAY_US), ("week", WEEK_US)):
        angle = 2.0 * pi * (now_us % period_us) / period_us
        put(f"{name}_sin", (sin(angle), 0, 1.0))
        put(f"{name}_cos", (cos(angle), 0, 1.0))


def within(value: float) -> float:
    """Return an open-ended ratio within [0, MOST]."""
    return min(max(float(value), 0.0), MOST)
