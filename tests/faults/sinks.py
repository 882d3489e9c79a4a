"""Sinks that die, lose their store and are told things twice, beside what should be in the store.

The topics are those of half an hour of a whole loop (`poison.told`), with records that come again
and records that follow no contract. A sink reads them in batches of a size that the seed draws; at
each act on its store its process may die, or the store may go away without saying what became of
the act. What is in the store at the end is compared with a recomputation from the topics.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import psycopg

from builders import START_US, offer
from faults.loops import FLEET
from faults.poison import poison, told
from faults.storm import Died
from gpuloop.loop.shells.broker import Broker, Partition, read_between
from gpuloop.loop.shells.clickhouse_schema import DATABASE
from gpuloop.loop.shells.clickhouse_store import ClickHouseStore
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.sink import Limits, Sink, Written
from gpuloop.loop.shells.sink_store import Store, StoreDown
from gpuloop.loop.shells.timescale import TimescaleStore
from gpuloop.loop.shells.timescale_schema import SCHEMA
from gpuloop.schemas.codec import BadInput, Encoded, decode, encode
from gpuloop.schemas.messages import FeatureVector
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams.sinks.analysis import ANALYSIS
from gpuloop.streams.sinks.history import HISTORY
from gpuloop.streams.sinks.tables import Catalogue, Row
from stores import Engine

Act = Callable[[], None]
"""What happens at a point: nothing, a death, or the loss of the store."""

MOST_DEATHS = 60


def nothing() -> None:
    """Let a sink live."""


@dataclass
class Quiet:
    """Watches a sink and stops it when all is written."""

    broker: MemoryBroker
    stop: threading.Event = field(default_factory=threading.Event)
    written_rows: int = 0
    outages: int = 0
    letters: list[str] = field(default_factory=list)
    missing: int = 0

    def written(self, done: Written) -> None:
        self.written_rows += sum(done.rows.values())

    def refused(self, reason: str) -> None:
        self.letters.append(reason)

    def outage(self, why: str, attempt: int, oldest_ms: int | None) -> None:
        self.outages += 1

    def expired(self, part: Partition, missing: int) -> None:
        self.missing += missing

    def turn(self, positions: Mapping[Partition, int], lag: Callable[[], int]) -> None:
        if lag() == 0:
            self.stop.set()


def run(
    broker: MemoryBroker, store: Store, catalogue: Catalogue, limits: Limits | None = None
) -> Quiet:
    """Run a sink until everything is written."""
    watch = Quiet(broker)
    limits = limits or Limits(records=500, linger_s=0.0)
    sink = Sink(
        broker, store, catalogue, name="sink-test", fleet=FLEET, watch=watch, limits=limits,
        chance=lambda: -1.0,  # No waiting: half of nothing.
    )  # fmt: skip
    sink.run(watch.stop)
    return watch


class DyingTimescale(TimescaleStore):
    """PostgreSQL, with something happening around what is done to it."""

    act: Act = staticmethod(nothing)

    def _move(self, *arguments: Any) -> None:
        self.act()
        super()._move(*arguments)
        self.act()

    def _write(self, *arguments: Any) -> None:
        self.act()
        super()._write(*arguments)
        self.act()

    def _open(self, *arguments: Any) -> Any:
        found = super()._open(*arguments)
        self.act()
        return found


class DyingClickHouse(ClickHouseStore):
    """ClickHouse, with something happening around what is done to it."""

    act: Act = staticmethod(nothing)

    def _send(self, *arguments: Any) -> None:
        self.act()
        super()._send(*arguments)
        self.act()

    def _ask(self, *arguments: Any) -> str:
        found = super()._ask(*arguments)
        self.act()
        return found


def misfortune(rng: np.random.Generator, *, dying: float, losing: float) -> Act:
    """Return what may happen at any act."""

    def act() -> None:
        draw = rng.random()
        if draw < dying:
            raise Died
        if draw < dying + losing:
            raise StoreDown("the store went away")

    return act


def survive(
    broker: MemoryBroker, make: Callable[[], Store], catalogue: Catalogue, rng: np.random.Generator
) -> int:
    """Start a sink again and again until everything is written; return how often it died."""
    deaths = 0
    while True:
        store = make()
        if deaths == MOST_DEATHS:
            store.act = nothing  # type: ignore[attr-defined]
        try:
            run(broker, store, catalogue, Limits(records=int(rng.integers(3, 60)), linger_s=0.0))
        except Died:
            store.close()
            deaths += 1
        else:
            return deaths


def topics(seed: int, *, minutes: int = 30, again: float = 0.1) -> MemoryBroker:
    """Return topics on which some records stand twice and some follow no contract."""
    rng = np.random.Generator(np.random.Philox(seed))
    broker = MemoryBroker(wall=lambda: 0)
    for number, minute in enumerate(told()[:minutes]):
        asked = msgspec.structs.replace(offer(at_us=START_US + number * MINUTE_US), fleet=FLEET)
        price = encode("market.offers", "k", asked, event_id=f"offer {number}", source="test")
        for record in (*minute, price, _vector(number)):
            broker.produce([record])
            if rng.random() < again:
                broker.produce([record])
            if rng.random() < 0.05:
                broker.produce([poison(record, rng)])
    return broker


def _vector(minute: int) -> Encoded:
    """Return features of a pool, one of which is not known."""
    tick_us = START_US + minute * MINUTE_US
    vector = FeatureVector(
        fleet=FLEET, pool="a100", job_class="batch", tick_us=tick_us, definitions="0" * 64,
        values=(None, 0.1 * minute), ages_us=(0, minute), quality=(0.0, 1.0),
    )  # fmt: skip
    return encode("insight.features", "k", vector, event_id=f"vector {minute}", source="test")


def recomputed(broker: Broker, catalogue: Catalogue) -> dict[str, dict[Row, Row]]:
    """Return by table and key what the topics say, the last word on each key."""
    found: dict[str, dict[Row, Row]] = {table.name: {} for table in catalogue.tables}
    parts = [part for topic in catalogue.topics for part in broker.partitions(topic)]
    ends = broker.ends(parts)
    for part in parts:
        for record in read_between(broker, part, 0, ends[part]):
            try:
                message = decode(record)
            except BadInput:
                continue
            if message.fleet != FLEET:
                continue
            event_id = record.header("ce_id") or f"{part} {record.offset}"
            for name, rows in catalogue.rows(part.topic, message, event_id).items():
                table = catalogue[name]
                places = [table.names.index(one) for one in table.key]
                for row in rows:
                    found[name][tuple(row[at] for at in places)] = row
    return found


def differences(
    stored: Mapping[str, list[Row]], wanted: Mapping[str, Mapping[Row, Row]]
) -> list[str]:
    """Return how tables differ from what they should hold, a row that is there twice included."""
    found = []
    for name, rows in wanted.items():
        ours = sorted(map(repr, stored[name]))
        theirs = sorted(map(repr, rows.values()))
        if ours != theirs:
            odd = sorted(set(ours) ^ set(theirs))[:1]
            found.append(f"{name}: {len(ours)} rows, not {len(theirs)}: {odd}")
    return found


def utc(value: Any) -> Any:
    """Return a value as the mapping has it: one name for one zone."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


def in_postgres(dsn: str) -> dict[str, list[Row]]:
    """Return every row of every table of history."""
    with psycopg.connect(dsn, options="-c timezone=UTC") as connection:
        return {
            table.name: [
                tuple(map(utc, row))
                for row in connection.execute(
                    f"select {', '.join(table.names)} from {SCHEMA}.{table.name}"
                ).fetchall()
            ]
            for table in HISTORY.tables
        }


def in_clickhouse(engine: Engine, final: str = "final") -> dict[str, list[Row]]:
    """Return every row of every table of analysis, each event once unless `final` is empty."""
    return {
        table.name: [
            tuple(map(utc, row))
            for row in engine.query(
                f"select {', '.join(table.names)} from {DATABASE}.{table.name} {final}"
            )
        ]
        for table in ANALYSIS.tables
    }
