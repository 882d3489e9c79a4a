"""Telemetry on its way to Kafka: bounded while the broker is away, in order when it is back.

    offer ─► waiting (bounded, the oldest gives way) ─► in flight (librdkafka) ─► acknowledged

What is in flight may have been written already, so it is never given up and never sent a second
time by us: the idempotent producer retries it until the broker answers, which keeps order and lets
no (boot, seq) appear twice. Faults wait in a line of their own, ahead of samples, and give way only
to newer faults. What a process holds when it is killed is lost: telemetry goes on with the present.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import confluent_kafka as ck

from gpuloop.loop.shells.broker import BrokerError
from gpuloop.loop.shells.clock import monotonic_us
from gpuloop.loop.shells.kafka import properties
from gpuloop.schemas.codec import Encoded
from gpuloop.schemas.units import SECOND_US

log: Final = logging.getLogger("librdkafka")

URGENT: Final = frozenset({"telemetry.faults"})
URGENT_CAPACITY: Final = 1_000
IN_FLIGHT: Final = 500
HELD_BYTES: Final = 64 * 1024 * 1024
RECORD_BYTES: Final = 1_200
"""What a record takes in memory beside its value: its key and eight headers."""

Acknowledge = Callable[[str | None], None]
"""Called once for each record with None, or with why it was not written."""


class Sender(Protocol):
    """Writes records in the background and in order, for as long as it takes."""

    def send(self, record: Encoded, done: Acknowledge) -> None:
        """Take a record; `done` is called from within `poll`."""
        ...

    def poll(self, timeout_s: float) -> None:
        """Let acknowledgements arrive, for at most `timeout_s`."""
        ...

    def close(self) -> None:
        """Give up what is still in flight."""
        ...


class KafkaSender:
    """Sends through librdkafka, which retries without an end."""

    def __init__(
        self, bootstrap_servers: str, *, prefix: str = "", config: Path | None = None
    ) -> None:
        self._prefix: Final = prefix
        settings: dict[str, str | int | float | bool] = {
            "bootstrap.servers": bootstrap_servers,
            "client.id": "gpuloop",
            "log.connection.close": False,
            "reconnect.backoff.max.ms": 2_000,
            **properties(config),
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "compression.type": "zstd",
            "linger.ms": 5,
            "delivery.timeout.ms": 0,  # Never: what is in flight may have been written.
        }
        self._producer: Final = ck.Producer(settings, logger=log)

    def send(self, record: Encoded, done: Acknowledge) -> None:
        """Take a record; `done` is called from within `poll`."""

        def delivered(error: ck.KafkaError | None, message: ck.Message) -> None:
            done(None if error is None else f"{record.topic}: {error.str()}")

        try:
            self._producer.produce(
                self._prefix + record.topic,
                value=record.value,
                key=record.key,
                headers=list(record.headers),
                on_delivery=delivered,
            )
        except ck.KafkaException as error:
            raise BrokerError(f"{record.topic}: {error.args[0].str()}") from None

    def poll(self, timeout_s: float) -> None:
        """Let acknowledgements arrive, for at most `timeout_s`."""
        self._producer.poll(timeout_s)

    def close(self) -> None:
        """Give up what is still in flight."""
        self._producer.purge()
        self._producer.flush(1.0)


class Outbox:
    """What was said and not yet acknowledged. Any thread may offer; one thread pumps."""

    def __init__(
        self,
        sender: Sender,
        *,
        capacity: int,
        in_flight: int = IN_FLIGHT,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        """Let at most `capacity` samples wait, in at most `held_bytes` of memory."""
        self._sender: Final = sender
        self._capacity: Final = capacity
        self._bytes_left = held_bytes
        self._in_flight_most: Final = in_flight
        self._lock: Final = threading.Lock()
        self._samples: Final[deque[Encoded]] = deque()
        self._urgent: Final[deque[Encoded]] = deque(maxlen=URGENT_CAPACITY)
        self._in_flight = 0
        self._since_us: int | None = None
        self._failed: str | None = None
        self._written: Counter[str] = Counter()
        self._dropped = 0

    @property
    def held(self) -> int:
        """Return how many records are not acknowledged yet."""
        with self._lock:
            return self._held()

    def stalled_us(self) -> int:
        """Return for how long nothing was acknowledged although something should have been."""
        with self._lock:
            return 0 if self._since_us is None else monotonic_us() - self._since_us

    def offer(self, records: Sequence[Encoded]) -> None:
        """Take records in order; when full, the oldest that waits makes room and is counted."""
        with self._lock:
            for record in records:
                if record.topic in URGENT:
                    self._dropped += len(self._urgent) == URGENT_CAPACITY
                    self._urgent.append(record)
                else:
                    self._keep(record)
            self._hand_over()

    def pump(self, timeout_s: float) -> None:
        """Let acknowledgements arrive for up to `timeout_s`, and send what waits.

        Raises:
            BrokerError: the broker refuses for good, as it does a topic that is not there.

        """
        self._sender.poll(timeout_s)
        with self._lock:
            if self._failed is not None:
                raise BrokerError(self._failed)
            self._hand_over()

    def counted(self) -> tuple[dict[str, int], int]:
        """Return what was written, by topic, and how much was dropped, since the last call."""
        with self._lock:
            written, dropped = dict(self._written), self._dropped
            self._written.clear()
            self._dropped = 0
            return written, dropped

    def drain(self, timeout_s: float) -> int:
        """Send what is left, for at most `timeout_s`; return how many records remain unwritten."""
        until_us = monotonic_us() + round(timeout_s * SECOND_US)
        while self.held and monotonic_us() < until_us:
            self.pump(0.05)
        return self.held

    def close(self) -> None:
        """Give up what is not written."""
        self._sender.close()

    def _keep(self, sample: Encoded) -> None:
        """Take a sample into the line; nothing gives way while there is room further on."""
        size = _size(sample)
        if self._is_full(size):
            self._hand_over()
        while self._samples and self._is_full(size):
            self._bytes_left += _size(self._samples.popleft())
            self._dropped += 1
        self._samples.append(sample)
        self._bytes_left -= size

    def _is_full(self, size: int) -> bool:
        return len(self._samples) >= self._capacity or self._bytes_left < size

    def _held(self) -> int:
        return self._in_flight + len(self._urgent) + len(self._samples)

    def _hand_over(self) -> None:
        while self._in_flight < self._in_flight_most and (self._urgent or self._samples):
            if self._urgent:
                record = self._urgent.popleft()
            else:
                record = self._samples.popleft()
                self._bytes_left += _size(record)
            self._sender.send(record, self._acknowledgement(record.topic))
            self._in_flight += 1
            if self._since_us is None:
                self._since_us = monotonic_us()

    def _acknowledgement(self, topic: str) -> Acknowledge:
        def acknowledge(error: str | None) -> None:
            with self._lock:
                self._in_flight -= 1
                if error is not None:
                    self._failed = error
                    return
                self._written[topic] += 1
                self._since_us = monotonic_us() if self._held() else None

        return acknowledge


def _size(record: Encoded) -> int:
    return RECORD_BYTES + len(record.value)
