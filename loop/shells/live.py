"""The live shell of a journaled component: cut, step, journal, outputs, in this order.

    poll ─► cut ─► step ─► dead letters acked ─► journal acked ─► outputs acked ─► next poll

Dead letters go before the journal: once a cut is in the journal nobody reads its records again to
refuse them, so what was refused must be safe by then; a crash in between repeats it under the same
ids. Outputs go after it: whatever has left can be computed again. A restart therefore loads the
newest snapshot, follows the journal to its end without sending anything, and sends the outputs of
the last cut again, the only ones that may be missing.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, Protocol

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import Broker, Consumer, Partition, read_between, starts
from gpuloop.loop.shells.clock import REACH_US
from gpuloop.loop.shells.fold import (
    Executed,
    Failpoint,
    Moment,
    due_ticks,
    encode_dead_letters,
    encode_outputs,
    execute,
    no_failpoint,
    source_of,
)
from gpuloop.loop.shells.journal import (
    JOURNAL,
    JournalBroken,
    Saved,
    cut_of,
    encode_cut,
    encode_snapshot,
    message_of,
)
from gpuloop.loop.shells.recovery import recover
from gpuloop.loop.shells.timekeeping import CLOCK, Timekeeper, newest_anchors
from gpuloop.schemas.codec import Record
from gpuloop.schemas.component import Component, S
from gpuloop.schemas.messages import ClockAnchor, Cut
from gpuloop.schemas.units import MINUTE_US, SECOND_US

SILENT_US: Final = 60 * SECOND_US

FOLLOWED_CUTS: Final = 100
"""After following more cuts than this a start writes a snapshot, so that starts stay short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """Bounds of a live shell. `run` names this start of the process in the journal.

    For `linger_us` what has arrived waits for what belongs to it. A fault waits as long, and a cut
    costs two round trips to the broker, so it is short beside those.
    """

    fleet: str
    seed: int
    run: str
    max_records: int = 2_000
    poll_us: int = 200_000
    linger_us: int = 2_000
    snapshot_every_us: int = 60 * SECOND_US
    snapshot_every_cuts: int = 5_000


class Watcher(Protocol):
    """Who is told how a shell gets on; health and metrics live behind it."""

    def waiting(self, why: str) -> None:
        """Say that the component cannot work yet."""
        ...

    def resumed(self, saved: Saved[S], *, followed: int, disagreed: int, expired: int) -> None:
        """Say from where the component goes on.

        `disagreed` counts followed cuts with other outputs than recorded, `expired` partitions
        whose next records are gone from their topic.
        """
        ...

    def idle(self, now_us: int) -> None:
        """Say that there was nothing to do."""
        ...

    def cut(
        self,
        records: Sequence[Record],
        executed: Executed[S],
        saved: Saved[S],
        *,
        skipped: int,
        took_us: int,
    ) -> None:
        """Say that a cut is done and its outputs are acknowledged; `skipped` ticks were not."""
        ...

    def snapshot(self, number: int) -> None:
        """Say that a snapshot is written."""
        ...

    def passed_over(self, what: str) -> None:
        """Say that something for the shell itself was heard and not heeded."""
        ...


class LiveShell(Generic[S]):
    """Runs one component on a broker.

    One thread drives it: `open`, then `advance` again and again, then `close`; `run` does all
    three. After an exception the shell is useless: recovery, not retry, is what is tested.
    """

    def __init__(
        self,
        component: Component[S],
        broker: Broker,
        config: LiveConfig,
        watcher: Watcher,
        *,
        wall: Callable[[], int] = clock.wall_us,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self._component: Final = component
        self._broker: Final = broker
        self._config: Final = config
        self._watcher: Final = watcher
        self._wall: Final = wall
        self._failpoint: Final = failpoint
        self._saved: Saved[S] | None = None
        self._time: Final = Timekeeper()
        self._consumer: Consumer | None = None
        self._own: dict[Partition, int] = {}
        self._ticked_us = 0
        self._confirmed = 0
        self._snapshot_number = 0
        self._snapshot_wall_us = 0
        self._heard_us = clock.monotonic_us()

    @property
    def saved(self) -> Saved[S]:
        """Return the component as it is now; only after `open`."""
        if self._saved is None:
            raise RuntimeError("the shell is not open")
        return self._saved

    def run(self, stop: threading.Event) -> None:
        """Recover, then advance until `stop`; a clean stop leaves a snapshot behind."""
        self.open()
        try:
            while not stop.is_set():
                self.advance()
            self._confirm()
            self._snapshot()
        finally:
            self.close()

    def open(self) -> None:
        """Recover the component, send what may be missing, and start to read on."""
        self._watcher.waiting("recovering")
        config = self._config
        found = recover(self._component, self._broker, fleet=config.fleet, seed=config.seed)
        self._broker.produce(found.last_outputs)
        beginnings = starts(self._broker, self._component.inputs)
        positions = {p: max(found.saved.positions.get(p, at), at) for p, at in beginnings.items()}
        self._saved = replace(found.saved, positions=positions)
        self._confirmed = self._snapshot_number = found.saved.number
        self._snapshot_wall_us = self._wall()
        if not found.from_snapshot or found.followed >= FOLLOWED_CUTS:
            self._snapshot()
        self._own = {
            JOURNAL: found.saved.journal_offset,
            CLOCK: self._broker.ends([CLOCK])[CLOCK],
        }
        self._time.open(newest_anchors(self._broker, config.fleet), self._wall())
        self._begin_ticks()
        self._listen()
        expired = sum(at > found.saved.positions.get(p, at) for p, at in beginnings.items())
        self._watcher.resumed(
            self.saved, followed=found.followed, disagreed=found.disagreed, expired=expired
        )

    def close(self) -> None:
        """Let go of the inputs."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def advance(self) -> bool:
        """Wait briefly for input or a tick and make at most one cut; say whether one was made."""
        if self._consumer is None:
            raise RuntimeError("the shell is not open")
        polled = self._consumer.poll(
            max_records=self._config.max_records,
            timeout_s=self._patience_us() / SECOND_US,
            linger_s=self._config.linger_us / SECOND_US,
        )
        began_us = clock.monotonic_us()
        if polled:
            self._heard_us = began_us
        records = self._take_own(polled)
        if self._time.clock is None:
            self._watcher.waiting("no fleet clock on telemetry.clock yet")
            return False
        wall_us = self._wall()
        if self._snapshot_is_due(wall_us):
            self._snapshot()
        now_us = max(self._time.clock.now_us(wall_us), self.saved.now_us)
        ticks, skipped = due_ticks(self._ticked_us, now_us, self._component.tick_every_us)
        self._ticked_us = now_us
        if not records and not ticks:
            self._idle(now_us)
            self._say_if_behind(wall_us)
            return False
        moment = Moment(now_us=now_us, wall_us=wall_us, ticks_us=ticks, run=self._config.run)
        executed = self._cut(records, moment)
        took_us = clock.monotonic_us() - began_us
        self._watcher.cut(records, executed, self.saved, skipped=skipped, took_us=took_us)
        self._say_if_behind(wall_us)
        return True

    def _say_if_behind(self, wall_us: int) -> None:
        """Say that time stands here until the world has come to where another one had been."""
        if self._time.clock is None:
            return
        behind_us = self.saved.now_us - self._time.clock.now_us(wall_us)
        if behind_us > 2 * REACH_US * max(self._time.clock.anchor.speed, 1.0):
            self._watcher.waiting(
                f"fleet time is {behind_us // MINUTE_US} minutes before what was seen here: another"
                " world on these topics; give it a prefix of its own, or let this one go on"
            )

    def _idle(self, now_us: int) -> None:
        """Tell quiet from cut off: the anchor alone comes every ten seconds."""
        silent_us = clock.monotonic_us() - self._heard_us
        if silent_us > SILENT_US:
            self._watcher.waiting(f"nothing heard for {silent_us // SECOND_US} s, not even a clock")
        else:
            self._watcher.idle(now_us)

    def _cut(self, records: Sequence[Record], moment: Moment) -> Executed[S]:
        config, name, before = self._config, self._component.name, self.saved
        executed = execute(
            self._component, before.state, records, moment, fleet=config.fleet, seed=config.seed
        )
        outputs = encode_outputs(executed.outputs, source_of(config.fleet, name))
        cut = cut_of(
            records,
            outputs,
            moment,
            fleet=config.fleet,
            component=name,
            run=config.run,
            number=before.number + 1,
        )
        self._failpoint("stepped")
        self._broker.produce(encode_dead_letters(executed.refused, stage=name, fleet=config.fleet))
        self._failpoint("refused")
        [entry] = self._broker.produce([encode_cut(cut)])
        self._failpoint("journaled")
        self._broker.produce(outputs)
        self._failpoint("produced")
        consumed = {Partition(r.topic, r.partition): r.offset + 1 for r in records}
        self._saved = Saved(
            state=executed.state,
            number=cut.number,
            now_us=moment.now_us,
            wall_us=moment.wall_us,
            positions=before.positions | consumed,
            journal_offset=entry.offset + 1,
        )
        if self._consumer is not None:
            self._consumer.commit(consumed)
        self._failpoint("committed")
        return executed

    def _listen(self) -> None:
        """Read the clock and the journal, and the inputs once there is a clock to place them."""
        self.close()
        inputs = self.saved.positions if self._time.clock is not None else {}
        group = f"gpuloop-{self._component.name}"
        self._consumer = self._broker.consumer(self._own | inputs, group=group)

    def _take_own(self, polled: Sequence[Record]) -> list[Record]:
        """Heed what is for the shell itself and return the component's records."""
        inputs: list[Record] = []
        for record in polled:
            part = Partition(record.topic, record.partition)
            if part in self.saved.positions:
                inputs.append(record)
            if part in self._own:
                self._own[part] = record.offset + 1
            if part == JOURNAL:
                self._check(record)
            if part == CLOCK:
                self._hear(record)
        return inputs

    def _hear(self, record: Record) -> None:
        anchor = message_of(record, ClockAnchor, fleet=self._config.fleet)
        if anchor is None:
            return
        first = self._time.clock is None
        if not self._time.hear(anchor, self._wall()):
            self._watcher.passed_over("clock anchors")
        elif first:
            self._begin_ticks()
            self._listen()

    def _begin_ticks(self) -> None:
        """Let ticks go on after the last cut, or begin now."""
        if self._time.clock is not None:
            self._ticked_us = self.saved.now_us or self._time.clock.now_us(self._wall())

    def _check(self, record: Record) -> None:
        """Make sure that the journal goes on with this process's cuts and nobody else's."""
        name, run = self._component.name, self._config.run
        cut = message_of(record, Cut, fleet=self._config.fleet, component=name)
        if cut is None or (cut.number <= self._confirmed and cut.run != run):
            return
        if cut.number != self._confirmed + 1 or cut.run != run:
            raise JournalBroken(f"{name}: cut {cut.number} of {cut.run} stands in the journal")
        self._confirmed = cut.number

    def _confirm(self) -> None:
        """Read the journal to its end now."""
        first, end = self._own[JOURNAL], self._broker.ends([JOURNAL])[JOURNAL]
        for record in read_between(self._broker, JOURNAL, first, end):
            self._check(record)
        self._own[JOURNAL] = end

    def _snapshot_is_due(self, wall_us: int) -> bool:
        return self.saved.number > self._snapshot_number and (
            wall_us - self._snapshot_wall_us >= self._config.snapshot_every_us
            or self.saved.number - self._snapshot_number >= self._config.snapshot_every_cuts
        )

    def _snapshot(self) -> None:
        """Write the state, unless the journal has yet to confirm that its last cut is ours.

        The confirmation is what the next poll brings first, so a snapshot is taken before a cut.
        """
        saved = self.saved
        if saved.number != self._confirmed:
            return
        self._broker.produce(encode_snapshot(self._component, saved, fleet=self._config.fleet))
        self._snapshot_number, self._snapshot_wall_us = saved.number, self._wall()
        self._watcher.snapshot(saved.number)

    def _patience_us(self) -> int:
        """Return how long to wait for input before a tick is due."""
        every_us = self._component.tick_every_us
        if self._time.clock is None or every_us <= 0:
            return self._config.poll_us
        next_us = (self._ticked_us // every_us + 1) * every_us
        return min(max(self._time.clock.wall_at(next_us) - self._wall(), 0), self._config.poll_us)
