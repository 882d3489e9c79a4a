"""What policies see and say: the order of actions and features, shared by rule, actor and guards.

Arrays carry a leading batch axis (one row per pool); the live loop and the training environments
build them with the same code, so a feature means the same in both. A change in meaning or order of
a feature is a new `FEATURE_VERSION`, and a policy made for another version is not loaded.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.units import MINUTE_US

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

CONTROL_TICK_US: Final = MINUTE_US
EPOCH_US: Final = 15 * MINUTE_US

DIMENSIONS: Final[tuple[str, ...]] = ("on_demand_nodes", "spot_nodes", "migration", "price")
"""Nodes, nodes, share of the migration budget (0 to 1), US dollars per GPU-hour."""

ON_DEMAND, SPOT, MIGRATION, PRICE = range(4)

FEATURE_VERSION: Final = "pool/1"

FEATURE_NAMES: Final[tuple[str, ...]] = (
    # Load, as ratios of the pool's GPUs.
    "allocated_ratio",
    "queued_gpus_ratio",
    "queued_jobs_log",
    "oldest_wait_ratio",
    "mean_wait_ratio",
    "arrival_rate_ratio",
    "refusal_ratio",
    # Capacity, as ratios of the pool's ceiling.
    "on_demand_ratio",
    "spot_ratio",
    "pending_ratio",
    "pending_soon_ratio",
    # What the service and the hardware say.
    "service_utilisation",
    "service_latency_ratio",
    "utilisation",
    "throttled",
    # Forecast demand over present capacity.
    "forecast_15m_ratio",
    "forecast_60m_ratio",
    "forecast_spread_ratio",
    # Money, as ratios.
    "price_ratio",
    "spot_discount",
    "market_ratio",
    "interruption_rate",
    # The rule's wish and the last execution, as steps over the delta limit.
    "rule_on_demand_step",
    "rule_spot_step",
    "last_on_demand_step",
    "last_spot_step",
    # Envelope state.
    "cooldown_ratio",
    "flap_budget_ratio",
    "migration_budget_ratio",
    # Time of day and week.
    "day_sin",
    "day_cos",
    "week_sin",
    "week_cos",
    # Ages and quality of the inputs.
    "capacity_age_ratio",
    "telemetry_quality",
)

FORECAST_HORIZONS_US: Final = (15 * MINUTE_US, 30 * MINUTE_US, 60 * MINUTE_US)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolBatch:
    """What rule, actor and guards see of n pools; the first axis of every array is the pool.

    Actions and bounds are (n, 4) in the order and units of `DIMENSIONS`; a pair of columns is
    (on demand, spot). `present` counts the nodes that were last asked for, and where that is not
    known those that are ready or ordered, so an order is not placed twice. What is unknown stands
    at its neutral value with quality 0 and unless a field says so nothing is missing; the `fresh`
    flags say what may be acted on.
    """

    pools: tuple[str, ...]
    tick_us: Integers
    observation: Floats
    ages_us: Integers
    quality: Floats
    present: Floats
    low: Floats
    high: Floats
    delta: Floats
    rule: Floats
    ready_nodes: Floats
    nodes_min: Floats
    nodes_max: Floats
    gpus_per_node: Floats
    gpus_allocated: Floats
    gpus_queued: Floats
    oldest_wait_us: Integers
    nodes_arriving: Floats
    """Nodes that are ordered and expected within a quarter of an hour."""
    gpus_demanded_peak: Floats
    """The largest demand within the rule's window, so that hysteresis needs no memory."""
    forecast_gpus: Floats
    """(n, 3 horizons, 3 quantiles p10 p50 p90); the present demand where no model is trusted."""
    forecast_trusted: Flags
    running_jobs: Floats
    jobs_at_risk: Floats
    """Jobs on nodes that are suspected of failing."""
    node_cost: Floats
    """(n, 2) US dollars per node-hour; infinite where that billing is not on offer."""
    market_price: Floats
    """US dollars that the market asks for one GPU-hour; NaN where unknown."""
    reference_price: Floats
    """The market's price times the markup that the pool's first quote had; NaN where unknown."""
    interruptions: Floats
    """Reclaims per spot node-hour."""
    budget: Floats
    """US dollars per hour the pool may cost; infinite where only `nodes_max` bounds it."""
    fleet: Integers
    fleet_budget: Floats
    """Rows with the same `fleet` number share this budget in US dollars per hour."""
    utilisation_target: Floats
    capacity_fresh: Flags
    demand_fresh: Flags
    telemetry_fresh: Flags
    market_fresh: Flags
    price_epoch: Flags
