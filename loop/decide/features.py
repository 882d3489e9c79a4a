"""The features of pools: ratios with an age and a quality, by arrays over pools.

They are what policies see and nothing else: what may be acted on is settled in the batch. The
meaning and order of these features is `FEATURE_VERSION`. What is known of pools comes as `Facts`,
out of a decider's memory or of simulated worlds, so that a feature means the same in both.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from gpuloop.actuators.envelope import EnvelopeConfig, EnvelopeState, migration_budget, stop_budget
from gpuloop.schemas.policy import (
    FEATURE_NAMES,
    ON_DEMAND,
    SPOT,
    Flags,
    Floats,
    Integers,
    PoolBatch,
)
from gpuloop.schemas.units import HOUR_US, MINUTE_US

CAPACITY_AGE_MAX_US: Final = 5 * MINUTE_US
LATENCY_TARGET_US: Final = 2_000_000
SOON_US: Final = 5 * MINUTE_US
WINDOW_MINUTES: Final = 15.0
DAY_US: Final = 24 * HOUR_US
WEEK_US: Final = 7 * DAY_US
MOST: Final = 4.0
"""Where open-ended ratios end."""

OLDEST_US: Final = 2.0**53
"""Where ages end: any older, and what is written down would not be what was meant."""

READINGS: Final = ("utilisation", "throttled")
"""What the hardware says that policies see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the features of n pools are made of; arrays are (n,) unless another shape is said.

    Times and ages are whole microseconds. Counts of arrivals are those within `window_minutes`.
    What is not known is NaN.
    """

    now_us: Floats
    tick_age_us: Floats
    demand_age_us: Floats
    capacity_age_us: Floats
    forecast_age_us: Floats
    offer_age_us: Floats
    service_age_us: Floats
    wait_target_us: Floats
    whole: Flags
    """Every shard has reported."""
    gpus_per_node: Floats
    gpus_allocated: Floats
    gpus_queued: Floats
    jobs_queued: Floats
    waited_us: Floats
    """How long all waiting jobs have waited together."""
    oldest_wait_us: Floats
    window_minutes: Floats
    arrived_gpus: Floats
    arrived_jobs: Floats
    refused_jobs: Floats
    nodes_max: Floats
    ready: Floats
    """(n, 2) nodes on demand and spot."""
    ordered: Floats
    soon: Floats
    """Nodes ordered and due within `SOON_US`."""
    service_utilisation: Floats
    first_token_p95_us: Floats
    readings: Floats
    """(n, 2, 3) value, age in microseconds and quality of `READINGS`."""
    telemetry_quality: Floats
    asked: Floats
    """(n, 2) nodes that were last asked for."""
    forecast_gpus: Floats
    """(n, 3, 3) as in `PoolBatch`."""
    forecast_trusted: Flags
    quote: Floats
    node_cost: Floats
    """(n, 2) US dollars per node-hour, infinite where not on offer."""
    offers_known: Flags
    market: Floats
    interruptions: Floats


class Feature(NamedTuple):
    """One feature of n pools."""

    value: Floats
    age_us: Floats
    quality: Floats


Features = dict[str, Feature]


class Table(NamedTuple):
    """All features, (n, features), in the order of `FEATURE_NAMES`."""

    observation: Floats
    ages_us: Integers
    quality: Floats


def pool_features(facts: Facts) -> Features:
    """Return all features but those that follow from the rule and the guards."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            **_load(facts),
            **_capacity(facts),
            **_hardware(facts),
            **_forecast(facts),
            **_money(facts),
            **_clock(facts),
        }


def guard_features(
    last_steps: Floats,
    batch: PoolBatch,
    wish: Floats,
    envelope: EnvelopeState,
    config: EnvelopeConfig,
) -> Features:
    """Return the rule's wish, the last execution (n, 4) and what the guards have left."""
    limit = np.where(batch.delta > 0.0, batch.delta, 1.0)
    steps = np.clip((wish - batch.present) / limit, -MOST, MOST)
    since_growth = batch.tick_us - envelope.last_growth_us
    cooling = np.clip(1.0 - since_growth / max(1, config.shrink_after_growth_us), 0.0, 1.0)
    stops = stop_budget(batch.present[:, [ON_DEMAND, SPOT]].sum(axis=1), config)
    moves = migration_budget(batch.running_jobs, config)
    found = {
        "rule_on_demand_step": steps[:, ON_DEMAND],
        "rule_spot_step": steps[:, SPOT],
        "last_on_demand_step": last_steps[:, ON_DEMAND],
        "last_spot_step": last_steps[:, SPOT],
        "cooldown_ratio": cooling,
        "flap_budget_ratio": np.clip(1.0 - envelope.stopped / stops, 0.0, 1.0),
        "migration_budget_ratio": np.clip(1.0 - envelope.migrated / moves, 0.0, 1.0),
    }
    return {name: _certain(value) for name, value in found.items()}


def table(features: Features) -> Table:
    """Return features as a table; what is no number is as good as not known."""
    columns = [features[name] for name in FEATURE_NAMES]
    values = np.stack([one.value for one in columns], axis=1)
    known = np.isfinite(values)
    ages = np.clip(np.stack([one.age_us for one in columns], axis=1), 0.0, OLDEST_US)
    return Table(
        observation=np.where(known, values, 0.0),
        ages_us=ages.astype(np.int64),
        quality=np.where(known, np.stack([one.quality for one in columns], axis=1), 0.0),
    )


def _load(facts: Facts) -> Features:
    gpus = np.maximum(1.0, facts.ready.sum(axis=1) * facts.gpus_per_node)
    jobs = facts.jobs_queued
    per_window = facts.arrived_gpus * WINDOW_MINUTES / facts.window_minutes
    asked = np.maximum(1.0, facts.arrived_jobs + facts.refused_jobs)
    found = {
        "allocated_ratio": _within(facts.gpus_allocated / gpus),
        "queued_gpus_ratio": _within(facts.gpus_queued / gpus),
        "queued_jobs_log": _within(np.log1p(jobs) / 5.0),
        "oldest_wait_ratio": _within(facts.oldest_wait_us / facts.wait_target_us),
        "mean_wait_ratio": _within(facts.waited_us / np.maximum(1.0, jobs) / facts.wait_target_us),
        "arrival_rate_ratio": _within(per_window / gpus),
        "refusal_ratio": np.maximum(0.0, facts.refused_jobs / asked),
    }
    quality = np.where(facts.whole, 1.0, 0.5)
    age_us = facts.demand_age_us
    return {name: Feature(value, age_us, quality) for name, value in found.items()}


def _capacity(facts: Facts) -> Features:
    most = np.maximum(1.0, facts.nodes_max)
    found = {
        "on_demand_ratio": facts.ready[:, 0],
        "spot_ratio": facts.ready[:, 1],
        "pending_ratio": facts.ordered,
        "pending_soon_ratio": facts.soon,
    }
    age_us, sure = facts.capacity_age_us, np.ones(len(most))
    told = {name: Feature(_within(nodes / most), age_us, sure) for name, nodes in found.items()}
    return told | {"capacity_age_ratio": _certain(_within(age_us / CAPACITY_AGE_MAX_US))}


def _hardware(facts: Facts) -> Features:
    sure, age_us = np.ones(len(facts.now_us)), facts.tick_age_us
    service_age_us = facts.service_age_us
    latency = _within(facts.first_token_p95_us / LATENCY_TARGET_US)
    told = {
        "service_utilisation": Feature(facts.service_utilisation, service_age_us, sure),
        "service_latency_ratio": Feature(latency, service_age_us, sure),
        "telemetry_quality": Feature(facts.telemetry_quality, age_us, sure),
    }
    for place, name in enumerate(READINGS):
        value, own_age_us, quality = facts.readings[:, place].T
        known = np.isfinite(value)
        told[name] = Feature(
            np.where(known, _within(value), 0.0),
            age_us + np.where(known, own_age_us, 0.0),
            np.where(known, quality, 0.0),
        )
    return told


def _forecast(facts: Facts) -> Features:
    gpus = np.maximum(1.0, facts.asked.sum(axis=1) * facts.gpus_per_node)
    near, far = facts.forecast_gpus[:, 0], facts.forecast_gpus[:, 2]
    found = {
        "forecast_15m_ratio": near[:, 1],
        "forecast_60m_ratio": far[:, 1],
        "forecast_spread_ratio": far[:, 2] - far[:, 0],
    }
    quality = np.where(facts.forecast_trusted, 1.0, 0.0)
    age_us = facts.forecast_age_us
    return {name: Feature(_within(one / gpus), age_us, quality) for name, one in found.items()}


def _money(facts: Facts) -> Features:
    on_demand, spot = facts.node_cost.T
    priced = np.isfinite(facts.node_cost)
    spent = np.where(priced, facts.asked * np.where(priced, facts.node_cost, 0.0), 0.0)
    nodes = facts.asked.sum(axis=1)
    cost = np.where(nodes > 0.0, spent.sum(axis=1) / nodes, 0.0)
    cost = cost / np.maximum(1.0, facts.gpus_per_node)
    both = priced.all(axis=1) & (on_demand > 0.0)
    dear = facts.market > 0.0  # An unknown price is NaN, whatever other offers there are.
    age_us = facts.offer_age_us
    known = np.where(facts.offers_known, 1.0, 0.0)
    return {
        "price_ratio": Feature(
            np.where(cost > 0.0, _within(facts.quote / cost), 1.0),
            facts.capacity_age_us,
            np.where(cost > 0.0, 1.0, 0.0),
        ),
        "spot_discount": Feature(
            np.where(both, 1.0 - spot / on_demand, 0.0), age_us, np.where(both, known, 0.0)
        ),
        "market_ratio": Feature(
            np.where(dear, _within(facts.quote / facts.market), 1.0),
            age_us,
            np.where(dear, 1.0, 0.0),
        ),
        "interruption_rate": Feature(_within(10.0 * facts.interruptions), age_us, known),
    }


def _clock(facts: Facts) -> Features:
    told: Features = {}
    for name, period_us in (("day", DAY_US), ("week", WEEK_US)):
        angle = 2.0 * np.pi * (facts.now_us % period_us) / period_us
        told |= {f"{name}_sin": _certain(np.sin(angle)), f"{name}_cos": _certain(np.cos(angle))}
    return told


def _certain(value: Floats) -> Feature:
    return Feature(value, np.zeros(len(value)), np.ones(len(value)))


def _within(value: Floats) -> Floats:
    """Return open-ended ratios within [0, MOST]; NaN stays."""
    return np.clip(value, 0.0, MOST)
