"""Run a recording through a component again and compare what it says with what it said.

The component follows its own journal from the earliest snapshot that the recording can be followed
from. Every output is looked up by its id among the recorded ones and compared byte for byte. Files
are read once, front to back; what is held at a time is bounded.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from gpuloop.loop.replay.recording import Recording, RecordingError, RecordingSource
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.fold import source_of
from gpuloop.loop.shells.follow import follow
from gpuloop.loop.shells.journal import (
    JOURNAL,
    SNAPSHOTS,
    Entry,
    Saved,
    consecutive,
    message_of,
    usable_snapshots,
)
from gpuloop.loop.shells.partition import partition_of
from gpuloop.schemas.codec import Encoded, Record
from gpuloop.schemas.component import Component, S
from gpuloop.schemas.messages import Cut

WINDOW_RECORDS: Final = 2_000
"""How far recorded and recomputed outputs of one partition may be out of step."""

REMEMBERED_IDS: Final = 50_000

SLACK_MS: Final = 60_000
"""How far a wall clock may have stepped back during the recording."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first output that is not what was recorded; `recorded` is empty when there was none."""

    cut: int
    topic: str
    id: str
    what: Literal["value", "key", "absent"]
    recorded: str
    recomputed: str


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay found.

    `outputs` were recomputed; `equal` of them stand in the recording, byte for byte, `different`
    with other bytes, `absent` not at all. `unconfirmed` are those of the last cut that had not
    left when the recording ended. `cuts_disagreeing` counts cuts whose digest differs.
    """

    component: str
    from_cut: int
    cuts: int
    cuts_disagreeing: int
    records: int
    outputs: int
    equal: int
    different: int
    absent: int
    unconfirmed: int
    first_difference: Difference | None

    @property
    def identical(self) -> bool:
        """Return whether something was recomputed, and all of it is what was recorded."""
        agreeing = self.cuts > 0 and self.cuts_disagreeing == 0
        return agreeing and self.different == 0 and self.absent == 0


def replay(recording: Recording, component: Component[S]) -> ReplayReport:
    """Follow the component's journal in the recording and compare its outputs.

    Raises:
        RecordingError: the recording is damaged or lacks a snapshot to start from.
        PositionLost: a topic that the component reads was not recorded.
        JournalBroken: the journal misses a cut.

    """
    fleet = recording.manifest.fleet
    seed = int(recording.manifest.settings.get("seed", "0"))
    saved = _earliest(recording, component, fleet)
    cuts = consecutive(_journal(recording, component.name, saved, fleet), saved.number)
    recorded = _Recorded(recording, source_of(fleet, component.name))
    tally = _Tally()
    start = saved.number
    for step in follow(component, saved, cuts, RecordingSource(recording), fleet=fleet, seed=seed):
        tally.cuts += 1
        tally.disagreeing += not step.agrees
        tally.records += sum(s.last - s.first + 1 for s in step.cut.segments)
        tally.confirm_last()
        for output in step.outputs:
            found = recorded.find(output, wall_us=step.cut.wall_us)
            tally.compare(step.cut.number, output, found)
    return tally.report(component.name, start)


def _earliest(recording: Recording, component: Component[S], fleet: str) -> Saved[S]:
    journal = recording.files.get(JOURNAL)
    if journal is None:
        raise RecordingError(f"{JOURNAL.topic} was not recorded")
    for saved in usable_snapshots(component, recording.records(SNAPSHOTS), fleet=fleet):
        whole = all(
            part in recording.files and recording.files[part].first <= at
            for part, at in saved.positions.items()
        )
        if whole and journal.first <= saved.journal_offset:
            return saved
    raise RecordingError(f"no snapshot of {component.name} can be followed from")


def _journal(recording: Recording, component: str, saved: Saved[S], fleet: str) -> Iterator[Entry]:
    for record in recording.records(JOURNAL):
        if record.offset < saved.journal_offset:
            continue
        cut = message_of(record, Cut, fleet=fleet, component=component)
        if cut is not None:
            yield Entry(cut=cut, offset=record.offset)


class _Recorded:
    """The recorded outputs of one component, found by id a little out of step."""

    def __init__(self, recording: Recording, source: str) -> None:
        self._recording = recording
        self._source = source
        self._cursors: dict[Partition, Iterator[Record]] = {}
        self._windows: dict[Partition, dict[str, Record]] = {}
        self._found: set[tuple[str, str]] = set()
        self._order: deque[tuple[str, str]] = deque()

    def find(self, output: Encoded, *, wall_us: int) -> Record | None:
        """Return the recorded counterpart of an output of the cut made at `wall_us`, or None."""
        part = self._partition_of(output)
        wanted = header(output, "ce_id")
        window = self._windows.setdefault(part, {})
        if wanted not in window:
            self._read_on(part, window, wanted, oldest_ms=wall_us // 1000 - SLACK_MS)
        found = window.pop(wanted, None)
        if found is not None:
            self._remember((output.topic, wanted))
        return found

    def _read_on(
        self, part: Partition, window: dict[str, Record], wanted: str, *, oldest_ms: int
    ) -> None:
        """Read until the wanted record is found or the window is full.

        A cut's outputs are written after the cut's own wall time, so what is older than that
        belongs to cuts that are done and makes room.
        """
        for id_ in [id_ for id_, held in window.items() if held.timestamp_ms < oldest_ms]:
            del window[id_]
        cursor = self._cursors.setdefault(part, self._recording.records(part))
        while len(window) < WINDOW_RECORDS and (record := next(cursor, None)) is not None:
            id_ = record.header("ce_id") or ""
            if record.header("ce_source") != self._source or record.timestamp_ms < oldest_ms:
                continue
            # A restart sends the last cut again: the same ids a second time.
            if (part.topic, id_) not in self._found:
                window[id_] = record
            if id_ == wanted:
                return

    def _partition_of(self, output: Encoded) -> Partition:
        count = self._recording.partitions(output.topic)
        if count == 0:
            raise RecordingError(f"{output.topic} was not recorded")
        if output.partition is not None:
            return Partition(output.topic, output.partition)
        return Partition(output.topic, partition_of(output.key, count))

    def _remember(self, key: tuple[str, str]) -> None:
        self._found.add(key)
        self._order.append(key)
        if len(self._order) > REMEMBERED_IDS:
            self._found.discard(self._order.popleft())


class _Tally:
    """Counts of a replay in progress; the last cut's absences are held back until another cut."""

    def __init__(self) -> None:
        self.cuts = self.disagreeing = self.records = 0
        self._equal = self._different = self._absent = 0
        self._pending: list[Difference] = []
        self._first: Difference | None = None

    def compare(self, cut: int, output: Encoded, recorded: Record | None) -> None:
        if recorded is not None and (recorded.key, recorded.value) == (output.key, output.value):
            self._equal += 1
            return
        what: Literal["value", "key", "absent"] = "absent"
        if recorded is not None:
            what = "value" if recorded.key == output.key else "key"
        difference = Difference(
            cut=cut,
            topic=output.topic,
            id=header(output, "ce_id"),
            what=what,
            recorded="" if recorded is None else _shown(recorded.value),
            recomputed=_shown(output.value),
        )
        if recorded is None:
            self._pending.append(difference)
            return
        self._different += 1
        self._first = self._first or difference

    def confirm_last(self) -> None:
        """Count what the previous cut lacked: a cut follows, so its outputs had all left."""
        self._absent += len(self._pending)
        if self._pending and self._first is None:
            self._first = self._pending[0]
        self._pending.clear()

    def report(self, component: str, start: int) -> ReplayReport:
        compared = self._equal + self._different + self._absent
        return ReplayReport(
            component=component,
            from_cut=start,
            cuts=self.cuts,
            cuts_disagreeing=self.disagreeing,
            records=self.records,
            outputs=compared + len(self._pending),
            equal=self._equal,
            different=self._different,
            absent=self._absent,
            unconfirmed=len(self._pending),
            first_difference=self._first,
        )


def header(record: Encoded, name: str) -> str:
    """Return a header of a record to be written, as text."""
    return next((value.decode() for key, value in record.headers if key == name), "")


def _shown(value: bytes | None) -> str:
    return (value or b"")[:4000].decode("utf-8", "replace")
