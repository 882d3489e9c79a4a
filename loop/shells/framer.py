"""Packs `telemetry.gpu` into columnar frames and beats time for the observe stage.

    poll ─► decode ─► dead letters acked ─► frames acked ─► tick frames acked ─► next poll

It keeps no state of its own: every frame carries, as a header, the offset of the first sample that
is not yet framed, so a restart reads its positions off the frames it wrote. Nothing is lost; what
was written and not yet acknowledged may be framed twice, which rows recognise by (boot, seq).
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import Broker, BrokerError, Consumer, Partition
from gpuloop.loop.shells.fold import addressed, due_ticks, encode_dead_letters, source_of
from gpuloop.loop.shells.journal import backwards
from gpuloop.loop.shells.timekeeping import CLOCK, Timekeeper, newest_anchors
from gpuloop.schemas.codec import BadInput, Encoded, Record, decode, encode
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import ClockAnchor, Frame, GpuSample
from gpuloop.schemas.units import SECOND_US
from gpuloop.streams import frames
from gpuloop.streams.horizon import refuse_future

SAMPLES: Final = "telemetry.gpu"
FRAMES: Final = "internal.frames"
STAGE: Final = "framer"
FRAMED_THROUGH: Final = "gpuloop_framed_through"
"""Header of a frame: the next offset of `telemetry.gpu` to frame on its partition."""
OFFSET_DIGITS: Final = 19
PRODUCED: Final = "gpuloop_produced_ms"
"""Header of a data frame: the timestamp of its first sample's record."""

MAX_SAMPLES: Final = 4096
HANDFUL: Final = 64
"""Records taken at once: few enough that they are still in the processor's cache when decoded."""
MAX_FRAME_BYTES: Final = 700_000
"""Estimated size at which a frame is closed; the broker's limit leaves room for the estimate."""
LINGER_US: Final = 50_000
PATIENCE_US: Final = 100_000

TICK_STEPS_MS: Final = (
    *(60_000, 30_000, 20_000, 15_000, 12_000, 10_000, 6_000, 5_000, 4_000, 3_000, 2_000, 1_000),
    *(500, 200, 100, 50, 20, 10, 5, 2, 1),
)
"""Parts of a minute, so that every minute of fleet time has its tick."""


def tick_step_us(speed: float) -> int:
    """Return the fleet time between ticks: about a wall second of it, and at most a minute."""
    wall_second_ms = speed * 1000
    return 1000 * next((ms for ms in TICK_STEPS_MS if ms <= wall_second_ms), TICK_STEPS_MS[-1])


@dataclass(slots=True)
class Batch:
    """A frame in the making, the offsets of its samples, and when the first was produced."""

    builder: frames.FrameBuilder
    first: int
    produced_ms: int
    last: int = -1


@dataclass(slots=True)
class Round:
    """What one turn of the framer did."""

    samples: int = 0
    frames: int = 0
    refused: list[tuple[Record, BadInput]] = field(default_factory=list)
    ticks_us: tuple[int, ...] = ()
    ticks_skipped: int = 0
    anchors_passed_over: int = 0


class Framer:
    """One thread drives it: `open`, then `advance` again and again, then `close`."""

    def __init__(
        self, broker: Broker, fleet: str, *, wall: Callable[[], int] = clock.wall_us
    ) -> None:
        self._broker: Final = broker
        self._fleet: Final = fleet
        self._wall: Final = wall
        self._time: Final = Timekeeper()
        self._consumer: Consumer | None = None
        self._ticked_us = 0
        self.positions: dict[Partition, int] = {}

    @property
    def has_clock(self) -> bool:
        """Say whether an anchor was seen; without one no sample is read."""
        return self._time.clock is not None

    def run(self, stop: threading.Event, watch: Callable[[Round], None]) -> None:
        """Advance until `stop`, telling `watch` about each turn."""
        self.open()
        try:
            while not stop.is_set():
                watch(self.advance())
        finally:
            self.close()

    def open(self) -> None:
        """Find the positions and the clock, and start to read."""
        samples, written = self._broker.partitions(SAMPLES), self._broker.partitions(FRAMES)
        if len(samples) != len(written):
            raise BrokerError(f"{FRAMES} must have as many partitions as {SAMPLES}")
        begins, ends = self._broker.beginnings(samples), self._broker.ends(samples)
        for part in samples:
            at = framed_through(backwards(self._broker, Partition(FRAMES, part.number), window=1))
            known = at is not None and begins[part] <= at <= ends[part]
            self.positions[part] = at if at is not None and known else begins[part]
        clock_end = self._broker.ends([CLOCK])[CLOCK]
        self._time.open(newest_anchors(self._broker, self._fleet), self._wall())
        self._begin_ticks()
        self._listen(clock_end)

    def close(self) -> None:
        """Let go of the inputs."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def advance(self) -> Round:
        """Frame what arrives within one linger, then beat the ticks that are due."""
        done = Round()
        batches: dict[int, list[Batch]] = {}
        anchors: list[Record] = []
        for records in self._arriving():
            anchors += [record for record in records if record.topic == CLOCK.topic]
            self._take([r for r in records if r.topic == SAMPLES], batches, done)
        self._write(batches, done)
        for record in anchors:
            self._hear(record, done)
        self._tick(done)
        return done

    def _arriving(self) -> Iterator[list[Record]]:
        """Yield what is there, and what comes within one linger of it."""
        if self._consumer is None:
            raise RuntimeError("the framer is not open")
        room, until_us, left_us = MAX_SAMPLES, 0, self._patience_us()
        while records := self._consumer.poll(
            max_records=min(room, HANDFUL), timeout_s=left_us / SECOND_US
        ):
            yield records
            room -= len(records)
            now_us = clock.monotonic_us()
            until_us = until_us or now_us + LINGER_US
            left_us = until_us - now_us
            if left_us <= 0 or room <= 0:
                return

    def _take(
        self, records: Sequence[Record], batches: dict[int, list[Batch]], done: Round
    ) -> None:
        """Add samples to the frames of their partitions."""
        if self._time.clock is None:
            return
        now_us = self._time.clock.now_us(self._wall())
        reached: dict[int, int] = {}
        for record in records:
            reached[record.partition] = record.offset + 1
            try:
                sample = _sample(record, self._fleet, now_us)
            except BadInput as error:
                done.refused.append((record, error))
                continue
            begun = batches.setdefault(record.partition, [])
            if not begun or begun[-1].builder.size > MAX_FRAME_BYTES:
                builder = frames.FrameBuilder(self._fleet, record.partition)
                begun.append(Batch(builder, record.offset, record.timestamp_ms))
            begun[-1].builder.add(sample)
            begun[-1].last = record.offset
            done.samples += 1
        self.positions |= {Partition(SAMPLES, number): at for number, at in reached.items()}

    def _write(self, batches: Mapping[int, Sequence[Batch]], done: Round) -> None:
        """Write dead letters, then frames, and wait for both."""
        if done.refused:
            self._broker.produce(encode_dead_letters(done.refused, stage=STAGE, fleet=self._fleet))
        written = [
            self._data_frame(batch) for _, begun in sorted(batches.items()) for batch in begun
        ]
        self._broker.produce(written)
        done.frames = len(written)
        if self._consumer is not None and (written or done.refused):
            self._consumer.commit(self.positions)

    def _tick(self, done: Round) -> None:
        if self._time.clock is None:
            return
        now_us = self._time.clock.now_us(self._wall())
        step_us = tick_step_us(self._time.clock.anchor.speed)
        done.ticks_us, done.ticks_skipped = due_ticks(self._ticked_us, now_us, step_us)
        self._ticked_us = max(now_us, self._ticked_us)
        self._broker.produce(
            [
                self._encoded(
                    frames.tick(self._fleet, part.number, tick_us),
                    identity=("tick", self._fleet, str(part.number), str(tick_us)),
                    time_us=tick_us,
                    through=through,
                )
                for tick_us in done.ticks_us
                for part, through in self.positions.items()
            ]
        )

    def _data_frame(self, batch: Batch) -> Encoded:
        frame = batch.builder.build()
        places = (frame.partition, batch.first, batch.last)
        record = self._encoded(
            frame,
            identity=("data", self._fleet, *map(str, places)),
            time_us=max(frame.event_time_us),
            through=batch.last + 1,
        )
        produced = (PRODUCED, str(batch.produced_ms).encode())
        return replace(record, headers=(*record.headers, produced))

    def _encoded(
        self, frame: Frame, *, identity: tuple[str, ...], time_us: int, through: int
    ) -> Encoded:
        record = encode(
            FRAMES,
            str(frame.partition),
            frame,
            event_id=derived_event_id(FRAMES, identity),
            source=source_of(self._fleet, STAGE),
            time_us=time_us,
            partition=frame.partition,
        )
        position = (FRAMED_THROUGH, str(through).encode())
        return replace(record, headers=(*record.headers, position))

    def _hear(self, record: Record, done: Round) -> None:
        """Heed an anchor; of all who follow the clock this one sets aside what is none."""
        try:
            anchor = decode(record)
        except BadInput as error:
            refused = [(record, error)]
            self._broker.produce(encode_dead_letters(refused, stage=STAGE, fleet=self._fleet))
            done.refused += refused
            return
        if not isinstance(anchor, ClockAnchor) or anchor.fleet != self._fleet:
            return
        before = self._time.clock
        if not self._time.hear(anchor, self._wall()):
            done.anchors_passed_over += 1
        elif before is None or before.anchor.world != anchor.world:
            self._begin_ticks()
        if before is None and self.has_clock:
            self._listen(record.offset + 1)

    def _begin_ticks(self) -> None:
        if self._time.clock is not None:
            self._ticked_us = self._time.clock.now_us(self._wall())

    def _listen(self, clock_position: int) -> None:
        """Read the clock, and samples once there is a clock to date them by."""
        self.close()
        inputs = self.positions if self.has_clock else {}
        self._consumer = self._broker.consumer(
            {CLOCK: clock_position} | inputs, group=f"gpuloop-{STAGE}"
        )

    def _patience_us(self) -> int:
        """Return how long to wait for samples before a tick is due."""
        if self._time.clock is None:
            return PATIENCE_US
        step_us = tick_step_us(self._time.clock.anchor.speed)
        next_us = (self._ticked_us // step_us + 1) * step_us
        return min(max(self._time.clock.wall_at(next_us) - self._wall(), 0), PATIENCE_US)


def _sample(record: Record, fleet: str, now_us: int) -> GpuSample:
    message = addressed(record, fleet)
    if not isinstance(message, GpuSample):
        raise BadInput("unknown_type", f"{SAMPLES} carries samples of GPUs")
    refuse_future(message.event_time_us, now_us)
    return message


def framed_through(newest_first: Iterable[Record]) -> int | None:
    """Return the position in the newest frame that carries one, or None."""
    for record in newest_first:
        value = record.header(FRAMED_THROUGH)
        if value is not None and value.isdecimal() and len(value) <= OFFSET_DIGITS:
            return int(value)
    return None
