"""History on TimescaleDB: hypertables, hours that follow their rows, compression, retention.

What any PostgreSQL must do as well is in `test_sinks_stores.py`, which runs on both. These need a
PostgreSQL that has the extension (CONTRIBUTING.md) and are skipped elsewhere.
"""

import logging
from collections.abc import Iterable
from typing import Any

import msgspec
import psycopg
import pytest

from builders import START_US, offer, pool_state
from faults.loops import FLEET
from faults.sinks import differences, in_postgres, recomputed, run, topics
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.sink import Limits
from gpuloop.loop.shells.timescale import TimescaleStore
from gpuloop.loop.shells.timescale_schema import SCHEMA, Keep
from gpuloop.loop.shells.timescale_upkeep import MOST_CHUNKS
from gpuloop.schemas.codec import encode
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.streams.sinks.history import HISTORY
from stores import Postgres

pytestmark = pytest.mark.stores

DAY_US = 24 * HOUR_US
HOURS = "hour, fleet, pool, gpus_allocated, queued_gpus_max, arrived_gpus, ticks"
RECOMPUTED = (
    "select date_trunc('hour', time, 'UTC') as hour, fleet, pool, avg(gpus_allocated)::float8,"
    " max(queued_gpus), sum(arrived_gpus)::bigint, count(*)"
    f" from {SCHEMA}.pool_states group by 1, 2, 3 order by 1, 2, 3"
)


@pytest.fixture
def dsn(postgres_server: Postgres) -> str:
    return postgres_server.database(hypertables=True)


def history(dsn: str, *, days: float = 14.0) -> TimescaleStore:
    return TimescaleStore(dsn, HISTORY, reader="sink-test", keep=Keep(days=days))


def asked(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, options="-c timezone=UTC") as connection:
        return connection.execute(statement).fetchall()


def tended(dsn: str, broker: MemoryBroker, fleet_us: int, *, days: float = 14.0) -> None:
    """Do the upkeep of one moment of fleet time, as a sink that has just started."""
    store = history(dsn, days=days)
    store.open({part: 0 for topic in HISTORY.topics for part in broker.partitions(topic)})
    store.tend(fleet_us)
    store.close()


def ticks(broker: MemoryBroker, times_us: Iterable[int], *, allocated: int = 3) -> None:
    for at_us in times_us:
        state = pool_state(tick_us=at_us, allocated=allocated + at_us % 7, fleet=FLEET)
        said = encode("state.pools", "a100", state, event_id=str(at_us), source="test")
        broker.produce([said])


def offers(broker: MemoryBroker, times_us: Iterable[int]) -> None:
    for at_us in times_us:
        asked_for = msgspec.structs.replace(offer(at_us=at_us), fleet=FLEET)
        said = encode("market.offers", "k", asked_for, event_id=str(at_us), source="test")
        broker.produce([said])


def days(first: int, last: int) -> Iterable[int]:
    """Return three ticks of every second hour of some days."""
    for day in range(first, last):
        for hour in range(0, 24, 2):
            for minute in (0, 20, 40):
                yield START_US + day * DAY_US + hour * HOUR_US + minute * MINUTE_US


def hours_that_differ(dsn: str) -> set[tuple[Any, ...]]:
    """Return hours that are not what the rows say, and those the rows say otherwise."""
    there = asked(dsn, f"select {HOURS} from {SCHEMA}.pool_hours order by 1, 2, 3")
    assert there
    return set(there) ^ set(asked(dsn, RECOMPUTED))


def compressed(dsn: str) -> list[bool]:
    found = asked(
        dsn,
        "select is_compressed from timescaledb_information.chunks"
        " where hypertable_name = 'pool_states' order by range_start",
    )
    return [one for (one,) in found]


def test_every_table_is_a_hypertable_and_every_aggregate_a_continuous_one(dsn: str) -> None:
    broker = topics(1, minutes=3)
    for _ in range(2):
        run(broker, history(dsn), HISTORY)
    assert asked(dsn, "select count(*) from timescaledb_information.hypertables") == [
        (len(HISTORY.tables),)
    ]
    assert asked(dsn, "select view_name from timescaledb_information.continuous_aggregates") == [
        ("pool_hours",), ("feature_hours",), ("node_hours",),
    ]  # fmt: skip
    assert asked(dsn, f"select count(*), bool_and(hypertables) from {SCHEMA}.migrations") == [
        (1, True)
    ]


def test_hours_are_what_their_rows_say_before_and_after_they_are_computed(dsn: str) -> None:
    broker = MemoryBroker()
    ticks(broker, days(0, 4))
    run(broker, history(dsn), HISTORY)
    assert hours_that_differ(dsn) == set()
    tended(dsn, broker, START_US + 3 * DAY_US + 23 * HOUR_US)
    assert hours_that_differ(dsn) == set()


def test_late_rows_enter_compressed_days_and_their_hours_follow(dsn: str) -> None:
    broker = MemoryBroker()
    ticks(broker, days(0, 5))
    run(broker, history(dsn), HISTORY)
    now_us = START_US + 5 * DAY_US
    tended(dsn, broker, now_us)
    assert compressed(dsn) == [True, True, True, False, False]
    known = [at for at in days(1, 2) if at % 2 == 0]
    ticks(broker, known, allocated=900)  # Said anew.
    ticks(broker, [at + MINUTE_US for at in days(0, 2)], allocated=700)  # Never heard of.
    run(broker, history(dsn), HISTORY)
    assert differences(in_postgres(dsn), recomputed(broker, HISTORY)) == []
    tended(dsn, broker, now_us)
    assert hours_that_differ(dsn) == set()
    assert compressed(dsn) == [True, True, True, False, False]
    assert differences(in_postgres(dsn), recomputed(broker, HISTORY)) == []


def test_hours_go_with_the_days_that_are_dropped(dsn: str) -> None:
    broker = MemoryBroker()
    ticks(broker, days(0, 6))
    run(broker, history(dsn), HISTORY)
    store = history(dsn, days=3.0)
    store.open({part: 0 for topic in HISTORY.topics for part in broker.partitions(topic)})
    for day in (5, 6, 7):
        store.tend(START_US + day * DAY_US)
        assert hours_that_differ(dsn) == set()
    first = asked(dsn, f"select min(time) from {SCHEMA}.pool_states")
    assert first == asked(dsn, f"select min(hour) from {SCHEMA}.pool_hours")
    assert len(compressed(dsn)) == 2
    store.tend(START_US + 40 * DAY_US)
    store.close()
    assert asked(dsn, "select chunk_name from timescaledb_information.chunks") == []


def test_late_rows_get_in_however_much_must_be_unpacked_for_them(dsn: str) -> None:
    broker = topics(1, minutes=1)
    run(broker, history(dsn), HISTORY)
    with psycopg.connect(dsn) as connection:
        columns = ", ".join(name for name in HISTORY["node_states"].names[4:])
        connection.execute(
            f"insert into {SCHEMA}.node_states (time, fleet, node, pool, {columns})"
            f" select time + interval '1 ms' * i, fleet, 'n' || n, pool, {columns}"
            f" from (select * from {SCHEMA}.node_states limit 1) one,"
            " generate_series(1, 900) i, generate_series(1, 120) n"
        )
    tended(dsn, broker, START_US + 5 * DAY_US)
    store = history(dsn)
    store.open({})
    assert store._connection is not None
    store._connection.execute(
        f"update {SCHEMA}.node_states set boot = boot + 1 where node like 'n%%'"
    )
    store.close()


def test_rows_of_many_days_are_written_and_dropped_a_few_days_at_a_time(dsn: str) -> None:
    broker, count = MemoryBroker(), 2 * MOST_CHUNKS + 9
    offers(broker, (START_US + day * DAY_US for day in range(count)))
    watch = run(broker, history(dsn), HISTORY, Limits(records=1_000, linger_s=0.0))
    assert watch.letters == []
    written = asked(dsn, f"select count(*) from {SCHEMA}.offers group by xmin::text")
    assert sum(n for (n,) in written) == count
    assert max(n for (n,) in written) <= MOST_CHUNKS
    tended(dsn, broker, START_US + (count + 20) * DAY_US)
    assert asked(dsn, f"select count(*) from {SCHEMA}.offers") == [(0,)]


def test_less_than_an_hour_may_be_kept(dsn: str) -> None:
    broker = MemoryBroker()
    ticks(broker, days(0, 2))
    run(broker, history(dsn, days=0.02), HISTORY)
    tended(dsn, broker, START_US + 2 * DAY_US + HOUR_US, days=0.02)
    assert asked(dsn, f"select count(*) from {SCHEMA}.pool_hours") == [(0,)]


def test_tables_made_without_the_extension_stay_and_are_told_of_when_it_comes(
    postgres_server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    postgres_server.database(hypertables=True)
    dsn, broker = postgres_server.database(hypertables=False), MemoryBroker()
    ticks(broker, days(0, 2))
    run(broker, history(dsn), HISTORY)
    postgres_server.admit(dsn.rpartition("/")[2])
    ticks(broker, days(2, 4))
    with caplog.at_level(logging.WARNING):
        run(broker, history(dsn), HISTORY)
        tended(dsn, broker, START_US + 4 * DAY_US)
    assert "made without it" in caplog.text
    assert differences(in_postgres(dsn), recomputed(broker, HISTORY)) == []
    assert hours_that_differ(dsn) == set()


def test_tables_that_were_all_thrown_away_are_made_anew_as_hypertables(
    postgres_server: Postgres,
) -> None:
    postgres_server.database(hypertables=True)
    dsn, broker = postgres_server.database(hypertables=False), topics(3, minutes=3)
    run(broker, history(dsn), HISTORY)
    postgres_server.admit(dsn.rpartition("/")[2])
    with psycopg.connect(dsn) as connection:
        for table in HISTORY.tables:
            connection.execute(f"drop table {SCHEMA}.{table.name} cascade")
        connection.execute(f"delete from {SCHEMA}.sink_offsets")
    run(broker, history(dsn), HISTORY)
    assert asked(dsn, "select count(*) from timescaledb_information.hypertables") == [
        (len(HISTORY.tables),)
    ]
    assert differences(in_postgres(dsn), recomputed(broker, HISTORY)) == []
