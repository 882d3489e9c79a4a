"""Sinks on a real PostgreSQL and ClickHouse's real engine: what is there equals the topics."""

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import psycopg
import pytest

from builders import START_US, offer, pool_state
from faults.loops import FLEET
from faults.poison import hostile
from faults.sinks import differences, in_clickhouse, in_postgres, recomputed, run, topics
from gpuloop.loop.shells import timescale_session
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.clickhouse_schema import DATABASE
from gpuloop.loop.shells.clickhouse_store import ClickHouseStore
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.sink import Limits
from gpuloop.loop.shells.sink_store import Batch, Span, StoreDown
from gpuloop.loop.shells.timescale import TimescaleStore
from gpuloop.loop.shells.timescale_schema import SCHEMA, Keep
from gpuloop.schemas.codec import Encoded, encode
from gpuloop.schemas.messages import Message, Offer
from gpuloop.schemas.messages.state import Feature
from gpuloop.schemas.units import HOUR_US
from gpuloop.streams.sinks.analysis import ANALYSIS
from gpuloop.streams.sinks.history import HISTORY
from gpuloop.streams.sinks.tables import Catalogue, Row, Table
from stores import Engine, Postgres

pytestmark = pytest.mark.stores

DAY_US = 24 * HOUR_US
START = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=START_US)


@pytest.fixture(params=["partitions", "hypertables"])
def dsn(request: pytest.FixtureRequest, postgres_server: Postgres) -> str:
    return postgres_server.database(hypertables=request.param == "hypertables")


@pytest.fixture
def partitions(postgres_server: Postgres) -> str:
    return postgres_server.database(hypertables=False)


def history(dsn: str, *, days: float = 14.0, reader: str = "sink-test") -> TimescaleStore:
    return TimescaleStore(dsn, HISTORY, reader=reader, keep=Keep(days=days))


def analysis(engine: Engine, reader: str = "sink-test") -> ClickHouseStore:
    return ClickHouseStore(
        engine.url, ANALYSIS, reader=reader, keep_days=90, password_file=engine.password_file
    )


def rows(dsn: str, table: Table) -> list[Row]:
    return in_postgres(dsn)[table.name]


def said(topic: str, key: str, message: Message, event_id: str = "e") -> Encoded:
    return encode(topic, key, message, event_id=event_id, source="test")


def test_history_equals_the_topics(dsn: str) -> None:
    broker = topics(1)
    watch = run(broker, history(dsn), HISTORY)
    wanted = recomputed(broker, HISTORY)
    assert all(wanted.values())
    assert differences(in_postgres(dsn), wanted) == []
    assert watch.letters


def test_a_database_without_an_encoding_is_written_all_the_same(postgres_server: Postgres) -> None:
    dsn = postgres_server.database(
        options="template template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'"
    )
    broker = topics(1, minutes=3)
    for _ in range(2):
        run(broker, history(dsn), HISTORY)
    with psycopg.connect(dsn) as connection:
        (rows,) = connection.execute(f"select count(*) from {SCHEMA}.pool_states").fetchone() or (
            0,
        )
    assert rows == len(recomputed(broker, HISTORY)["pool_states"]) > 0


def test_analysis_equals_the_topics_and_no_row_is_there_twice(engine: Engine) -> None:
    broker = topics(1)
    run(broker, analysis(engine), ANALYSIS)
    wanted = recomputed(broker, ANALYSIS)
    assert {name for name, found in wanted.items() if not found} <= {
        "audit_records", "audit_checkpoints", "risks",
    }  # fmt: skip
    assert differences(in_clickhouse(engine), wanted) == []


def test_aggregates_equal_what_they_sum_up(engine: Engine) -> None:
    broker = topics(2)
    run(broker, analysis(engine), ANALYSIS, Limits(records=40, linger_s=0.0))
    spent = f"select pool, sum(total_usd) from {DATABASE}.spend_hours final group by pool"
    earned = f"select pool, sum(total_usd_micros) / 1e6 from {DATABASE}.rewards final group by pool"
    assert sorted(engine.query(spent)) == [
        (pool, pytest.approx(usd)) for pool, usd in sorted(engine.query(earned))
    ]
    for name, table in (
        ("spend_hours", "rewards"), ("utilisation_hours", "pool_states"),
        ("decision_hours", "decisions"), ("outcome_hours", "outcomes"),
    ):  # fmt: skip
        [(counted,)] = engine.query(f"select sum(rows) from {DATABASE}.{name} final")
        [(there,)] = engine.query(f"select count() from {DATABASE}.{table} final")
        assert counted == there > 0, name


def test_hours_of_a_pool_are_what_its_ticks_were(dsn: str) -> None:
    broker = MemoryBroker()
    for minute in range(90):
        state = pool_state(tick_us=START_US + minute * 60_000_000, allocated=minute, fleet=FLEET)
        broker.produce([said("state.pools", "a100", state)])
    run(broker, history(dsn), HISTORY)
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            f"select ticks, gpus_allocated from {SCHEMA}.pool_hours order by hour"
        ).fetchall()
    assert found == [(60, 29.5), (30, 74.5)]


def test_a_table_that_was_thrown_away_is_filled_again_from_its_topic(dsn: str) -> None:
    broker = topics(3, minutes=5)
    run(broker, history(dsn), HISTORY)
    with psycopg.connect(dsn) as connection:
        connection.execute(f"drop table {SCHEMA}.pool_states cascade")
        connection.execute(f"delete from {SCHEMA}.sink_offsets where topic = 'state.pools'")
    run(broker, history(dsn), HISTORY)
    assert differences(in_postgres(dsn), recomputed(broker, HISTORY)) == []
    with psycopg.connect(dsn) as connection:
        assert connection.execute(f"select count(*) from {SCHEMA}.pool_hours").fetchone() != (0,)


def test_a_second_start_changes_nothing(dsn: str, engine: Engine) -> None:
    broker = topics(3, minutes=5)
    for _ in range(2):
        run(broker, history(dsn), HISTORY)
        run(broker, analysis(engine), ANALYSIS)
    assert differences(in_postgres(dsn), recomputed(broker, HISTORY)) == []
    assert differences(in_clickhouse(engine), recomputed(broker, ANALYSIS)) == []


def test_the_sink_is_no_administrator(dsn: str) -> None:
    run(topics(3, minutes=2), history(dsn), HISTORY)
    with psycopg.connect(dsn) as connection:
        (super_user,) = connection.execute(
            "select rolsuper or rolcreatedb or rolcreaterole from pg_roles"
            " where rolname = current_user"
        ).fetchone() or (True,)
        assert super_user is False
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("create schema elsewhere")


def test_what_the_store_refuses_goes_whole_to_the_dead_letters_and_the_rest_is_written(
    dsn: str,
) -> None:
    broker = MemoryBroker()
    for number in range(20):
        one = replace_source(offer(at_us=START_US + number), "\x00" if number == 7 else "fine")
        broker.produce([said("market.offers", "k", one, f"e{number}")])
    watch = run(broker, history(dsn), HISTORY)
    assert watch.letters == ["handler"]
    assert len(rows(dsn, HISTORY["offers"])) == 19
    [letter] = [r for p in broker.partitions("deadletters") for r in broker.logs[p]]
    assert b'"offset":7' in (letter.value or b"")


def test_a_key_that_no_index_takes_does_not_stop_the_sink(dsn: str) -> None:
    name = "".join(map(chr, np.random.default_rng(1).integers(0x10000, 0x1FFFF, 3000)))
    broker = MemoryBroker()
    for number, features in enumerate((name, "utilisation")):
        feature = {features: Feature(value=1.0, age_us=0, quality=1.0)}
        state = pool_state(tick_us=START_US + number, fleet=FLEET, features=feature)
        broker.produce([said("state.pools", "a100", state, f"e{number}")])
    assert run(broker, history(dsn), HISTORY).letters == ["handler"]
    assert len(rows(dsn, HISTORY["pool_features"])) == 1


@pytest.mark.parametrize("kind", ["history", "analysis"])
def test_no_record_however_absurd_stops_a_sink(dsn: str, engine: Engine, kind: str) -> None:
    rng = np.random.default_rng(5)
    catalogue = HISTORY if kind == "history" else ANALYSIS
    broker = MemoryBroker()
    for log in topics(5, minutes=14).logs.values():
        for record in log:
            if record.topic in catalogue.topics and record.value:
                whole = Encoded(
                    topic=record.topic, key=b"k", headers=record.headers, value=record.value
                )
                with contextlib.suppress(msgspec.DecodeError, RecursionError):
                    broker.produce([hostile(whole, rng) for _ in range(4)])
    store = history(dsn) if kind == "history" else analysis(engine)
    watch = run(broker, store, catalogue)
    assert watch.outages == 0
    assert watch.letters
    assert watch.written_rows > 50


def replace_source(found: Offer, source: str) -> Offer:
    return msgspec.structs.replace(found, source=source, fleet=FLEET)


@pytest.mark.parametrize("kind", ["history", "analysis"])
def test_what_expired_unread_is_counted_and_the_rest_is_written(
    dsn: str, engine: Engine, kind: str
) -> None:
    def states(first: int, last: int) -> list[Encoded]:
        return [
            said("state.pools", "a100", pool_state(tick_us=START_US + n, fleet=FLEET), str(n))
            for n in range(first, last)
        ]

    def watched() -> int:
        if kind == "history":
            return run(broker, history(dsn), HISTORY).missing
        return run(broker, analysis(engine), ANALYSIS).missing

    broker, part = MemoryBroker(), Partition("state.pools", 0)
    broker.produce(states(0, 3))
    assert watched() == 0
    broker.produce(states(3, 9))
    broker.expire(part, 5)
    assert watched() == 2
    kept = in_postgres(dsn) if kind == "history" else in_clickhouse(engine)
    ticks = {round((row[0] - START).total_seconds() * 1e6) for row in kept["pool_states"]}
    assert ticks == {0, 1, 2, 5, 6, 7, 8}
    assert watched() == 0


@pytest.mark.parametrize("kind", ["history", "analysis"])
def test_a_topic_that_begins_anew_is_read_from_its_beginning(
    dsn: str, engine: Engine, kind: str
) -> None:
    for first, count in ((0, 5), (100, 2)):
        broker = MemoryBroker()
        for n in range(first, first + count):
            state = pool_state(tick_us=START_US + n, fleet=FLEET)
            broker.produce([said("state.pools", "a100", state, str(n))])
        for _ in range(2):
            if kind == "history":
                run(broker, history(dsn), HISTORY)
            else:
                run(broker, analysis(engine), ANALYSIS)
    kept = in_postgres(dsn) if kind == "history" else in_clickhouse(engine, final="")
    ticks = sorted(round((row[0] - START).total_seconds() * 1e6) for row in kept["pool_states"])
    assert ticks == [0, 1, 2, 3, 4, 100, 101]


def test_a_server_that_stands_still_is_given_up_in_time(
    postgres_server: Postgres, partitions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = topics(3, minutes=2)
    part = Partition("market.offers", 0)
    parts = {part: 0 for topic in HISTORY.topics for part in broker.partitions(topic)}
    store = history(partitions)
    store.open(parts)
    monkeypatch.setattr(timescale_session, "ANSWER_SECONDS", 0.5)
    with postgres_server.standing_still(), pytest.raises(StoreDown, match=r"no answer for 0\.5 s"):
        store.write(Batch(spans={part: Span(0, 1)}, rows={}))
    assert store.open(parts)[part].next == 0
    store.close()


def test_old_days_are_dropped_and_days_to_come_have_room(partitions: str) -> None:
    broker = MemoryBroker()
    for day in range(6):
        state = pool_state(tick_us=START_US + day * DAY_US, fleet=FLEET)
        broker.produce([said("state.pools", "a100", state, str(day))])
    store = history(partitions, days=2.0)
    run(broker, store, HISTORY)
    store.open({part: 0 for topic in HISTORY.topics for part in broker.partitions(topic)})
    store.tend(START_US + 5 * DAY_US)
    store.close()
    kept = sorted(row[0] for row in rows(partitions, HISTORY["pool_states"]))
    assert kept == [START + timedelta(days=day) for day in (3, 4, 5)]
    with psycopg.connect(partitions) as connection:
        names = {
            name
            for (name,) in connection.execute(
                "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid"
                f" where i.inhparent = '{SCHEMA}.pool_states'::regclass"
            ).fetchall()
        }
        rest = connection.execute(f"select count(*) from {SCHEMA}.pool_states_rest").fetchone()
    days = {(START + timedelta(days=day)).strftime("%Y%m%d") for day in range(3, 8)}
    assert names == {f"pool_states_{day}" for day in days} | {"pool_states_rest"}
    assert rest == (0,)


def test_a_row_from_a_far_year_is_kept_and_disturbs_nobody(dsn: str) -> None:
    broker = MemoryBroker()
    broker.produce([said("state.pools", "a100", pool_state(fleet=FLEET), "a")])
    far = replace_source(offer(at_us=START_US + 29_000 * DAY_US), "far")
    broker.produce([said("market.offers", "k", far, "b")])
    store = history(dsn, days=2.0)
    run(broker, store, HISTORY)
    store.open({part: 0 for topic in HISTORY.topics for part in broker.partitions(topic)})
    store.tend(START_US)
    store.close()
    assert len(rows(dsn, HISTORY["offers"])) == 1
    assert len(rows(dsn, HISTORY["pool_states"])) == 1


def test_a_column_that_a_newer_version_adds_is_added(dsn: str, engine: Engine) -> None:
    def older(catalogue: Catalogue) -> Catalogue:
        tables = catalogue.tables
        shorter = replace(tables[0], columns=tables[0].columns[:-1])
        return Catalogue((shorter, *tables[1:]))

    broker = topics(3, minutes=2)
    first = TimescaleStore(dsn, older(HISTORY), reader="sink-test", keep=Keep(days=1))
    parts = {part: 0 for topic in HISTORY.topics for part in broker.partitions(topic)}
    first.open(parts)
    first.close()
    run(broker, history(dsn), HISTORY)
    assert rows(dsn, HISTORY["pool_states"])
    old = ClickHouseStore(
        engine.url, older(ANALYSIS), reader="sink-test", keep_days=9,
        password_file=engine.password_file,
    )  # fmt: skip
    old.open({part: 0 for topic in ANALYSIS.topics for part in broker.partitions(topic)})
    old.close()
    run(broker, analysis(engine), ANALYSIS)
    assert in_clickhouse(engine)["pool_states"]


def test_months_that_are_over_are_dropped(engine: Engine) -> None:
    broker = MemoryBroker()
    for month in range(5):
        state = pool_state(tick_us=START_US + month * 31 * DAY_US, fleet=FLEET)
        broker.produce([said("state.pools", "a100", state, str(month))])
    store = analysis(engine)
    run(broker, store, ANALYSIS)
    store.open({part: 0 for topic in ANALYSIS.topics for part in broker.partitions(topic)})
    store.tend(START_US + 4 * 31 * DAY_US)
    store.close()
    kept = engine.query(f"select toYYYYMM(time) as m from {DATABASE}.pool_states order by m")
    assert [month for (month,) in kept] == [201711, 201712, 201801, 201802]
