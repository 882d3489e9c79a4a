"""Which anchors to believe; every follower of the fleet clock asks here.

Fleet time never goes back within a world, so one anchor far ahead, once followed, would stop a
decider for good. An anchor therefore counts only in the line of those before it: same world, no
earlier stamp, not faster, no further ahead than the line's speed explains, and back by no more than
a world loses when it dies (`departure`). The fleet's own anchors are such a line, over stops and
crashes as well, because fleet time stands while the world does not run.

    continues the followed line ─► followed at once, and what else was heard is forgotten
    departs from it             ─► held; followed once `BORNE_OUT_US` of anchors continue it while
                                   the followed line says nothing: another world, a higher speed
    out of bounds               ─► refused: a date without a name, a stamp ahead of the wall clock

A start reads the newest anchors and takes the longest line among them, not the last word. Where no
honest clock speaks for half a minute nothing here tells a forged one apart: that takes a cluster
which lets only the world write `telemetry.clock`.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gpuloop.loop.shells.broker import Broker, Partition
from gpuloop.loop.shells.clock import FleetClock
from gpuloop.loop.shells.journal import backwards, message_of
from gpuloop.schemas.messages import ClockAnchor
from gpuloop.schemas.units import MINUTE_US, SECOND_US, calendar_time

CLOCK: Final = Partition("telemetry.clock", 0)

BORNE_OUT_US: Final = 30 * SECOND_US
"""Wall time for which a line that departs must be heard alone: three anchors of a world."""
AHEAD_WALL_US: Final = MINUTE_US
"""How far two machines' wall clocks may differ."""
BEHIND_US: Final = 10 * MINUTE_US
"""Fleet time that a world may lose when it dies: it runs at most five minutes behind its clock."""
AHEAD_SHARE: Final = 0.5
"""Part by which a line may outrun its speed: a wall clock that was set back a few seconds."""
NEWEST: Final = 32
SEARCHED: Final = 256
LINES: Final = 8

log: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Line:
    """Anchors of which each continues the one before. `pace` is the last speed above zero."""

    newest: ClockAnchor
    pace: float
    since_us: int
    length: int = 1

    def add(self, anchor: ClockAnchor) -> None:
        self.newest, self.length = anchor, self.length + 1
        self.pace = anchor.speed or self.pace


class Timekeeper:
    """The fleet clock as far as one process knows it."""

    def __init__(self) -> None:
        self._followed: _Line | None = None
        self._held: list[_Line] = []
        self._clock: FleetClock | None = None

    @property
    def clock(self) -> FleetClock | None:
        """Return the clock that is followed, or None before there is one."""
        return self._clock

    def open(self, anchors: Iterable[ClockAnchor], wall_us: int) -> None:
        """Begin with the longest line among anchors that are there, given from the oldest on."""
        lines: list[_Line] = []
        for anchor in anchors:
            if _refused(anchor, wall_us):
                continue
            line = _that_continues(lines, anchor)
            if line is None:
                lines.append(_begun(anchor, wall_us))
            else:
                line.add(anchor)
        if lines:
            self._follow(max(lines, key=lambda line: line.length))

    def hear(self, anchor: ClockAnchor, wall_us: int) -> bool:
        """Heed an anchor and say whether it is followed."""
        if _refused(anchor, wall_us):
            return False
        followed = self._followed
        if followed is None:
            self._follow(_begun(anchor, wall_us))
            return True
        why = departure(followed.newest, anchor, pace=followed.pace)
        if why is None:
            followed.add(anchor)
            self._follow(followed)
            return True
        line = _that_continues(self._held, anchor)
        if line is None:
            self._held = [*self._held[1 - LINES :], _begun(anchor, wall_us)]
            log.warning("clock anchor held until others bear it out", extra=_about(anchor, why))
            return False
        line.add(anchor)
        if wall_us - line.since_us < BORNE_OUT_US:
            return False
        log.warning("following another clock", extra=_about(anchor, why))
        self._follow(line)
        return True

    def _follow(self, line: _Line) -> None:
        self._followed, self._held = line, []
        if self._clock is None:
            self._clock = FleetClock(line.newest)
        else:
            self._clock = self._clock.follow(line.newest)


def departure(before: ClockAnchor, anchor: ClockAnchor, *, pace: float) -> str | None:
    """Return how `anchor` departs from a line that ends with `before`, or None if it goes on."""
    elapsed_us = anchor.anchor_wall_us - before.anchor_wall_us
    gained_us = anchor.anchor_us - before.anchor_us
    if anchor.world != before.world:
        return f"another world than {before.world}"
    if elapsed_us < 0:
        return "stamped before the one that is followed"
    if 0.0 < pace < anchor.speed:
        return f"faster than {pace:g}"
    if gained_us < -BEHIND_US:
        return f"{-gained_us // SECOND_US} s back"
    ahead_us = gained_us - before.speed * elapsed_us
    if ahead_us > AHEAD_SHARE * before.speed * elapsed_us + SECOND_US:
        return f"{ahead_us / SECOND_US:.0f} s further than its clock can have come"
    return None


def newest_anchors(broker: Broker, fleet: str) -> list[ClockAnchor]:
    """Return up to `NEWEST` anchors of a fleet, oldest first.

    The topic is searched beyond `SEARCHED` records only as long as none was found.
    """
    found: list[ClockAnchor] = []
    for count, record in enumerate(backwards(broker, CLOCK)):
        if len(found) == NEWEST or (found and count >= SEARCHED):
            break
        anchor = message_of(record, ClockAnchor, fleet=fleet)
        if anchor is not None:
            found.append(anchor)
    return found[::-1]


def _refused(anchor: ClockAnchor, wall_us: int) -> bool:
    """Say whether an anchor is of no use whatever was heard before."""
    ahead_us = anchor.anchor_wall_us - wall_us
    if ahead_us > AHEAD_WALL_US:
        why = f"stamped {ahead_us // SECOND_US} s ahead of this machine's clock"
    elif calendar_time(anchor.anchor_us) is None:
        why = "dated after the year 9999"
    else:
        return False
    log.warning("clock anchor refused", extra=_about(anchor, why))
    return True


def _begun(anchor: ClockAnchor, wall_us: int) -> _Line:
    return _Line(newest=anchor, pace=anchor.speed, since_us=wall_us)


def _that_continues(lines: Iterable[_Line], anchor: ClockAnchor) -> _Line | None:
    return next(
        (line for line in lines if departure(line.newest, anchor, pace=line.pace) is None), None
    )


def _about(anchor: ClockAnchor, why: str) -> dict[str, object]:
    return {
        "why": why,
        "world": anchor.world,
        "anchor_us": anchor.anchor_us,
        "anchor_wall_us": anchor.anchor_wall_us,
        "speed": anchor.speed,
    }
