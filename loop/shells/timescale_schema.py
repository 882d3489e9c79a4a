"""The tables of history in PostgreSQL, with TimescaleDB or without.

With the extension they are hypertables, compressed when old, with continuous aggregates; without it
they are partitioned by day, and the aggregates are views. Tables that are there stay what they are.
What becomes of them with time is for `timescale_upkeep`.

Tables only ever gain columns, as messages only gain fields; whoever starts adds what is missing,
under a lock that one holds at a time.
"""

import logging
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import psycopg
from psycopg import sql

from gpuloop.streams.sinks.tables import Catalogue, Column, Table

log: Final = logging.getLogger(__name__)

SCHEMA: Final = "gpuloop"
LOCK: Final = 0x6770756C6F6F70
"""Advisory lock of whoever changes tables: `gpuloop` as a number."""

FORM: Final = 1
"""Raised when what is below changes in a way that the tables' columns do not show."""

TYPES: Final = {
    "text": "text",
    "word": "text",
    "int": "bigint",
    "float": "double precision",
    "bool": "boolean",
    "time": "timestamptz",
    "texts": "text[]",
    "ints": "bigint[]",
    "floats": "double precision[]",
    "measures": "double precision[]",
}

AGGREGATES: Final = {
    "pool_hours": (
        "pool_states",
        "fleet, pool, avg(gpus_allocated)::float8 as gpus_allocated,"
        " avg(rented_gpus)::float8 as rented_gpus, avg(queued_gpus)::float8 as queued_gpus,"
        " max(queued_gpus) as queued_gpus_max,"
        " avg(usd_per_hour) as usd_per_hour, sum(arrived_gpus)::bigint as arrived_gpus,"
        " sum(refused_jobs)::bigint as refused_jobs, count(*) as ticks",
        "fleet, pool",
    ),
    "feature_hours": (
        "pool_features",
        "fleet, pool, feature, avg(value) as mean, min(value) as low, max(value) as high,"
        " count(value) as present, count(*) as ticks",
        "fleet, pool, feature",
    ),
    "node_hours": (
        "node_states",
        "fleet, pool, node, avg(utilisation) as utilisation, avg(power_watts) as power_watts,"
        " max(temperature_celsius) as temperature_celsius_max, count(*) as samples",
        "fleet, pool, node",
    ),
}
"""Hourly aggregates: the table, what is selected, what it is grouped by beside the hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """For how many days of fleet time rows are kept, and after how many they are compressed."""

    days: float
    compress_after_days: float = 2.0


def staged(table: Table) -> sql.Composed:
    """Return the statement that makes a session's stage of a table."""
    return sql.SQL(
        "create temporary table if not exists {} (like {}.{} including defaults, nth bigint)"
        " on commit delete rows"
    ).format(
        sql.Identifier(f"stage_{table.name}"), sql.Identifier(SCHEMA), sql.Identifier(table.name)
    )


def fingerprint(catalogue: Catalogue) -> str:
    """Return what changes whenever the tables must be looked at again."""
    shape = [FORM, sorted(AGGREGATES.items())]
    shape += [
        (table.name, table.key, [(c.name, c.kind, c.nullable) for c in table.columns])
        for table in catalogue.tables
    ]
    return sha256(repr(shape).encode()).hexdigest()


class History:
    """The tables behind one connection."""

    def __init__(self, connection: psycopg.Connection[Any], catalogue: Catalogue) -> None:
        self._connection: Final = connection
        self._catalogue: Final = catalogue
        self.hypertables = False

    def prepare(self) -> None:
        """Make what is missing: schema, tables, aggregates, positions."""
        with self._connection.transaction():
            self._run("select pg_advisory_xact_lock(%s)", LOCK)
            if not self._one("select to_regnamespace(%s)", SCHEMA):
                self._run(f"create schema {SCHEMA}")
            self._run(
                f"create table if not exists {SCHEMA}.sink_offsets ("
                " reader text, topic text, partition int, next bigint not null,"
                " written_at timestamptz not null default now(),"
                " primary key (reader, topic, partition))"
            )
            self._run(
                f"create table if not exists {SCHEMA}.migrations ("
                " number int generated always as identity primary key,"
                " fingerprint text not null, hypertables boolean not null,"
                " applied_at timestamptz not null default now())"
            )
            last = self._connection.execute(
                f"select fingerprint, hypertables from {SCHEMA}.migrations"  # noqa: S608
                " order by number desc limit 1"
            ).fetchone()
            offered = self._has_timescale()
            self.hypertables = last[1] if last and self._has_any() else offered
            if offered and not self.hypertables:
                log.warning("TimescaleDB is here, but the tables were made without it and stay so")
            shape = fingerprint(self._catalogue)
            if last is None or last[0] != shape or self._misses_any():
                for table in self._catalogue.tables:
                    self._make(table)
                for name in AGGREGATES:
                    self._make_aggregate(name)
                self._run(
                    f"insert into {SCHEMA}.migrations (fingerprint, hypertables)"  # noqa: S608
                    " values (%s, %s)",
                    shape, self.hypertables,
                )  # fmt: skip

    def _has_any(self) -> bool:
        """Say whether a table is there; what all are made of is decided when there is none."""
        return any(self._is_there(table.name) for table in self._catalogue.tables)

    def _misses_any(self) -> bool:
        """Say whether a table or an aggregate is gone; people may throw them away."""
        names = [table.name for table in self._catalogue.tables] + list(AGGREGATES)
        return not all(map(self._is_there, names))

    def _is_there(self, name: str) -> bool:
        return self._one("select to_regclass(%s)", f"{SCHEMA}.{name}") is not None

    def _has_timescale(self) -> bool:
        """Say whether TimescaleDB is in this database with the licence that aggregates need."""
        if not self._one("select 1 from pg_extension where extname = 'timescaledb'"):
            return False
        return bool(self._one("select current_setting('timescaledb.license', true)") == "timescale")

    def _make(self, table: Table) -> None:
        name = sql.Identifier(table.name)
        columns = sql.SQL(", ").join(_definition(column) for column in table.columns)
        key = sql.SQL(", ").join(map(sql.Identifier, table.key))
        end = sql.SQL("" if self.hypertables else " partition by range (time)")
        new = not self._is_there(table.name)
        self._run(
            sql.SQL("create table if not exists {}.{} ({}, primary key ({})){}").format(
                sql.Identifier(SCHEMA), name, columns, key, end
            )
        )
        for column in table.columns:
            self._run(
                sql.SQL("alter table {}.{} add column if not exists {} {}").format(
                    sql.Identifier(SCHEMA), name,
                    sql.Identifier(column.name), sql.SQL(TYPES[column.kind]),
                )
            )  # fmt: skip
        if new and self.hypertables:
            self._make_hypertable(table)
        elif new:
            self._run(
                sql.SQL("create table {0}.{1} partition of {0}.{2} default").format(
                    sql.Identifier(SCHEMA), sql.Identifier(f"{table.name}_rest"), name
                )
            )

    def _make_hypertable(self, table: Table) -> None:
        self._run(
            "select create_hypertable("
            "%s::regclass, 'time', chunk_time_interval => interval '1 day')",
            f"{SCHEMA}.{table.name}",
        )
        segments = ", ".join(name for name in table.key if name != "time")
        self._run(
            f"alter table {SCHEMA}.{table.name} set (timescaledb.compress,"
            f" timescaledb.compress_segmentby = '{segments}',"
            " timescaledb.compress_orderby = 'time desc')"
        )

    def _make_aggregate(self, name: str) -> None:
        table, selected, grouped = AGGREGATES[name]
        if self.hypertables:
            self._run(
                f"create materialized view if not exists {SCHEMA}.{name}"  # noqa: S608
                " with (timescaledb.continuous, timescaledb.materialized_only = false) as"
                f" select time_bucket('1 hour', time) as hour, {selected}"
                f" from {SCHEMA}.{table} group by 1, {grouped} with no data"
            )
            return
        self._run(
            f"create or replace view {SCHEMA}.{name} as"  # noqa: S608
            f" select date_trunc('hour', time, 'UTC') as hour, {selected}"
            f" from {SCHEMA}.{table} group by 1, {grouped}"
        )

    def _run(self, statement: str | sql.Composed, *values: object) -> None:
        self._connection.execute(statement, values or None)

    def _one(self, statement: str, *values: object) -> object:
        found = self._connection.execute(statement, values or None).fetchone()
        return found[0] if found else None


def _definition(column: Column) -> sql.Composed:
    kind = sql.SQL(TYPES[column.kind] + ("" if column.nullable else " not null"))
    return sql.SQL("{} {}").format(sql.Identifier(column.name), kind)
