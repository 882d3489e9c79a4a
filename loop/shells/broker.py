"""What a shell needs of a log of records, and nothing that only one broker can do.

Topics are named as in the catalogue; a prefix is the implementation's business. Positions are
always explicit: no shell relies on a group's committed offsets to know where it was. Two
implementations, in memory and Kafka, are held to one contract by `tests/contract`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from gpuloop.schemas.codec import Encoded, Record
from gpuloop.schemas.errors import Explained

LINGER_S: Final = 0.01


class Partition(NamedTuple):
    """One partition of a topic of the catalogue."""

    topic: str
    number: int

    def __str__(self) -> str:
        """Return `topic/number`, which `parse` reads."""
        return f"{self.topic}/{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Partition":
        """Return the partition written as `topic/number`."""
        topic, _, number = text.rpartition("/")
        return cls(topic, int(number))


class Placed(NamedTuple):
    """Where a record was written."""

    partition: Partition
    offset: int


class BrokerError(Explained):
    """The broker did not do what was asked; whether a write took place is unknown."""


class PositionLost(BrokerError):
    """A position lies outside what the topic still holds: input has expired or was deleted."""


class Consumer(Protocol):
    """A reader of some partitions from explicit positions, in offset order per partition."""

    def poll(
        self, *, max_records: int, timeout_s: float, linger_s: float = LINGER_S
    ) -> list[Record]:
        """Return up to `max_records` records, as they arrived; none when `timeout_s` passed.

        Once there is one, more are awaited for at most `linger_s`; at 0 what is there is all.

        Raises:
            PositionLost: a position is outside its partition.
            BrokerError: the broker cannot be read.

        """
        ...

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Deliver nothing from these partitions until they are resumed."""
        ...

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Deliver from these partitions again, from where they were."""
        ...

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Make positions visible to tools as the group's offsets; nothing else reads them."""
        ...

    def close(self) -> None:
        """Let go of the partitions."""
        ...


class Broker(Protocol):
    """A log of records by topic and partition."""

    def produce(self, records: Sequence[Encoded]) -> list[Placed]:
        """Write records in order and return when every one of them is acknowledged.

        Raises:
            BrokerError: not all were acknowledged; any of them may have been written.

        """
        ...

    def consumer(self, positions: Mapping[Partition, int], *, group: str = "") -> Consumer:
        """Return a reader that starts at `positions`; `group` only labels it for tools."""
        ...

    def partitions(self, topic: str) -> list[Partition]:
        """Return a topic's partitions; raises `BrokerError` when there is no such topic."""
        ...

    def beginnings(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Return the first offset that each partition still holds."""
        ...

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Return the offset that each partition's next record will get."""
        ...

    def close(self) -> None:
        """Release connections; unacknowledged writes are given up."""
        ...


def read_between(
    broker: Broker, part: Partition, first: int, end: int, *, patience_s: float = 30.0
) -> Iterator[Record]:
    """Yield the records of a partition in [first, end), fewer where compaction left gaps.

    Raises:
        BrokerError: nothing came for `patience_s` and the end was not reached.

    """
    if first >= end:
        return
    reader = broker.consumer({part: first})
    try:
        while first < end:
            records = reader.poll(max_records=500, timeout_s=patience_s)
            if not records:
                raise BrokerError(f"{part}: nothing after offset {first}, expected up to {end}")
            for record in records:
                first = record.offset + 1
                if record.offset < end:
                    yield record
    finally:
        reader.close()


def starts(broker: Broker, topics: Sequence[str]) -> dict[Partition, int]:
    """Return the beginning of every partition of `topics`."""
    return broker.beginnings([part for topic in topics for part in broker.partitions(topic)])
