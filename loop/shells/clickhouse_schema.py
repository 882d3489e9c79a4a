"""The tables of analysis in ClickHouse: by month, one row an event, aggregates by the hour.

What an hour's aggregate holds is always computed from all rows of that hour, each counted once, and
replaces what was there; `rows` says of how many it was made, and the larger number holds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gpuloop.streams.sinks.tables import Catalogue, Column, Table

DATABASE: Final = "gpuloop"

WINDOW: Final = 1000
"""How many inserts a table remembers; one batch in hand, tried again, needs one of them."""

TYPES: Final = {
    "text": "String",
    "word": "LowCardinality(String)",
    "int": "Int64",
    "float": "Float64",
    "bool": "Bool",
    "time": "DateTime64(6, 'UTC')",
    "texts": "Array(String)",
    "ints": "Array(Int64)",
    "floats": "Array(Float64)",
    "measures": "Array(Nullable(Float64))",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Hourly figures over one table: by what they are grouped, and how each is computed."""

    table: str
    by: tuple[str, ...]
    figures: tuple[tuple[str, str, str], ...]
    """Name, type and expression of each."""


_MONEY: Final = (
    "revenue", "capacity_cost", "energy_cost", "waiting_penalty", "service_penalty",
    "disruption_penalty",
)  # fmt: skip

AGGREGATES: Final = {
    "spend_hours": Aggregate(
        table="rewards",
        by=("fleet", "pool"),
        figures=(
            *(
                (f"{name}_usd", "Float64", f"sum(ifNull({name}_usd_micros, 0)) / 1e6")
                for name in _MONEY
            ),
            ("total_usd", "Float64", "sum(total_usd_micros) / 1e6"),
            ("censored", "UInt64", "countIf(censored)"),
        ),
    ),
    "utilisation_hours": Aggregate(
        table="pool_states",
        by=("fleet", "pool"),
        figures=(
            ("gpus_allocated", "Float64", "avg(gpus_allocated)"),
            ("rented_gpus", "Float64", "avg(rented_gpus)"),
            ("allocated_share", "Float64", "sum(gpus_allocated) / greatest(sum(rented_gpus), 1)"),
            ("queued_gpus", "Float64", "avg(queued_gpus)"),
            ("usd_per_hour", "Float64", "avg(usd_per_hour)"),
        ),
    ),
    "decision_hours": Aggregate(
        table="decisions",
        by=("fleet", "pool", "level", "policy_id"),
        figures=(
            ("commands", "UInt64", "sum(commands)"),
            ("adjusted", "UInt64", "countIf(notEmpty(adjusted_by))"),
            ("on_stale_inputs", "UInt64", "countIf(notEmpty(stale_inputs))"),
            ("alpha", "Float64", "avg(alpha)"),
        ),
    ),
    "outcome_hours": Aggregate(
        table="outcomes", by=("fleet", "pool", "actuator", "status", "why"), figures=()
    ),
}


def column(one: Column) -> str:
    """Return a column's definition."""
    kind = TYPES[one.kind]
    return f"{one.name} {f'Nullable({kind})' if one.nullable else kind}"


def creations(catalogue: Catalogue) -> Iterator[tuple[str, str]]:
    """Yield what there must be, and the statement that makes it; each may be repeated."""
    yield "", f"create database if not exists {DATABASE}"
    yield (
        "sink_offsets",
        f"create table if not exists {DATABASE}.sink_offsets (reader String,"
        " topic LowCardinality(String), partition UInt32, kind UInt8, first Int64, next Int64,"
        " change UInt64, written_at DateTime64(3, 'UTC') default now64(3))"
        " engine = ReplacingMergeTree(change) order by (reader, topic, partition, kind)",
    )
    for table in catalogue.tables:
        yield table.name, _table(table)
    for name, aggregate in AGGREGATES.items():
        yield name, _aggregate(name, aggregate, catalogue[aggregate.table])


def _table(table: Table) -> str:
    order = [name for name in table.key if name != "time"]
    order.insert(len(order) - ("event_id" in order), "time")
    columns = [column(one) for one in table.columns]
    columns += ["topic LowCardinality(String)", "partition UInt32", "written_through UInt64"]
    return (
        f"create table if not exists {DATABASE}.{table.name} ({', '.join(columns)})"
        " engine = ReplacingMergeTree(written_through) partition by toYYYYMM(time)"
        f" order by ({', '.join(order)})"
        f" settings non_replicated_deduplication_window = {WINDOW}"
    )


def _aggregate(name: str, aggregate: Aggregate, table: Table) -> str:
    kinds = {one.name: column(one) for one in table.columns}
    columns = ["hour DateTime('UTC')", *(kinds[one] for one in aggregate.by), "rows UInt64"]
    columns += [f"{figure} {kind}" for figure, kind, _ in aggregate.figures]
    return (
        f"create table if not exists {DATABASE}.{name} ({', '.join(columns)})"
        " engine = ReplacingMergeTree(rows) partition by toYYYYMM(hour)"
        f" order by ({', '.join((*aggregate.by, 'hour'))})"
    )


def refresh(name: str, hours: Sequence[datetime]) -> str:
    """Return the statement that computes an aggregate's hours anew."""
    aggregate = AGGREGATES[name]
    by = ", ".join(aggregate.by)
    figures = "".join(f", {expression}" for _, _, expression in aggregate.figures)
    names = ", ".join(("hour", *aggregate.by, "rows", *(one for one, _, _ in aggregate.figures)))
    touched = ", ".join(f"'{hour:%Y-%m-%d %H:%M:%S}'" for hour in hours)
    months = ", ".join(sorted({f"{hour:%Y%m}" for hour in hours}))
    return (
        f"insert into {DATABASE}.{name} ({names})"  # noqa: S608
        f" select toStartOfHour(toDateTime(time, 'UTC')) as hour, {by}, count(){figures}"
        f" from {DATABASE}.{aggregate.table} final"
        f" where toYYYYMM(time) in ({months})"
        f" and toStartOfHour(toDateTime(time, 'UTC')) in ({touched})"
        f" group by hour, {by}"
    )
