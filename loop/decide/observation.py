"""From what is known about pools to the arrays that rule, actor and guards see.

The live decider and the training environments call the same function, so a feature means the same
in both; how old the data is in training is up to `LAGS` of the simulation. Unknown values stand at
a neutral value with quality 0; what may be acted on at all is said by the `fresh` flags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from gpuloop.actuators.envelope import EnvelopeConfig, EnvelopeState, delta_limits
from gpuloop.loop.decide.facts import Ages, Row, facts_of
from gpuloop.loop.decide.features import (
    CAPACITY_AGE_MAX_US,
    guard_features,
    pool_features,
    table,
)
from gpuloop.loop.decide.memory import PoolMemory, queued_gpus
from gpuloop.reasoning.rule import RuleConfig, rule_action
from gpuloop.schemas.messages import Forecast, Offer, PoolState
from gpuloop.schemas.messages.control import Objectives
from gpuloop.schemas.messages.telemetry import BILLINGS, Billing
from gpuloop.schemas.policy import (
    DIMENSIONS,
    EPOCH_US,
    FORECAST_HORIZONS_US,
    Floats,
    PoolBatch,
)
from gpuloop.schemas.units import MINUTE_US, USD_MICROS

DEMAND_AGE_MAX_US: Final = 5 * MINUTE_US
DEMAND_SILENT_US: Final = 12 * MINUTE_US
"""How long jobs or a service may say nothing: running jobs report every five minutes, so two
reports are missing and some time for their way is over."""

FORECAST_AGE_MAX_US: Final = 10 * MINUTE_US
UTILISATION_TARGET: Final = 1.0
WAIT_TARGET_US: Final = 30 * MINUTE_US
SERVICE_FULL: Final = 0.85
"""An inference service that is busier than this is short of GPUs."""

PRICE_FLOOR: Final = 0.5
PRICE_CEILING: Final = 2.0
"""Bounds of prices over the reference, where objectives state none."""

ARRIVING_US: Final = 15 * MINUTE_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is known beside the pools' own states; objectives are complete, one per pool."""

    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    offers: Mapping[tuple[str, Billing], Offer] = field(default_factory=dict)
    objectives: Mapping[str, Objectives] = field(default_factory=dict)
    fleet_budget_usd: float = np.inf
    jobs_at_risk: Mapping[str, int] = field(default_factory=dict)


def observe_pools(
    memories: Sequence[PoolMemory],
    around: Surroundings,
    envelope: EnvelopeState,
    *,
    tick_us: int,
    now_us: int,
    rule: RuleConfig,
    config: EnvelopeConfig,
) -> PoolBatch:
    """Return the batch of some pools at a tick; `now_us` is what ages are measured from."""
    rows = [_read(memory, around, now_us) for memory in memories]
    n = len(rows)
    epoch = np.full(n, tick_us % EPOCH_US == 0)
    present, low, high = (
        np.array([getattr(row, name) for row in rows], dtype=float).reshape(n, len(DIMENSIONS))
        for name in ("present", "low", "high")
    )
    nodes_max = _column(rows, "nodes_max")
    fresh = np.array([row.fresh for row in rows], dtype=np.bool_).reshape(n, 4)
    bare = PoolBatch(
        pools=tuple(row.pool.pool for row in rows),
        tick_us=np.full(n, tick_us, dtype=np.int64),
        observation=np.zeros((n, 0)),
        ages_us=np.zeros((n, 0), dtype=np.int64),
        quality=np.zeros((n, 0)),
        present=present,
        low=low,
        high=high,
        delta=delta_limits(
            present=present, low=low, high=high, nodes_max=nodes_max, price_epoch=epoch,
            config=config,
        ),
        rule=np.zeros_like(present),
        ready_nodes=np.array([row.ready for row in rows], dtype=float).reshape(n, 2),
        nodes_min=_column(rows, "nodes_min"),
        nodes_max=nodes_max,
        gpus_per_node=np.array([float(row.pool.gpus_per_node) for row in rows]),
        gpus_allocated=np.array([float(row.pool.gpus_allocated) for row in rows]),
        gpus_queued=_column(rows, "queued"),
        oldest_wait_us=_column(rows, "oldest_wait_us").astype(np.int64),
        nodes_arriving=_column(rows, "arriving"),
        gpus_demanded_peak=_column(rows, "peak"),
        forecast_gpus=np.array([row.forecast for row in rows], dtype=float).reshape(n, 3, 3),
        forecast_trusted=np.array([row.trusted for row in rows], dtype=np.bool_),
        running_jobs=np.array([float(row.pool.running_jobs) for row in rows]),
        jobs_at_risk=_column(rows, "at_risk"),
        node_cost=np.array([row.node_cost for row in rows], dtype=float).reshape(n, 2),
        market_price=_column(rows, "market"),
        reference_price=_column(rows, "reference"),
        interruptions=_column(rows, "interruptions"),
        budget=_column(rows, "budget"),
        fleet=np.zeros(n, dtype=np.int64),
        fleet_budget=np.full(n, around.fleet_budget_usd),
        utilisation_target=_column(rows, "utilisation_target"),
        capacity_fresh=fresh[:, 0],
        demand_fresh=fresh[:, 1],
        telemetry_fresh=fresh[:, 2],
        market_fresh=fresh[:, 3],
        price_epoch=epoch,
    )  # fmt: skip
    wish = rule_action(bare, rule)
    last_steps = np.array([memory.last_steps for memory in memories], dtype=float)
    features = pool_features(facts_of(rows, memories)) | guard_features(
        last_steps.reshape(n, len(DIMENSIONS)), bare, wish, envelope, config
    )
    told = table(features)
    return replace(
        bare,
        rule=wish,
        observation=told.observation,
        ages_us=told.ages_us,
        quality=told.quality,
    )


def _column(rows: Sequence[Row], name: str) -> Floats:
    return np.array([getattr(row, name) for row in rows], dtype=float)


def _read(memory: PoolMemory, around: Surroundings, now_us: int) -> Row:
    pool = memory.latest
    age = max(0, now_us - pool.tick_us)
    capacity_age = pool.capacity_age_us + age
    tranches = {tranche.billing: tranche for tranche in pool.tranches}
    ready = [float(tranches[b].nodes_ready) if b in tranches else 0.0 for b in BILLINGS]
    arrivals = [tranches[b].pending_arrival_us if b in tranches else () for b in BILLINGS]
    offers = [around.offers.get((pool.gpu_model, billing)) for billing in BILLINGS]
    market_offer = offers[0] if "on_demand" in tranches else offers[1]
    market = _usd(market_offer.usd_micros_per_gpu_hour) if market_offer else np.nan
    reference = market * memory.markup if memory.markup is not None else np.nan
    objectives = around.objectives.get(pool.pool) or Objectives(pool=pool.pool)
    quote = _usd(pool.quote_usd_micros_per_gpu_hour)
    present = [*_asked_for(memory, ready, arrivals), 0.0, quote]
    at_risk = float(around.jobs_at_risk.get(pool.pool, 0))
    low, high, nodes_min, nodes_max = _node_bounds(memory, objectives, present)
    cheapest, dearest = _price_bounds(objectives, reference, quote)
    queued = float(queued_gpus(pool)) + _service_shortage(pool)
    demand = pool.gpus_allocated + queued
    forecast, trusted, forecast_age = _forecast(around.forecasts.get(pool.pool), demand, now_us)
    oldest = min((q.oldest_submitted_us for q in pool.queues if q.jobs), default=now_us)
    return Row(
        pool=pool,
        ready=(ready[0], ready[1]),
        ordered=float(sum(len(times) for times in arrivals)),
        arriving=float(sum(at <= now_us + ARRIVING_US for times in arrivals for at in times)),
        oldest_wait_us=max(0, now_us - oldest),
        present=present,
        low=[*low, 0.0, cheapest],
        high=[*high, 1.0 if at_risk else 0.0, dearest],
        nodes_min=nodes_min,
        nodes_max=nodes_max,
        queued=queued,
        peak=max([demand, *(float(one.demand_gpus) for one in memory.samples)]),
        forecast=forecast,
        trusted=trusted,
        at_risk=at_risk,
        node_cost=_node_costs(pool, offers),
        market=market,
        reference=reference,
        interruptions=offers[1].interruptions_per_node_hour if offers[1] else 0.0,
        budget=_limit(objectives.usd_micros_per_hour_max),
        utilisation_target=objectives.utilisation_target or UTILISATION_TARGET,
        fresh=(
            *freshness(pool, now_us),
            market_offer is not None
            and market_offer.fetched_at_us + market_offer.valid_for_us >= now_us,
        ),
        offers=(offers[0], offers[1]),
        wait_target_us=objectives.wait_target_us or WAIT_TARGET_US,
        ages=Ages(
            now_us=now_us,
            tick_us=age,
            demand_us=_demand_age(pool, age),
            capacity_us=capacity_age,
            forecast_us=forecast_age,
        ),
    )


def freshness(pool: PoolState, now_us: int) -> tuple[bool, bool, bool]:
    """Return whether a pool's capacity, demand and telemetry are fresh enough to act on."""
    age = max(0, now_us - pool.tick_us)
    ready = sum(tranche.nodes_ready for tranche in pool.tranches)
    return (
        pool.capacity_age_us + age <= CAPACITY_AGE_MAX_US,
        age <= DEMAND_AGE_MAX_US and _demand_age(pool, age) <= DEMAND_SILENT_US,
        pool.shards_reported >= pool.shards_expected and pool.nodes_heard * 2 >= ready,
    )


def _demand_age(pool: PoolState, age: int) -> int:
    """Return how old demand is; a producer that does not say is believed to its last state."""
    return age + (pool.demand_age_us or 0)


def anchor_price(memory: PoolMemory, around: Surroundings, now_us: int) -> None:
    """Take the markup of a pool, once, from a quote of the house beside a price of the market.

    What is kept is a ratio: the reference, and with it floor and cap, follow each offer of the
    market. Were the ratio to follow our quotes, a policy could pull its cap up behind it, so it is
    taken once, and from no quote that commands have moved already, as after a loss of state; then
    prices hold until a person's floor and ceiling vouch for the quote.
    """
    pool = memory.latest
    base: Billing = (
        "on_demand" if any(one.billing == "on_demand" for one in pool.tranches) else "spot"
    )
    offer = around.offers.get((pool.gpu_model, base))
    if memory.markup is not None or offer is None or not offer.usd_micros_per_gpu_hour:
        return
    believed = offer.fetched_at_us + offer.valid_for_us >= now_us
    if believed and (pool.generations.get("pricing", 0) == 0 or _vouched(pool, around)):
        memory.markup = pool.quote_usd_micros_per_gpu_hour / offer.usd_micros_per_gpu_hour


def _vouched(pool: PoolState, around: Surroundings) -> bool:
    """Return whether a person bounds the prices of a pool, with the present one within."""
    objectives = around.objectives.get(pool.pool)
    if objectives is None:
        return False
    low, high = objectives.price_floor_usd_micros, objectives.price_ceiling_usd_micros
    if low is None or high is None:
        return False
    return low <= pool.quote_usd_micros_per_gpu_hour <= high


def _asked_for(
    memory: PoolMemory, ready: Sequence[float], arrivals: Sequence[Sequence[int]]
) -> list[float]:
    """Return nodes on demand and spot as last asked for, or as they stand after someone else."""
    desired = memory.desired
    generation = memory.latest.generations.get("scaling", 0)
    if desired is not None and generation <= memory.desired_generation:
        return [float(desired.on_demand_nodes), float(desired.spot_nodes)]
    return [count + len(times) for count, times in zip(ready, arrivals, strict=True)]


def _node_bounds(
    memory: PoolMemory, objectives: Objectives, present: list[float]
) -> tuple[list[float], list[float], float, float]:
    """Return low and high per billing, and both for the total: the least is durable capacity."""
    pool = memory.latest
    rentable = {tranche.billing for tranche in pool.tranches}
    most = float(pool.nodes_max)
    if objectives.nodes_max is not None:
        most = min(most, float(objectives.nodes_max))
    least = min(float(pool.nodes_min), most)
    base = "on_demand" if "on_demand" in rentable else "spot"
    low = [least if billing == base and billing in rentable else 0.0 for billing in BILLINGS]
    high = [most if billing in rentable else 0.0 for billing in BILLINGS]
    for index, billing in enumerate(BILLINGS):
        if billing in memory.closed_until_us:
            high[index] = min(high[index], present[index])
            low[index] = min(low[index], high[index])
    return low, high, least, most


def _price_bounds(objectives: Objectives, reference: float, quote: float) -> tuple[float, float]:
    known = reference == reference  # Not NaN.
    low = PRICE_FLOOR * reference if known else quote
    high = PRICE_CEILING * reference if known else quote
    if objectives.price_floor_usd_micros is not None:
        low = _usd(objectives.price_floor_usd_micros)
    if objectives.price_ceiling_usd_micros is not None:
        high = _usd(objectives.price_ceiling_usd_micros)
    return min(low, high), high


def _node_costs(pool: PoolState, offers: Sequence[Offer | None]) -> tuple[float, float]:
    costs = {tranche.billing: tranche.usd_micros_per_node_hour for tranche in pool.tranches}
    found = []
    for billing, offer in zip(BILLINGS, offers, strict=True):
        if costs.get(billing):
            found.append(_usd(costs[billing]))
        elif offer is not None:
            found.append(_usd(offer.usd_micros_per_gpu_hour) * pool.gpus_per_node)
        else:
            found.append(np.inf)
    return found[0], found[1]


def _service_shortage(pool: PoolState) -> float:
    """Return GPUs that inference services lack for the utilisation they should run at."""
    return float(
        sum(
            service.gpus * max(0.0, service.utilisation / SERVICE_FULL - 1.0)
            + (pool.gpus_per_node if service.violated else 0)
            for service in pool.services
        )
    )


def _forecast(
    forecast: Forecast | None, demand: float, now_us: int
) -> tuple[list[list[float]], bool, int]:
    """Return p10, p50, p90 at each horizon; the last value where no model beats it."""
    flat = [[demand] * 3 for _ in FORECAST_HORIZONS_US]
    if forecast is None:
        return flat, False, now_us
    age = max(0, now_us - forecast.tick_us)
    if forecast.skill <= 0.0 or age > FORECAST_AGE_MAX_US:
        return flat, False, age
    known = {quantiles.horizon_us: quantiles for quantiles in forecast.horizons}
    rows = [
        [known[horizon].p10, known[horizon].p50, known[horizon].p90] if horizon in known else same
        for horizon, same in zip(FORECAST_HORIZONS_US, flat, strict=True)
    ]
    return rows, True, age


def _usd(micros: int) -> float:
    return micros / USD_MICROS


def _limit(micros: int | None) -> float:
    return np.inf if micros is None else _usd(micros)
