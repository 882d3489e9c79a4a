"""Promise 8: sinks equal recomputation; what TimescaleDB's and ClickHouse's sinks keep.

On a real PostgreSQL and ClickHouse's real engine. A sink reads half an hour of topics, its process
dies between any two acts on its store, the store goes away without saying what became of an act,
records come again, and some follow no contract. What is in the tables at the end is what the topics
say, no row twice; what was refused is on the dead letters. With SIGKILL on Kafka:
`tests/integration/test_sinks_killed.py`. What our own processes keep: `test_promise_08_stores.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from builders import offer
from faults.dead import is_refused, vanished
from faults.guards import Guard, line, value, violations
from faults.sinks import (
    DyingClickHouse,
    DyingTimescale,
    differences,
    in_clickhouse,
    in_postgres,
    misfortune,
    recomputed,
    survive,
    topics,
)
from gpuloop.loop.shells import clickhouse_schema
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.clickhouse_schema import DATABASE
from gpuloop.loop.shells.clickhouse_store import ClickHouseStore
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.sink import Sink
from gpuloop.loop.shells.sink_store import Batch, Fenced, Span
from gpuloop.loop.shells.timescale import TimescaleStore
from gpuloop.loop.shells.timescale_schema import Keep
from gpuloop.streams.sinks.analysis import ANALYSIS
from gpuloop.streams.sinks.history import HISTORY
from gpuloop.streams.sinks.tables import Catalogue
from stores import Engine, Postgres

pytestmark = pytest.mark.stores
MINUTES = 8
DYING, LOSING = 0.06, 0.06


@dataclass
class Stores:
    """The servers of this session."""

    postgres: Postgres
    engine: Engine


FOUND: list[Stores] = []
"""Filled by the fixture: a check is a function of its seed alone."""


@pytest.fixture(autouse=True, scope="module")
def stores(postgres_server: Postgres, clickhouse_engine: Engine) -> Iterator[None]:
    """Have both servers at hand."""
    FOUND.append(Stores(postgres_server, clickhouse_engine))
    yield
    FOUND.clear()


def refused(broker: MemoryBroker, catalogue: Catalogue) -> list[str]:
    """Return what should be on the dead letters and is not."""
    bad = [
        record
        for topic in catalogue.topics
        for part in broker.partitions(topic)
        for record in broker.logs[part]
        if is_refused(record)
    ]
    assert bad
    return vanished(broker, bad)


def history(seed: int, *, dying: float = DYING, losing: float = LOSING) -> tuple[list[str], int]:
    """Return how history differs from the topics after a hard life, and how often it died."""
    rng = np.random.Generator(np.random.Philox(seed))
    dsn, broker = FOUND[0].postgres.database(), topics(seed, minutes=MINUTES)
    act = misfortune(rng, dying=dying, losing=losing)

    def make() -> DyingTimescale:
        store = DyingTimescale(dsn, HISTORY, reader="sink-test", keep=Keep(days=14))
        store.act = act
        return store

    deaths = survive(broker, make, HISTORY, rng)
    found = differences(in_postgres(dsn), recomputed(broker, HISTORY))
    return found + refused(broker, HISTORY), deaths


def analysis(seed: int, *, dying: float = DYING, losing: float = LOSING) -> tuple[list[str], int]:
    """Return how the analysis differs from the topics, rows that are there twice included."""
    rng = np.random.Generator(np.random.Philox(seed))
    again = 0.1 * (seed % 2)
    engine, broker = FOUND[0].engine, topics(seed, minutes=MINUTES, again=again)
    engine.empty()
    engine.query("system stop merges")
    act = misfortune(rng, dying=dying, losing=losing)

    def make() -> DyingClickHouse:
        store = DyingClickHouse(
            engine.url, ANALYSIS, reader="sink-test", keep_days=90,
            password_file=engine.password_file,
        )  # fmt: skip
        store.act = act
        return store

    deaths = survive(broker, make, ANALYSIS, rng)
    found = differences(in_clickhouse(engine), recomputed(broker, ANALYSIS))
    found += [] if again else inserted_twice(engine, broker)
    return found + aggregates(engine) + refused(broker, ANALYSIS), deaths


def inserted_twice(engine: Engine, broker: MemoryBroker) -> list[str]:
    """Return tables that hold more rows than there are events, before the server merges any."""
    wanted = recomputed(broker, ANALYSIS)
    stored = in_clickhouse(engine, final="")
    return [
        f"{name}: {len(stored[name])} rows were inserted for {len(rows)} events"
        for name, rows in wanted.items()
        if len(stored[name]) > len(rows)
    ]


def aggregates(engine: Engine) -> list[str]:
    """Return aggregates that count other rows than their tables have."""
    found = []
    for name, table in (
        ("spend_hours", "rewards"), ("utilisation_hours", "pool_states"),
        ("decision_hours", "decisions"), ("outcome_hours", "outcomes"),
    ):  # fmt: skip
        [(counted,)] = engine.query(f"select sum(rows) from {DATABASE}.{name} final")
        [(there,)] = engine.query(f"select count() from {DATABASE}.{table} final")
        if counted != there:
            found.append(f"{name} counts {counted} rows, {table} has {there}")
    return found


def check_history(seed: int) -> list[str]:
    """Return how history differs from the topics."""
    return history(seed)[0]


def check_analysis(seed: int) -> list[str]:
    """Return how the analysis differs from the topics."""
    return analysis(seed)[0]


def test_history_equals_recomputation() -> None:
    assert violations(check_history, range(12)) == []


def test_analysis_equals_recomputation() -> None:
    assert violations(check_analysis, range(6)) == []


def test_a_zombie_writes_nothing_after_its_successor() -> None:
    assert check_zombies(0) == []


def test_there_is_something_to_lose_and_the_process_dies() -> None:
    """Without deaths, or without rows, nothing would be promised."""
    assert history(0)[1] >= 3
    assert analysis(0)[1] >= 3


def check_zombies(seed: int) -> list[str]:
    """Return what a process did to a database after its successor wrote to it."""
    part, dsn = Partition("market.offers", 0), FOUND[0].postgres.database()
    older, newer = (
        TimescaleStore(dsn, HISTORY, reader="sink-test", keep=Keep(days=14)) for _ in range(2)
    )
    older.open({part: 0})
    newer.open({part: 0})
    prices = {store: price for price, store in enumerate((newer, older), start=1)}
    fenced = []
    for store, usd in prices.items():
        rows = HISTORY.rows(part.topic, offer(usd=usd), "e")
        try:
            store.write(Batch(spans={part: Span(0, 1)}, rows={part: rows}))
        except Fenced:
            fenced.append(usd)
        store.close()
    [row] = in_postgres(dsn)["offers"]
    return [] if fenced == [2] and 1_000_000 in row else [f"a zombie wrote {row}"]


GUARDS = [
    Guard(
        "rows and positions are one transaction",
        line(
            TimescaleStore._write,
            ("        self._move(cursor, batch)", "        pass"),
            ("with connection.transaction(), connection.cursor() as cursor:",
             "with connection.cursor() as cursor:\n"
             "        self._move(cursor, batch)\n"
             "    with connection.transaction(), connection.cursor() as cursor:"),
        ),
        check_history,
    ),
    Guard(
        "positions move only from where a batch begins",
        line(TimescaleStore._move, ('" and o.next = v.first"', '" and v.first >= 0"')),
        check_zombies,
        seeds=range(1),
    ),
    Guard(
        "what is refused is laid aside",
        line(Sink._lay_aside, ("if refused:", "if False:")),
        check_history,
    ),
    Guard(
        "what was begun is finished in the same span",
        line(Sink._go_on, ("if stands.begun is not None", "if False")),
        check_analysis,
        seeds=range(0, 20, 2),
    ),
    Guard(
        "a span is done only after its rows",
        line(ClickHouseStore.write,
             ("self._note(BEGUN, batch.spans)", "self._note(DONE, batch.spans)")),
        check_analysis,
    ),
    Guard(
        "the server remembers what was inserted",
        value(clickhouse_schema, "WINDOW", 0),
        check_analysis,
        seeds=range(0, 20, 2),
    ),
]  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
