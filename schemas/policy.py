"""What policies see and say: the order of actions and features, shared by rule, actor and guards.

Arrays carry a leading batch axis (one row per pool); the live loop and the training environments
build them with the same code, so a policy cannot tell the two apart. A change in meaning or order
of a feature is a new `FEATURE_VERSION`, and a policy made for another version is not loaded.
"""

from typing import Final

from gpuloop.schemas.units import MINUTE_US

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
