"""Kafka as a broker, through librdkafka.

Writes are idempotent, awaited and placed by `murmur2_random`, so that a key lands on the same
partition whoever writes it. Reads are manual assignments from explicit positions; a position that
the topic no longer holds is an error, never a silent jump.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Final, cast

import confluent_kafka as ck

from gpuloop.loop.shells.broker import LINGER_S, BrokerError, Partition, Placed, PositionLost
from gpuloop.loop.shells.clock import monotonic_us
from gpuloop.schemas.codec import Encoded, Headers, Record
from gpuloop.schemas.units import SECOND_US

log: Final = logging.getLogger("librdkafka")

ACK_TIMEOUT_S: Final = 30.0
METADATA_TIMEOUT_S: Final = 10.0

FETCH_BYTES: Final = 8 * 2**20

Properties = dict[str, str | int | float | bool]

_PRODUCER: Final[Properties] = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",
    "compression.type": "zstd",
    "linger.ms": 2,
    "message.max.bytes": 1_048_576,
    "queue.buffering.max.messages": 50_000,
    "queue.buffering.max.kbytes": 65_536,
    "delivery.timeout.ms": int(ACK_TIMEOUT_S * 1000),
}
_CONSUMER: Final[Properties] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "check.crcs": True,
    "fetch.wait.max.ms": 50,
    "queued.min.messages": 20_000,
    "fetch.queue.backoff.ms": 10,
}
_LOST: Final = frozenset({ck.KafkaError._AUTO_OFFSET_RESET, ck.KafkaError.OFFSET_OUT_OF_RANGE})
_DAMAGED: Final = frozenset({ck.KafkaError._BAD_MSG, ck.KafkaError._BAD_COMPRESSION})
"""librdkafka would ask for such a batch for ever, and its reader would look as if it waited."""
_VALUE: Final = itemgetter(1)
_FATAL: Final = frozenset(
    {
        ck.KafkaError._FATAL,
        ck.KafkaError._AUTHENTICATION,
        ck.KafkaError.UNKNOWN_TOPIC_OR_PART,
        ck.KafkaError._UNKNOWN_TOPIC,
        ck.KafkaError._UNKNOWN_PARTITION,
        ck.KafkaError.TOPIC_AUTHORIZATION_FAILED,
        ck.KafkaError.GROUP_AUTHORIZATION_FAILED,
    }
)

_PASSING: Final = frozenset(
    {
        ck.KafkaError.NOT_LEADER_FOR_PARTITION,
        ck.KafkaError.LEADER_NOT_AVAILABLE,
        ck.KafkaError.UNKNOWN_TOPIC_OR_PART,  # Just created, and not known everywhere yet.
        ck.KafkaError.NOT_COORDINATOR,  # A group's coordinator moves, or loads.
        ck.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        ck.KafkaError.COORDINATOR_NOT_AVAILABLE,
    }
)


class KafkaBroker:
    """A Kafka cluster, seen under a topic prefix; threads may share it, but not its consumers."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        prefix: str = "",
        config: Path | None = None,
        fetch_bytes: int = FETCH_BYTES,
    ) -> None:
        """Reach a cluster; `fetch_bytes`, as compressed, bound what a consumer fetches at once.

        What it holds in memory is that many times what compression saved, and as much again.
        """
        self._fetch: Final[Properties] = {
            "fetch.max.bytes": fetch_bytes,
            "max.partition.fetch.bytes": fetch_bytes // 8,
            "queued.max.messages.kbytes": 2 * fetch_bytes // 1024,
        }
        self._common: Final[Properties] = {
            "bootstrap.servers": bootstrap_servers,
            "client.id": "gpuloop",
            "log.connection.close": False,
            **properties(config),
        }
        self._prefix: Final = prefix
        self._lock: Final = threading.Lock()
        self._lazy_producer: ck.Producer | None = None
        self._lazy_metadata: ck.Consumer | None = None
        self._observers: Final[dict[str, ck.Consumer]] = {}

    def produce(self, records: Sequence[Encoded]) -> list[Placed]:
        """Write records in order and return when every one of them is acknowledged."""
        with self._lock:
            return self._produce(records)

    def _produce(self, records: Sequence[Encoded]) -> list[Placed]:
        producer = self._producer()
        placed: list[Placed | None] = [None] * len(records)
        failed: list[str] = []

        def acknowledge(index: int) -> Callable[[ck.KafkaError | None, ck.Message], None]:
            def on_delivery(error: ck.KafkaError | None, message: ck.Message) -> None:
                topic = records[index].topic
                if error is not None:
                    failed.append(f"{topic}: {error.str()}")
                    return
                at = Partition(topic, message.partition() or 0)
                placed[index] = Placed(at, message.offset() or 0)

            return on_delivery

        deadline = monotonic_us() + round((ACK_TIMEOUT_S + 5) * SECOND_US)
        for index, record in enumerate(records):
            while True:
                try:
                    producer.produce(
                        self._prefix + record.topic,
                        value=record.value,
                        key=record.key,
                        headers=list(record.headers),
                        partition=-1 if record.partition is None else record.partition,
                        on_delivery=acknowledge(index),
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
                    if monotonic_us() > deadline:
                        raise BrokerError("the producer's queue stayed full") from None
                except ck.KafkaException as error:
                    raise BrokerError(f"{record.topic}: {error.args[0].str()}") from None
        try:
            while None in placed and not failed and monotonic_us() < deadline:
                producer.flush(0.1)  # Unlike a poll it sends at once: no record joins these.
        except ck.KafkaException as error:
            raise BrokerError(error.args[0].str()) from None  # Nothing can be written any more.
        if failed:
            raise BrokerError(f"{len(failed)} of {len(records)} writes failed: {failed[0]}")
        done = [place for place in placed if place is not None]
        if len(done) != len(records):
            raise BrokerError(f"{len(records) - len(done)} writes were not acknowledged in time")
        return done

    def consumer(self, positions: Mapping[Partition, int], *, group: str = "") -> "KafkaConsumer":
        """Return a reader that starts at `positions`; `group` only labels it for tools."""
        settings = {
            **self._common, **_CONSUMER, **self._fetch, "group.id": group or "gpuloop-reader",
        }  # fmt: skip
        reader = ck.Consumer(settings, logger=log)
        reader.assign(
            [ck.TopicPartition(self._prefix + p.topic, p.number, at) for p, at in positions.items()]
        )
        return KafkaConsumer(reader, prefix=self._prefix)

    def partitions(self, topic: str) -> list[Partition]:
        """Return a topic's partitions; raises `BrokerError` when there is no such topic."""
        name = self._prefix + topic
        with self._lock:
            try:
                found = self._metadata().list_topics(name, timeout=METADATA_TIMEOUT_S).topics[name]
            except ck.KafkaException as error:
                asked = self._common["bootstrap.servers"]
                raise BrokerError(f"{asked}: topic {name}: {error.args[0].str()}") from None
        if found.error is not None:
            raise BrokerError(f"topic {name}: {found.error.str()}")
        return [Partition(topic, number) for number in sorted(found.partitions)]

    def beginnings(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Return the first offset that each partition still holds."""
        return {part: self._watermarks(part)[0] for part in partitions}

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Return the offset that each partition's next record will get."""
        return {part: self._watermarks(part)[1] for part in partitions}

    def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Return what a consumer group has committed; nothing for partitions it has not."""
        named = {Partition(self._prefix + p.topic, p.number): p for p in partitions}
        asked = [ck.TopicPartition(topic, number) for topic, number in named]
        deadline = monotonic_us() + round(METADATA_TIMEOUT_S * SECOND_US)
        while True:
            try:
                with self._lock:
                    found = self._observer(group).committed(asked, timeout=METADATA_TIMEOUT_S)
            except ck.KafkaException as error:
                if error.args[0].code() in _PASSING and monotonic_us() < deadline:
                    time.sleep(0.1)
                    continue
                raise BrokerError(f"group {group}: {error.args[0].str()}") from None
            return {
                named[Partition(at.topic, at.partition)]: at.offset
                for at in found
                if at.offset >= 0
            }

    def close(self) -> None:
        """Release connections; unacknowledged writes are given up."""
        with self._lock:
            while self._observers:
                self._observers.popitem()[1].close()
            if self._lazy_producer is not None:
                self._lazy_producer.purge()
                self._lazy_producer.flush(1.0)
                self._lazy_producer = None
            if self._lazy_metadata is not None:
                self._lazy_metadata.close()
                self._lazy_metadata = None

    def _watermarks(self, part: Partition) -> tuple[int, int]:
        at = ck.TopicPartition(self._prefix + part.topic, part.number)
        deadline = monotonic_us() + round(METADATA_TIMEOUT_S * SECOND_US)
        while True:
            try:
                with self._lock:
                    found = self._metadata().get_watermark_offsets(at, timeout=METADATA_TIMEOUT_S)
            except ck.KafkaException as error:
                if error.args[0].code() in _PASSING and monotonic_us() < deadline:
                    time.sleep(0.1)
                    continue
                asked = self._common["bootstrap.servers"]
                raise BrokerError(f"{asked}: {part}: {error.args[0].str()}") from None
            if found is None:
                raise BrokerError(f"{part}: no answer within {METADATA_TIMEOUT_S:.0f} s")
            low, high = found
            return low, high

    def _producer(self) -> ck.Producer:
        if self._lazy_producer is None:
            self._lazy_producer = ck.Producer({**self._common, **_PRODUCER}, logger=log)
        return self._lazy_producer

    def _observer(self, group: str) -> ck.Consumer:
        if group not in self._observers:
            settings = {**self._common, "group.id": group}
            self._observers[group] = ck.Consumer(settings, logger=log)
        return self._observers[group]

    def _metadata(self) -> ck.Consumer:
        if self._lazy_metadata is None:
            self._lazy_metadata = ck.Consumer(
                {**self._common, "group.id": "gpuloop-metadata"}, logger=log
            )
        return self._lazy_metadata


class KafkaConsumer:
    """A reader of assigned partitions; not to be shared between threads."""

    def __init__(self, reader: ck.Consumer, *, prefix: str) -> None:
        self._reader: Final = reader
        self._prefix: Final = prefix

    def poll(
        self, *, max_records: int, timeout_s: float, linger_s: float = LINGER_S
    ) -> list[Record]:
        """Return up to `max_records` records, as they arrived; none when `timeout_s` passed."""
        messages = self._reader.consume(1, timeout_s)
        if messages and max_records > 1:
            messages += self._reader.consume(max_records - 1, linger_s)
        return [record for message in messages if (record := self._record(message)) is not None]

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Deliver nothing from these partitions until they are resumed."""
        self._reader.pause(self._named(partitions))

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Deliver from these partitions again, from where they were."""
        self._reader.resume(self._named(partitions))

    def _named(self, partitions: Iterable[Partition]) -> list[ck.TopicPartition]:
        return [ck.TopicPartition(self._prefix + p.topic, p.number) for p in partitions]

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Make positions visible to tools as the group's offsets; nothing else reads them."""
        offsets = [
            ck.TopicPartition(self._prefix + part.topic, part.number, at)
            for part, at in positions.items()
        ]
        if offsets:
            self._reader.commit(offsets=offsets, asynchronous=True)

    def close(self) -> None:
        """Let go of the partitions."""
        self._reader.close()

    def _record(self, message: ck.Message) -> Record | None:
        error = message.error()
        if error is not None:
            if error.code() in _LOST:
                raise PositionLost(f"{message.topic()}: {error.str()}")
            if error.code() in _DAMAGED:
                raise BrokerError(
                    f"{message.topic()}/{message.partition()}: the broker's log is damaged:"
                    f" {error.str()}; bring back a copy, or begin another world"
                )
            if error.fatal() or error.code() in _FATAL:
                raise BrokerError(f"{message.topic()}: {error.str()}")
            return None  # librdkafka retries what is left: connections, leaders, throttling.
        kind, stamp = message.timestamp()
        return Record(
            topic=(message.topic() or "").removeprefix(self._prefix),
            partition=message.partition() or 0,
            offset=message.offset() or 0,
            timestamp_ms=stamp if kind != ck.TIMESTAMP_NOT_AVAILABLE else 0,
            key=_bytes(message.key()),
            headers=_headers(message),
            value=_bytes(message.value()),
        )


def _headers(message: ck.Message) -> Headers:
    """Return a record's headers: none where a name is not UTF-8, as no writer of ours leaves it.

    The broker takes any bytes for a name, and a reader that fell over them would do so for ever.
    The client then returns a list and an error at once, and once the interpreter has specialised
    the call, the error only comes up with the next one, which is why that is within the try.
    """
    try:
        headers = cast(list[tuple[str, bytes | None]], message.headers() or [])
        null = None in map(_VALUE, headers)
    except (UnicodeDecodeError, SystemError):
        return ()
    if null:
        return tuple((name, value or b"") for name, value in headers)
    return cast(Headers, tuple(headers))


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def properties(path: Path | None) -> dict[str, str]:
    """Return the librdkafka properties in a file: `key=value` lines, `#` starts a comment.

    A relative `*.location` is meant from the file's own folder, so that both can be moved.
    """
    if path is None:
        return {}
    lines = [line.strip() for line in path.read_text().splitlines()]
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    found = {pair[0].strip(): pair[1].strip() for pair in pairs}
    places = {
        name: str(path.parent / at)
        for name, at in found.items()
        if name.endswith(".location") and at not in ("", "probe")  # Where librdkafka looks itself.
    }
    return found | places
