"""What a component leaves behind to be restarted and replayed from: cuts and snapshots.

A journal is the records of one component on `internal.journal`, numbered from 1. The first record
of a number is the truth: a process that finds another's there has been replaced. A snapshot holds
the state after cut `number`; number 0 is the state before any input.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from gpuloop.loop.shells.broker import Broker, Partition, read_between
from gpuloop.loop.shells.fold import Moment, outputs_digest, source_of
from gpuloop.schemas.codec import BadInput, Encoded, Record, decode, encode
from gpuloop.schemas.component import Component, S, load, save
from gpuloop.schemas.errors import Explained
from gpuloop.schemas.identity import derived_event_id, sha256_of
from gpuloop.schemas.messages import Cut, Message, Snapshot
from gpuloop.schemas.messages.internal import Segment

JOURNAL: Final = Partition("internal.journal", 0)
SNAPSHOTS: Final = Partition("internal.snapshots", 0)
SNAPSHOT_CHUNK_BYTES: Final = 512 * 1024

log: Final = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)


class JournalBroken(Explained):
    """A journal misses a cut, or another process has gone on with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Generic[S]):
    """A component as it was after cut `number`, and where to go on from."""

    state: S
    number: int
    now_us: int
    wall_us: int
    positions: dict[Partition, int]
    journal_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A cut and where its journal record stands."""

    cut: Cut
    offset: int


def segments_of(records: Sequence[Record]) -> tuple[Segment, ...]:
    """Return the runs of one partition each that `records` consist of, in their order."""
    segments: list[Segment] = []
    for record in records:
        last = segments[-1] if segments else None
        if last is None or (last.topic, last.partition) != (record.topic, record.partition):
            last = Segment(
                topic=record.topic,
                partition=record.partition,
                first=record.offset,
                last=record.offset,
            )
            segments.append(last)
        segments[-1] = msgspec.structs.replace(last, last=record.offset)
    return tuple(segments)


def cut_of(
    records: Sequence[Record],
    outputs: Sequence[Encoded],
    moment: Moment,
    *,
    fleet: str,
    component: str,
    run: str,
    number: int,
) -> Cut:
    """Return the journal's account of one executed cut."""
    return Cut(
        fleet=fleet,
        component=component,
        run=run,
        number=number,
        now_us=moment.now_us,
        wall_us=moment.wall_us,
        segments=segments_of(records),
        ticks_us=moment.ticks_us,
        outputs=len(outputs),
        outputs_sha256=outputs_digest(outputs),
    )


def encode_cut(cut: Cut) -> Encoded:
    """Return the journal record of a cut."""
    return encode(
        JOURNAL.topic,
        cut.component,
        cut,
        event_id=sha256_of(JOURNAL.topic, cut.fleet, cut.component, cut.run, str(cut.number)),
        source=source_of(cut.fleet, cut.component),
        time_us=cut.now_us,
    )


def encode_snapshot(component: Component[S], saved: Saved[S], *, fleet: str) -> list[Encoded]:
    """Return a snapshot as records: as many chunks as its size needs."""
    state = save(saved.state)
    digest = hashlib.sha256(state).hexdigest()
    size = SNAPSHOT_CHUNK_BYTES
    parts = [state[i : i + size] for i in range(0, len(state), size)] or [b""]
    return [
        encode(
            SNAPSHOTS.topic,
            component.name,
            Snapshot(
                fleet=fleet,
                component=component.name,
                state_version=component.state_version,
                number=saved.number,
                now_us=saved.now_us,
                wall_us=saved.wall_us,
                positions={str(part): at for part, at in saved.positions.items()},
                journal_offset=saved.journal_offset,
                state_sha256=digest,
                chunk=index,
                chunks=len(parts),
                state=part,
            ),
            event_id=derived_event_id(
                SNAPSHOTS.topic, (fleet, component.name, str(saved.number), digest, str(index))
            ),
            source=source_of(fleet, component.name),
            time_us=saved.now_us,
        )
        for index, part in enumerate(parts)
    ]


def usable_snapshots(
    component: Component[S], records: Iterable[Record], *, fleet: str
) -> Iterator[Saved[S]]:
    """Yield the whole snapshots of a component among `records`, in whichever order they come.

    What is damaged, of another version or does not decode is passed over: an older one will do.
    """
    gathered: dict[tuple[int, str], dict[int, Snapshot]] = {}
    for record in records:
        snapshot = message_of(record, Snapshot, fleet=fleet, component=component.name)
        if snapshot is None or snapshot.state_version != component.state_version:
            continue
        key = (snapshot.number, snapshot.state_sha256)
        chunks = gathered.setdefault(key, {})
        chunks[snapshot.chunk] = snapshot
        if len(chunks) < snapshot.chunks:
            continue
        del gathered[key]
        saved = _assemble(component, chunks)
        if saved is not None:
            yield saved


def _assemble(component: Component[S], chunks: dict[int, Snapshot]) -> Saved[S] | None:
    first = chunks[min(chunks)]
    data = b"".join(chunks[index].state for index in sorted(chunks))
    if hashlib.sha256(data).hexdigest() != first.state_sha256:
        log.warning("snapshot damaged", extra={"number": first.number})
        return None
    try:
        state = load(component.state_type, data)
    except msgspec.DecodeError as error:
        log.warning("snapshot unreadable", extra={"number": first.number, "why": str(error)})
        return None
    return Saved(
        state=state,
        number=first.number,
        now_us=first.now_us,
        wall_us=first.wall_us,
        positions={Partition.parse(part): at for part, at in first.positions.items()},
        journal_offset=first.journal_offset,
    )


def message_of(
    record: Record, kind: type[M], *, fleet: str, component: str | None = None
) -> M | None:
    """Return the message in a record if it is of this kind, fleet and component, else None."""
    try:
        message = decode(record)
    except BadInput as error:
        log.warning("record passed over", extra={"topic": record.topic, "why": str(error)})
        return None
    if not isinstance(message, kind) or message.fleet != fleet:
        return None
    if component is not None and getattr(message, "component", None) != component:
        return None
    return message


def backwards(broker: Broker, part: Partition, *, window: int = 32) -> Iterator[Record]:
    """Yield a partition's records from the newest to the oldest, reading a window at a time."""
    begin, end = broker.beginnings([part])[part], broker.ends([part])[part]
    while end > begin:
        first = max(end - window, begin)
        yield from reversed(list(read_between(broker, part, first, end)))
        end = first


def newest_snapshot(broker: Broker, component: Component[S], *, fleet: str) -> Saved[S] | None:
    """Return the newest usable snapshot of a component, or None."""
    return next(usable_snapshots(component, backwards(broker, SNAPSHOTS), fleet=fleet), None)


def cuts_since(broker: Broker, offset: int, component: str, *, fleet: str) -> Iterator[Entry]:
    """Yield a component's journal from an offset to the end as it is now."""
    end = broker.ends([JOURNAL])[JOURNAL]
    for record in read_between(broker, JOURNAL, offset, end):
        cut = message_of(record, Cut, fleet=fleet, component=component)
        if cut is not None:
            yield Entry(cut=cut, offset=record.offset)


def consecutive(cuts: Iterable[Entry], after: int) -> Iterator[Entry]:
    """Yield the first record of each number after `after`, which is the one that counts.

    Raises:
        JournalBroken: a number is missing.

    """
    expected = after + 1
    for entry in cuts:
        if entry.cut.number > expected:
            raise JournalBroken(f"cut {expected} is missing, found {entry.cut.number}")
        if entry.cut.number == expected:
            expected += 1
            yield entry
