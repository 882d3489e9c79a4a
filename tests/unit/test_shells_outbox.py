"""What waits for Kafka: bounded, in order, each record once, faults first."""

import itertools

import pytest

from gpuloop.loop.shells.broker import BrokerError
from gpuloop.loop.shells.outbox import RECORD_BYTES, Acknowledge, Outbox
from gpuloop.schemas.codec import Encoded


def record(number: int, topic: str = "telemetry.gpu", *, digits: int = 1) -> Encoded:
    return Encoded(topic=topic, key=b"n", headers=(), value=f"{number:0{digits}}".encode())


class Broker:
    """Acknowledges what it was sent when it is polled, unless it is away."""

    def __init__(self) -> None:
        self.away = False
        self.refusal: str | None = None
        self.written: list[int] = []
        self._sent: list[tuple[Encoded, Acknowledge]] = []

    @property
    def in_flight(self) -> int:
        return len(self._sent)

    def send(self, record: Encoded, done: Acknowledge) -> None:
        self._sent.append((record, done))

    def poll(self, timeout_s: float) -> None:
        sent = [] if self.away else self._sent
        self._sent = self._sent if self.away else []
        for one, done in sent:
            self.written.append(int(one.value))
            done(self.refusal)

    def close(self) -> None:
        self._sent = []


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def outbox(broker: Broker) -> Outbox:
    return Outbox(broker, capacity=10, in_flight=4)


def test_what_is_offered_is_sent_at_once_and_acknowledged(broker: Broker, outbox: Outbox) -> None:
    outbox.offer([record(1), record(2)])
    assert (broker.in_flight, outbox.held) == (2, 2)
    outbox.pump(0)
    assert broker.written == [1, 2]
    assert outbox.held == 0
    assert outbox.counted() == ({"telemetry.gpu": 2}, 0)
    assert outbox.counted() == ({}, 0)


def test_an_outage_keeps_the_newest_and_counts_what_gave_way(
    broker: Broker, outbox: Outbox
) -> None:
    broker.away = True
    for number in range(100):
        outbox.offer([record(number)])
        outbox.pump(0)
    assert outbox.held == 14
    assert broker.in_flight == 4
    assert outbox.counted() == ({}, 86)
    broker.away = False
    outbox.drain(1)
    assert broker.written == [0, 1, 2, 3, *range(90, 100)]


def test_no_record_is_sent_a_second_time_however_long_the_outage(
    broker: Broker, outbox: Outbox
) -> None:
    broker.away = True
    outbox.offer([record(number) for number in range(4)])
    for _ in range(50):
        outbox.pump(0)
    assert broker.in_flight == 4


def test_faults_overtake_samples_and_samples_never_push_them_out(
    broker: Broker, outbox: Outbox
) -> None:
    broker.away = True
    outbox.offer([record(number) for number in range(4)])
    outbox.offer([record(1000, "telemetry.faults")])
    outbox.offer([record(number) for number in range(4, 40)])
    broker.away = False
    outbox.drain(1)
    assert broker.written == [0, 1, 2, 3, 1000, *range(30, 40)]
    assert outbox.counted()[1] == 26


def test_what_the_broker_refuses_for_good_ends_the_process(broker: Broker, outbox: Outbox) -> None:
    broker.refusal = "telemetry.gpu: unknown topic"
    outbox.offer([record(1)])
    with pytest.raises(BrokerError, match="unknown topic"):
        outbox.pump(0)


def test_silence_of_the_broker_is_measured_from_the_last_acknowledgement(
    broker: Broker, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 1_000_000)
    monkeypatch.setattr("gpuloop.loop.shells.outbox.monotonic_us", lambda: next(clock))
    assert outbox.stalled_us() == 0
    broker.away = True
    outbox.offer([record(1)])
    assert 0 < outbox.stalled_us() < outbox.stalled_us()
    broker.away = False
    outbox.pump(0)
    assert outbox.stalled_us() == 0


def test_what_cannot_be_written_in_time_at_a_stop_is_counted(
    broker: Broker, outbox: Outbox
) -> None:
    broker.away = True
    outbox.offer([record(1), record(2)])
    assert outbox.drain(0) == 2


def test_nothing_gives_way_while_acknowledgements_have_made_room(
    broker: Broker, outbox: Outbox
) -> None:
    broker.away = True
    outbox.offer([record(number) for number in range(14)])
    broker.away = False
    broker.poll(0)
    outbox.offer([record(14)])
    assert outbox.counted()[1] == 0


def test_large_samples_are_bounded_by_what_they_take_in_memory(broker: Broker) -> None:
    outbox = Outbox(broker, capacity=1_000, in_flight=1, held_bytes=10 * (RECORD_BYTES + 1_000))
    broker.away = True
    large = [record(number, digits=1_000) for number in range(50)]
    outbox.offer(large)
    assert outbox.held == 1 + 10
    assert outbox.counted()[1] == 39
    broker.away = False
    outbox.drain(1)
    assert broker.written == [0, *range(40, 50)]
    broker.away = True
    outbox.offer(large)
    assert outbox.held == 1 + 10
