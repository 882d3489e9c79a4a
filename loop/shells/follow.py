"""Follow a journal: execute recorded cuts again and check that they say what they said.

Restart and replay are this one act; they differ in where records come from and in what is done
with the outputs.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Protocol

from gpuloop.loop.shells.broker import Broker, BrokerError, Partition, PositionLost
from gpuloop.loop.shells.fold import Moment, encode_outputs, execute, outputs_digest, source_of
from gpuloop.loop.shells.journal import Entry, Saved
from gpuloop.schemas.codec import Encoded, Record
from gpuloop.schemas.component import Component, S
from gpuloop.schemas.messages import Cut
from gpuloop.schemas.messages.internal import Segment

HELD_RECORDS: Final = 5_000
"""Records of one partition read ahead while another is waited for; then it is paused."""


class Source(Protocol):
    """Where the records that a journal names are found again."""

    def take(self, segment: Segment) -> list[Record]:
        """Return the segment's records; compaction may have left fewer than were consumed.

        Segments of one partition are asked for in rising order.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed(Generic[S]):
    """A cut executed again: the component after it, its outputs, and whether they agree."""

    cut: Cut
    saved: Saved[S]
    outputs: list[Encoded]
    agrees: bool


def follow(
    component: Component[S],
    saved: Saved[S],
    cuts: Iterable[Entry],
    source: Source,
    *,
    fleet: str,
    seed: int,
) -> Iterator[Followed[S]]:
    """Execute `cuts` again from `saved` on and yield each with its outputs."""
    name = source_of(fleet, component.name)
    state, positions = saved.state, dict(saved.positions)
    for entry in cuts:
        cut = entry.cut
        records: list[Record] = []
        for segment in cut.segments:
            records += source.take(segment)
            positions[Partition(segment.topic, segment.partition)] = segment.last + 1
        moment = Moment(now_us=cut.now_us, wall_us=cut.wall_us, ticks_us=cut.ticks_us, run=cut.run)
        executed = execute(component, state, records, moment, fleet=fleet, seed=seed)
        state = executed.state
        outputs = encode_outputs(executed.outputs, name)
        yield Followed(
            cut=cut,
            saved=Saved(
                state=state,
                number=cut.number,
                now_us=cut.now_us,
                wall_us=cut.wall_us,
                positions=dict(positions),
                journal_offset=entry.offset + 1,
            ),
            outputs=outputs,
            agrees=outputs_digest(outputs) == cut.outputs_sha256,
        )


class BrokerSource:
    """Finds a journal's records on the broker, reading partitions ahead within a bound."""

    def __init__(
        self, broker: Broker, positions: Mapping[Partition, int], *, patience_s: float = 30.0
    ) -> None:
        self._reader: Final = broker.consumer(positions)
        self._held: Final[dict[Partition, deque[Record]]] = {part: deque() for part in positions}
        self._firsts: Final = dict(positions)
        self._next: Final = dict(positions)
        self._paused: Final[set[Partition]] = set()
        self._patience_s: Final = patience_s

    def take(self, segment: Segment) -> list[Record]:
        """Return the segment's records.

        Raises:
            PositionLost: the partition was opened behind the segment: it has expired.
            BrokerError: the records do not come.

        """
        part = Partition(segment.topic, segment.partition)
        if part not in self._firsts or segment.first < self._firsts[part]:
            raise PositionLost(f"{part} no longer holds offset {segment.first}")
        held = self._held[part]
        taken: list[Record] = []
        while True:
            while held and held[0].offset <= segment.last:
                taken.append(held.popleft())
            if held or self._next[part] > segment.last:
                return taken
            self._read_on(part)

    def _read_on(self, wanted: Partition) -> None:
        if wanted in self._paused:
            self._paused.remove(wanted)
            self._reader.resume([wanted])
        records = self._reader.poll(max_records=1_000, timeout_s=self._patience_s)
        if not records:
            raise BrokerError(f"the journal names records of {wanted} that do not arrive")
        for record in records:
            part = Partition(record.topic, record.partition)
            self._held[part].append(record)
            self._next[part] = record.offset + 1
        full = [
            part
            for part, held in self._held.items()
            if len(held) >= HELD_RECORDS and part != wanted and part not in self._paused
        ]
        if full:
            self._paused.update(full)
            self._reader.pause(full)

    def close(self) -> None:
        """Let go of the partitions."""
        self._reader.close()
