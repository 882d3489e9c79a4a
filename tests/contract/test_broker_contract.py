"""What every broker promises, asked of the one in memory and of Kafka."""

import threading
from collections.abc import Iterator
from time import monotonic

import pytest
from echo import fault

from conftest import Kafka
from gpuloop.loop.shells import kafka as shell
from gpuloop.loop.shells.broker import (
    Broker,
    BrokerError,
    Consumer,
    Partition,
    PositionLost,
    read_between,
    starts,
)
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.schemas.codec import Encoded, Record

FAULTS = Partition("telemetry.faults", 0)


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if request.param == "memory":
        yield MemoryBroker()
        return
    kafka = request.getfixturevalue("kafka")
    found = KafkaBroker(kafka.bootstrap_servers, prefix=kafka.prefix())
    yield found
    found.close()


def read(reader: Consumer, count: int) -> list[Record]:
    records: list[Record] = []
    for _ in range(100):
        if len(records) >= count:
            break
        records += reader.poll(max_records=count - len(records), timeout_s=0.2)
    return records


def test_what_is_written_is_read_back_unchanged_and_in_order(broker: Broker) -> None:
    written = [fault(n) for n in range(50)]
    placed = broker.produce(written)
    assert [place.offset for place in placed] == list(range(50))
    reader = broker.consumer(starts(broker, ["telemetry.faults"]))
    records = read(reader, 50)
    reader.close()
    assert [(r.topic, r.key, r.headers, r.value) for r in records] == [
        (w.topic, w.key, w.headers, w.value) for w in written
    ]
    assert [r.offset for r in records] == list(range(50))
    assert all(r.timestamp_ms > 0 for r in records)


def test_reading_starts_at_the_position_given(broker: Broker) -> None:
    broker.produce([fault(n) for n in range(10)])
    reader = broker.consumer({FAULTS: 7})
    assert [r.offset for r in read(reader, 3)] == [7, 8, 9]
    assert reader.poll(max_records=1, timeout_s=0.05) == []
    broker.produce([fault(10)])
    assert [r.offset for r in read(reader, 1)] == [10]
    reader.close()


def test_a_poll_returns_no_more_than_asked_for(broker: Broker) -> None:
    broker.produce([fault(n) for n in range(10)])
    reader = broker.consumer({FAULTS: 0})
    polled = reader.poll(max_records=4, timeout_s=10.0)
    assert 1 <= len(polled) <= 4
    reader.close()


@pytest.mark.kafka
@pytest.mark.parametrize(("linger_s", "together"), [(0.0, 1), (10.0, 2)])
def test_a_poll_waits_for_more_as_long_as_it_may(
    kafka: Kafka, linger_s: float, together: int
) -> None:
    broker = KafkaBroker(kafka.bootstrap_servers, prefix=kafka.prefix())
    broker.produce([fault(0)])
    reader = broker.consumer({FAULTS: 0})
    later = threading.Timer(1.0, lambda: broker.produce([fault(1)]))
    later.start()
    polled = reader.poll(max_records=2, timeout_s=10.0, linger_s=linger_s)
    later.join()
    reader.close()
    broker.close()
    assert len(polled) == together


@pytest.mark.kafka
def test_a_write_that_is_awaited_does_not_wait_for_others_to_join_it(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shell._PRODUCER, "linger.ms", 5_000)
    broker = KafkaBroker(kafka.bootstrap_servers, prefix=kafka.prefix())
    broker.produce([fault(0)])  # Connects.
    begin = monotonic()
    broker.produce([fault(1)])
    took = monotonic() - begin
    broker.close()
    assert took < 2.5


def test_a_position_outside_the_topic_is_an_error_not_a_jump(broker: Broker) -> None:
    broker.produce([fault(1)])
    reader = broker.consumer({FAULTS: 99})
    with pytest.raises(PositionLost):
        read(reader, 1)
    reader.close()


def test_a_topic_that_does_not_exist_is_an_error(broker: Broker) -> None:
    with pytest.raises(BrokerError):
        broker.partitions("no.such.topic")


def test_beginnings_and_ends_enclose_what_is_there(broker: Broker) -> None:
    assert broker.ends([FAULTS]) == {FAULTS: 0}
    broker.produce([fault(n) for n in range(3)])
    assert broker.beginnings([FAULTS]) == {FAULTS: 0}
    assert broker.ends([FAULTS]) == {FAULTS: 3}
    assert [r.offset for r in read_between(broker, FAULTS, 1, 3)] == [1, 2]


def test_a_key_lands_on_the_partition_that_kafka_chooses(broker: Broker) -> None:
    keys = [f"job-{n}" for n in range(40)]
    records = [
        Encoded(topic="telemetry.jobs", key=k.encode(), headers=(), value=b"x") for k in keys
    ]
    placed = broker.produce(records)
    expected = MemoryBroker().produce(records)
    assert [p.partition for p in placed] == [p.partition for p in expected]
    assert len({p.partition for p in placed}) == 4


def test_a_record_goes_where_its_contract_fixes_the_partition(broker: Broker) -> None:
    frame = Encoded(topic="internal.frames", key=b"-", headers=(), value=b"x", partition=3)
    assert broker.produce([frame])[0].partition == Partition("internal.frames", 3)


def test_a_paused_partition_waits_and_loses_nothing(broker: Broker) -> None:
    jobs = [Partition("telemetry.jobs", number) for number in range(4)]
    broker.produce(
        [
            Encoded(topic="telemetry.jobs", key=b"", headers=(), value=b"x", partition=n % 4)
            for n in range(40)
        ]
    )
    reader = broker.consumer(dict.fromkeys(jobs, 0))
    reader.pause(jobs[:2])
    first = read(reader, 20)
    assert {r.partition for r in first} == {2, 3}
    reader.resume(jobs[:2])
    second = read(reader, 20)
    reader.close()
    assert sorted((r.partition, r.offset) for r in first + second) == [
        (p, o) for p in range(4) for o in range(10)
    ]


def test_a_value_too_large_for_the_topic_is_an_error(broker: Broker) -> None:
    if isinstance(broker, MemoryBroker):
        pytest.skip("memory has no limit")
    with pytest.raises(BrokerError):
        broker.produce([Encoded(topic="audit", key=b"k", headers=(), value=bytes(2 * 1024 * 1024))])


def test_a_cluster_out_of_reach_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuloop.loop.shells.kafka.METADATA_TIMEOUT_S", 0.3)
    nowhere = KafkaBroker("127.0.0.1:1")
    with pytest.raises(BrokerError):
        nowhere.partitions("telemetry.faults")
    nowhere.close()
