"""The history of metrics: pools and their features, nodes, services, prices.

These are the tables of the TimescaleDB sink; the ClickHouse sink keeps `pool_states` as well, so
that what was decided can be laid beside what was so.
"""

from collections.abc import Callable, Iterable
from typing import Final

from gpuloop.schemas.messages import NodeState, Offer, PoolState, ServiceSample
from gpuloop.schemas.messages.state import FEATURES, Feature
from gpuloop.schemas.messages.telemetry import Billing, Tranche
from gpuloop.schemas.units import INT64_MAX
from gpuloop.streams.sinks.tables import Catalogue, Column, Source, Table, Value, field, fields
from gpuloop.streams.sinks.tables import time_of as _time


def _tranche(billing: Billing, of: Callable[[Tranche], Value]) -> Callable[[Source], Value]:
    def value(source: Source) -> Value:
        state: PoolState = source.message
        return next((of(one) for one in state.tranches if one.billing == billing), None)

    return value


def _billing(billing: Billing) -> tuple[Column, ...]:
    """Return what is rented under one kind of billing; null where the pool cannot rent so."""
    return (
        Column(f"{billing}_nodes", "int", _tranche(billing, lambda t: t.nodes_ready), True),
        Column(
            f"{billing}_nodes_ordered",
            "int",
            _tranche(billing, lambda t: len(t.pending_arrival_us)),
            True,
        ),
        Column(
            f"{billing}_usd_micros_per_node_hour",
            "int",
            _tranche(billing, lambda t: t.usd_micros_per_node_hour),
            True,
        ),
    )


def _sum(numbers: Iterable[int]) -> int:
    """Return a sum as far as 64 bits hold it: a store would refuse the rest, or wrap around."""
    return min(sum(numbers), INT64_MAX)


def rented_gpus(state: PoolState) -> int:
    """Return how many GPUs of a pool are rented and ready."""
    return _sum(tranche.nodes_ready * state.gpus_per_node for tranche in state.tranches)


def usd_per_hour(state: PoolState) -> float:
    """Return what a pool's ready nodes cost by the hour, in US dollars."""
    return sum(t.nodes_ready * t.usd_micros_per_node_hour for t in state.tranches) / 1e6


POOL_STATES: Final = Table(
    name="pool_states",
    about="One pool at one tick: capacity, cost, demand.",
    message=PoolState,
    topics=("state.pools",),
    key=("fleet", "pool", "time"),
    columns=(
        _time("tick_us"),
        *fields("word", "fleet", "pool", "gpu_model"),
        *fields("int", "gpus_per_node", "nodes_min", "nodes_max", "nodes_heard"),
        *_billing("on_demand"),
        *_billing("spot"),
        Column("rented_gpus", "int", lambda source: rented_gpus(source.message)),
        Column("usd_per_hour", "float", lambda source: usd_per_hour(source.message)),
        *fields("int", "quote_usd_micros_per_gpu_hour", "energy_usd_micros_per_kwh"),
        *fields("int", "gpus_allocated", "running_jobs"),
        Column("queued_jobs", "int", lambda s: _sum(q.jobs for q in s.message.queues)),
        Column("queued_gpus", "int", lambda s: _sum(q.gpus for q in s.message.queues)),
        Column(
            "oldest_submitted_us",
            "int",
            lambda s: min((q.oldest_submitted_us for q in s.message.queues), default=None),
            True,
        ),
        *fields("int", "arrived_gpus", "arrived_jobs", "refused_jobs", "capacity_age_us"),
        field("demand_age_us", "int", nullable=True),
        *fields("int", "shards_reported", "shards_expected"),
    ),
)


def _features(state: PoolState) -> list[tuple[str, Feature]]:
    return sorted(state.features.items(), key=lambda item: item[0])


POOL_FEATURES: Final = Table(
    name="pool_features",
    about="One feature of a pool at one tick, with its age and quality.",
    message=PoolState,
    topics=("state.pools",),
    key=("fleet", "pool", "feature", "time"),
    columns=(
        _time("tick_us"),
        *fields("word", "fleet", "pool"),
        Column("feature", "word", lambda source: source.part[0]),
        Column("value", "float", lambda source: source.part[1].value, True),
        Column("age_us", "int", lambda source: source.part[1].age_us),
        Column("quality", "float", lambda source: source.part[1].quality),
    ),
    parts=_features,
)


def _measure(name: str) -> Column:
    def value(source: Source) -> Value:
        found = source.message.features.get(name)
        return None if found is None else found.value

    return Column(name, "float", value, True)


def _quality(source: Source) -> Value:
    return min((one.quality for one in source.message.features.values()), default=None)


NODE_STATES: Final = Table(
    name="node_states",
    about="One node as heard of at one time; measures are means over its GPUs.",
    message=NodeState,
    topics=("state.nodes",),
    key=("fleet", "node", "time"),
    columns=(
        _time("event_time_us"),
        *fields("word", "fleet", "node", "pool", "rack", "gpu_model", "billing"),
        *fields("int", "gpus", "boot", "seq"),
        *(_measure(name) for name in FEATURES),
        Column("worst_quality", "float", _quality, True),
    ),
)

SERVICE_WINDOWS: Final = Table(
    name="service_windows",
    about="One inference service over the window that ends at its time.",
    message=ServiceSample,
    topics=("telemetry.services",),
    key=("fleet", "service", "time"),
    columns=(
        _time("event_time_us"),
        *fields("word", "fleet", "service", "pool"),
        *fields("int", "window_us", "boot", "seq", "gpus"),
        *fields("float", "requests_per_second", "queue_depth", "utilisation"),
        *fields("int", "first_token_p50_us", "first_token_p95_us"),
        *fields("float", "error_ratio"),
        *fields("bool", "violated"),
        *fields("int", "revenue_usd_micros"),
    ),
)

OFFERS: Final = Table(
    name="offers",
    about="What a provider asked for one GPU-hour.",
    message=Offer,
    topics=("market.offers",),
    key=("fleet", "provider", "region", "gpu_model", "billing", "time"),
    columns=(
        _time("fetched_at_us"),
        *fields("word", "fleet", "provider", "region", "gpu_model", "billing"),
        *fields("int", "usd_micros_per_gpu_hour"),
        *fields("float", "availability", "interruptions_per_node_hour"),
        *fields("int", "valid_for_us"),
        *fields("text", "source"),
    ),
)

HISTORY: Final = Catalogue((POOL_STATES, POOL_FEATURES, NODE_STATES, SERVICE_WINDOWS, OFFERS))
