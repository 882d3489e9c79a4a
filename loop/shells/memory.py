"""A broker in this process's memory, for tests and simulated faults.

It keeps what it is given until it is dropped and places keys as Kafka would. Threads may share it.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import LINGER_S, BrokerError, Partition, Placed, PositionLost
from gpuloop.loop.shells.partition import partition_of
from gpuloop.schemas.catalogue import CATALOGUE, Topic
from gpuloop.schemas.codec import Encoded, Record
from gpuloop.schemas.units import SECOND_US


class MemoryBroker:
    """The topics of the catalogue as lists of records."""

    def __init__(
        self,
        topics: Iterable[Topic] = CATALOGUE.values(),
        *,
        wall: Callable[[], int] = clock.wall_us,
    ) -> None:
        self.changed: Final = threading.Condition()
        self.logs: Final[dict[Partition, list[Record]]] = {
            Partition(topic.name, number): []
            for topic in topics
            for number in range(topic.partitions)
        }
        self._firsts: Final[dict[Partition, int]] = {}
        self._wall: Final = wall

    def produce(self, records: Sequence[Encoded]) -> list[Placed]:
        """Write records in order and return when every one of them is acknowledged."""
        with self.changed:
            placed = [self._append(record) for record in records]
            self.changed.notify_all()
        return placed

    def _append(self, record: Encoded) -> Placed:
        number = record.partition
        if number is None:
            number = partition_of(record.key, len(self.partitions(record.topic)))
        part = Partition(record.topic, number)
        log = self.logs.get(part)
        if log is None:
            raise BrokerError(f"there is no partition {part}")
        offset = self._firsts.get(part, 0) + len(log)
        log.append(
            Record(
                topic=record.topic,
                partition=number,
                offset=offset,
                timestamp_ms=self._wall() // 1000,
                key=record.key,
                headers=record.headers,
                value=record.value,
            )
        )
        return Placed(part, offset)

    def expire(self, part: Partition, before: int) -> None:
        """Forget the records of a partition before an offset, as retention does."""
        with self.changed:
            first = self._firsts.get(part, 0)
            del self.logs[part][: max(before - first, 0)]
            self._firsts[part] = max(before, first)

    def consumer(self, positions: Mapping[Partition, int], *, group: str = "") -> "MemoryConsumer":
        """Return a reader that starts at `positions`."""
        return MemoryConsumer(self, positions)

    def partitions(self, topic: str) -> list[Partition]:
        """Return a topic's partitions; raises `BrokerError` when there is no such topic."""
        found = [part for part in self.logs if part.topic == topic]
        if not found:
            raise BrokerError(f"there is no topic {topic}")
        return found

    def beginnings(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Return the first offset that each partition still holds."""
        with self.changed:
            return {part: self._firsts.get(part, 0) for part in partitions}

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Return the offset that each partition's next record will get."""
        with self.changed:
            return {p: self._firsts.get(p, 0) + len(self.logs[p]) for p in partitions}

    def read(self, part: Partition, offset: int, limit: int) -> list[Record]:
        """Return up to `limit` records from `offset` on; the caller holds `changed`."""
        at = offset - self._firsts.get(part, 0)
        if at < 0 or at > len(self.logs[part]):
            raise PositionLost(f"{part} does not hold offset {offset}")
        return self.logs[part][at : at + limit]

    def close(self) -> None:
        """Do nothing: the records live as long as the object."""


class MemoryConsumer:
    """A reader that takes its partitions in turn, so that none starves."""

    def __init__(self, broker: MemoryBroker, positions: Mapping[Partition, int]) -> None:
        self._broker: Final = broker
        self._positions: Final = dict(positions)
        self._paused: Final[set[Partition]] = set()

    def poll(
        self, *, max_records: int, timeout_s: float, linger_s: float = LINGER_S
    ) -> list[Record]:
        """Return what is there, up to `max_records`; none when `timeout_s` passed."""
        deadline = clock.monotonic_us() + round(timeout_s * SECOND_US)
        with self._broker.changed:
            while True:
                records = self._take(max_records)
                left = deadline - clock.monotonic_us()
                if records or left <= 0:
                    return records
                self._broker.changed.wait(left / SECOND_US)

    def _take(self, max_records: int) -> list[Record]:
        taken: list[Record] = []
        for part in list(self._positions):
            if part in self._paused:
                continue
            found = self._broker.read(part, self._positions[part], max_records - len(taken))
            if found:
                taken += found
                self._positions[part] = self._positions.pop(part) + len(found)
        return taken

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Deliver nothing from these partitions until they are resumed."""
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Deliver from these partitions again, from where they were."""
        self._paused.difference_update(partitions)

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Do nothing: there are no tools to look."""

    def close(self) -> None:
        """Let go of the partitions."""
        self._positions.clear()
