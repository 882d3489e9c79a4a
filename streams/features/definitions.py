"""Every feature by name: what kind it is, what it comes from, over which window, in which unit.

The order of a set's definitions is the order of the numbers in a `FeatureVector`. A set is known by
its digest, which covers all of it, so a vector says exactly what it holds; whoever changes what a
name means raises the definition's version, and the digest changes with it.
"""

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from gpuloop.schemas.identity import sha256_of
from gpuloop.schemas.units import HOUR_US, MINUTE_US

Scope = Literal["pool", "job_class"]
Kind = Literal["value", "rolling", "lag", "temporal", "interaction"]
Operation = Literal["ratio", "difference", "product"]

DAY_US: Final = 24 * HOUR_US
STATISTICS: Final = ("mean", "std", "min", "max")


@dataclass(frozen=True, slots=True)
class Window:
    """A span of fleet time that ends with the tick, made of panes of `pane_us`.

    With panes of a minute it is exact. With longer ones it holds whole panes, the last of which
    has just begun: it reaches back by at most one pane less than its name says.
    """

    name: str
    span_us: int
    pane_us: int


WINDOWS: Final = (
    Window("5m", 5 * MINUTE_US, MINUTE_US),
    Window("1h", HOUR_US, MINUTE_US),
    Window("6h", 6 * HOUR_US, 10 * MINUTE_US),
    Window("24h", DAY_US, 30 * MINUTE_US),
    Window("7d", 7 * DAY_US, 4 * HOUR_US),
)
LAGS: Final = (WINDOWS[0], WINDOWS[1], WINDOWS[3], WINDOWS[4])
"""Those of a minute's pane are the value at that tick, the others the mean of its pane."""


@dataclass(frozen=True, slots=True)
class Series:
    """A number read from each pool state, and the fields of the state that it is read from."""

    name: str
    unit: str
    source: str


POOL_SERIES: Final = (
    Series("demand_gpus", "GPUs", "gpus_allocated + queues[].gpus"),
    Series("allocated_gpus", "GPUs", "gpus_allocated"),
    Series("queued_gpus", "GPUs", "queues[].gpus"),
    Series("queued_jobs", "jobs", "queues[].jobs"),
    Series("oldest_wait_seconds", "seconds", "tick_us - queues[].oldest_submitted_us"),
    Series("ready_gpus", "GPUs", "tranches[].nodes_ready * gpus_per_node"),
    Series("arrived_gpus_per_minute", "GPUs per minute", "change of arrived_gpus"),
    Series("refused_jobs_per_minute", "jobs per minute", "change of refused_jobs"),
    Series("quote_usd_per_gpu_hour", "USD per GPU-hour", "quote_usd_micros_per_gpu_hour"),
    Series("service_utilisation", "ratio", "largest services[].utilisation"),
    Series("first_token_p95_seconds", "seconds", "largest services[].first_token_p95_us"),
    Series("utilisation", "ratio", "features.utilisation"),
    Series("sm_active", "ratio", "features.sm_active"),
    Series("temperature_celsius", "degrees Celsius", "features.temperature_celsius"),
    Series("power_watts", "watts per GPU", "features.power_watts"),
    Series("throttled", "ratio", "features.throttled"),
)
CLASS_SERIES: Final = (
    Series("running_gpus", "GPUs", "classes[].running_gpus"),
    Series("running_jobs", "jobs", "classes[].running_jobs"),
    Series("queued_gpus", "GPUs", "queues[].gpus"),
    Series("queued_jobs", "jobs", "queues[].jobs"),
    Series("oldest_wait_seconds", "seconds", "tick_us - queues[].oldest_submitted_us"),
    Series("arrived_gpus_per_minute", "GPUs per minute", "change of classes[].arrived_gpus"),
)
TEMPORAL: Final = (
    ("hour_of_day", "hours", "hour of the day in UTC, with its fraction"),
    ("hour_sine", "ratio", "sine of the time of day"),
    ("hour_cosine", "ratio", "cosine of the time of day"),
    ("day_of_week", "days", "days since Monday, in UTC"),
    ("week_sine", "ratio", "sine of the time of week"),
    ("week_cosine", "ratio", "cosine of the time of week"),
    ("weekend", "0 or 1", "whether it is Saturday or Sunday, in UTC"),
)


@dataclass(frozen=True, slots=True)
class Interaction:
    """Two features of the same vector, combined."""

    name: str
    unit: str
    operation: Operation
    left: str
    right: str


POOL_INTERACTIONS: Final = (
    Interaction("load_ratio", "ratio", "ratio", "demand_gpus", "ready_gpus"),
    Interaction("allocated_share", "ratio", "ratio", "allocated_gpus", "ready_gpus"),
    Interaction("demand_ramp", "GPUs", "difference", "demand_gpus.mean_5m", "demand_gpus.mean_1h"),
    Interaction("demand_surge", "ratio", "ratio", "demand_gpus.mean_5m", "demand_gpus.mean_24h"),
    Interaction(
        "demand_since_yesterday", "GPUs", "difference", "demand_gpus", "demand_gpus.24h_ago"
    ),
    Interaction(
        "arrival_surge", "ratio", "ratio",
        "arrived_gpus_per_minute.mean_1h", "arrived_gpus_per_minute.mean_24h",
    ),
    Interaction("queue_pressure", "GPU-seconds", "product", "queued_gpus", "oldest_wait_seconds"),
    Interaction("watts_at_full_use", "watts per GPU", "ratio", "power_watts", "utilisation"),
)  # fmt: skip
CLASS_INTERACTIONS: Final = (
    Interaction(
        "running_ramp", "GPUs", "difference", "running_gpus.mean_5m", "running_gpus.mean_1h"
    ),
    Interaction(
        "arrival_surge", "ratio", "ratio",
        "arrived_gpus_per_minute.mean_1h", "arrived_gpus_per_minute.mean_24h",
    ),
    Interaction("queue_pressure", "GPU-seconds", "product", "queued_gpus", "oldest_wait_seconds"),
)  # fmt: skip


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """One feature. `inputs` are fields of `state.pools` or other features of the same vector."""

    name: str
    version: int
    kind: Kind
    inputs: tuple[str, ...]
    unit: str
    statistic: str
    window_us: int = 0
    pane_us: int = 0


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """All features of one kind of subject, in the order in which vectors hold them."""

    scope: Scope
    series: tuple[Series, ...]
    interactions: tuple[Interaction, ...]
    definitions: tuple[Definition, ...]
    digest: str

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names, in order."""
        return tuple(definition.name for definition in self.definitions)


def _values(series: tuple[Series, ...]) -> list[Definition]:
    return [
        Definition(
            name=one.name,
            version=1,
            kind="value",
            inputs=(f"state.pools: {one.source}",),
            unit=one.unit,
            statistic="last",
        )
        for one in series
    ]


def _rolling(series: tuple[Series, ...]) -> list[Definition]:
    return [
        Definition(
            name=f"{one.name}.{statistic}_{window.name}",
            version=1,
            kind="rolling",
            inputs=(one.name,),
            unit=one.unit,
            statistic=statistic,
            window_us=window.span_us,
            pane_us=window.pane_us,
        )
        for window in WINDOWS
        for statistic in STATISTICS
        for one in series
    ]


def _lags(series: tuple[Series, ...]) -> list[Definition]:
    return [
        Definition(
            name=f"{one.name}.{lag.name}_ago",
            version=1,
            kind="lag",
            inputs=(one.name,),
            unit=one.unit,
            statistic="last" if lag.pane_us == MINUTE_US else "mean",
            window_us=lag.span_us,
            pane_us=lag.pane_us,
        )
        for lag in LAGS
        for one in series
    ]


def _temporal() -> list[Definition]:
    return [
        Definition(
            name=name,
            version=1,
            kind="temporal",
            inputs=("state.pools: tick_us",),
            unit=unit,
            statistic=what,
        )
        for name, unit, what in TEMPORAL
    ]


def _combined(interactions: tuple[Interaction, ...]) -> list[Definition]:
    return [
        Definition(
            name=one.name,
            version=1,
            kind="interaction",
            inputs=(one.left, one.right),
            unit=one.unit,
            statistic=one.operation,
        )
        for one in interactions
    ]


def _set(
    scope: Scope, series: tuple[Series, ...], interactions: tuple[Interaction, ...]
) -> FeatureSet:
    definitions = (
        *_values(series),
        *_rolling(series),
        *_lags(series),
        *_temporal(),
        *_combined(interactions),
    )
    digest = sha256_of("features", scope, msgspec.json.encode(definitions))
    return FeatureSet(scope, series, interactions, definitions, digest)


POOL_FEATURES: Final = _set("pool", POOL_SERIES, POOL_INTERACTIONS)
CLASS_FEATURES: Final = _set("job_class", CLASS_SERIES, CLASS_INTERACTIONS)
SETS: Final = {one.scope: one for one in (POOL_FEATURES, CLASS_FEATURES)}
BY_DIGEST: Final = {one.digest: one for one in SETS.values()}
