"""The fleet clock where the fleet is real: fleet time is wall time, and somebody must say so.

Every collector follows `telemetry.clock`; one of them keeps it. Who wrote the newest anchor goes
on, every ten seconds; the others speak only after a silence, each after one of its own length, so
that the topic itself elects the next. An anchor that somebody else wrote after mine ends my turn.
Two that speak at once say the same thing, and one of them falls silent at the next record.

A fleet that runs on another world's clock (a twin's) is left alone: nothing of the present belongs
in it, and an anchor of ours would stop its decider for good.
"""

from collections.abc import Callable
from typing import Final
from zlib import crc32

from gpuloop.loop.shells.broker import Broker, Consumer
from gpuloop.loop.shells.fold import source_of
from gpuloop.loop.shells.journal import message_of
from gpuloop.loop.shells.timekeeping import CLOCK, Timekeeper, newest_anchors
from gpuloop.schemas.codec import Record, encode
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import ClockAnchor
from gpuloop.schemas.units import MINUTE_US, SECOND_US

WORLD: Final = "wall"
ANCHOR_EVERY_US: Final = 10 * SECOND_US
SILENCE_US: Final = 15 * SECOND_US
SPREAD_US: Final = 15 * SECOND_US
"""The longest silence is 30 s, well within the two minutes that an anchor lasts for."""
FIRST_SPREAD_US: Final = 3 * SECOND_US
"""Where nobody ever kept the clock there is nobody to wait for."""
APART_US: Final = MINUTE_US
"""How far fleet time may be from wall time and still be the present."""


class WallWorld:
    """One candidate for keeping the clock. One thread drives it: `open`, `advance`, `close`."""

    def __init__(
        self,
        broker: Broker,
        fleet: str,
        candidate: str,
        *,
        wall_us: Callable[[], int],
        monotonic_us: Callable[[], int],
    ) -> None:
        self._broker: Final = broker
        self._fleet: Final = fleet
        self._candidate: Final = candidate
        self._wall_us: Final = wall_us
        self._monotonic_us: Final = monotonic_us
        self._time = Timekeeper()
        self._consumer: Consumer | None = None
        self._mine = ""
        self._due_us = 0

    @property
    def elsewhere(self) -> str | None:
        """Return what clock the fleet runs on where that is not the present, else None."""
        clock = self._time.clock
        if clock is None or _is_present(clock.anchor):
            return None
        return f"the clock of world {clock.anchor.world} at speed {clock.anchor.speed:g}"

    def open(self) -> None:
        """Read what was said last, and listen from there.

        Raises:
            BrokerError: the clock cannot be read.

        """
        self.close()
        end = self._broker.ends([CLOCK])[CLOCK]
        self._time = Timekeeper()
        self._time.open(newest_anchors(self._broker, self._fleet), self._wall_us())
        self._consumer = self._broker.consumer({CLOCK: end}, group="gpuloop-collector")
        self._mine = ""
        self._await_silence()

    def advance(self, timeout_s: float) -> None:
        """Hear what others say for up to `timeout_s`, and speak when it is our turn.

        Raises:
            BrokerError: the clock cannot be read or written; `open` begins anew.

        """
        if self._consumer is None:
            raise RuntimeError("the clock is not open")
        for record in self._consumer.poll(max_records=100, timeout_s=timeout_s):
            self._hear(record)
        if self._monotonic_us() >= self._due_us:
            self._speak()

    def close(self) -> None:
        """Stop listening."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _hear(self, record: Record) -> None:
        anchor = message_of(record, ClockAnchor, fleet=self._fleet)
        if anchor is None or not self._time.hear(anchor, self._wall_us()):
            return
        if record.header("ce_id") == self._mine:
            self._due_us = self._monotonic_us() + ANCHOR_EVERY_US
        else:
            self._await_silence()

    def _await_silence(self) -> None:
        clock = self._time.clock
        share = crc32(self._candidate.encode()) % 1000 / 1000
        if clock is None:
            silence_us = round(FIRST_SPREAD_US * share)
        else:
            silence_us = SILENCE_US + round(SPREAD_US * share)
        self._due_us = self._monotonic_us() + silence_us

    def _speak(self) -> None:
        """Say that fleet time is wall time; heard back, it makes the next turn ours."""
        clock = self._time.clock
        if clock is not None and clock.anchor.world != WORLD:
            self._await_silence()  # A twin's, or the present kept under another name.
            return
        now_us = self._wall_us()
        anchor = ClockAnchor(
            fleet=self._fleet, world=WORLD, anchor_us=now_us, anchor_wall_us=now_us, speed=1.0
        )
        self._mine = derived_event_id(CLOCK.topic, (self._fleet, self._candidate, str(now_us)))
        source = source_of(self._fleet, "collector")
        record = encode(CLOCK.topic, self._fleet, anchor, event_id=self._mine, source=source)
        self._broker.produce([record])
        self._due_us = self._monotonic_us() + ANCHOR_EVERY_US


def _is_present(anchor: ClockAnchor) -> bool:
    return anchor.speed == 1.0 and abs(anchor.anchor_us - anchor.anchor_wall_us) <= APART_US
