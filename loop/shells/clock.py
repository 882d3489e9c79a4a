"""The wall clock and the fleet clock; no other file reads either.

Wall time drives leases, retries and people. Fleet time is what components see: the world publishes
an anchor and a speed, and everything between two anchors follows from wall time. It advances
without events, so that silence ages; which anchors to believe is for `timekeeping` to say.
"""

import threading
import time
from typing import Final

from gpuloop.schemas.messages import ClockAnchor
from gpuloop.schemas.units import MINUTE_US, SECOND_US

REACH_US: Final = 2 * MINUTE_US
"""Wall time that one anchor lasts for: a dozen that did not come."""


def wall_us() -> int:
    """Return wall time in microseconds since 1970."""
    return time.time_ns() // 1000


def monotonic_us() -> int:
    """Return microseconds of a clock that never steps, for measuring waits."""
    return time.monotonic_ns() // 1000


class FleetClock:
    """Fleet time from the newest anchor; within one world it never runs backwards.

    It runs on without anchors for `reach_us` of wall time and then stands: who comes back after a
    loss of power must not read, off an old anchor, fleet time that never passed.
    """

    def __init__(self, anchor: ClockAnchor, *, reach_us: int = REACH_US) -> None:
        self._anchor: Final = anchor
        self._reach_us: Final = reach_us
        self._floor_us = 0

    @property
    def anchor(self) -> ClockAnchor:
        """Return the anchor this clock follows."""
        return self._anchor

    def now_us(self, wall: int) -> int:
        """Return fleet time at wall time `wall` (microseconds)."""
        elapsed = min(max(wall - self._anchor.anchor_wall_us, 0), self._reach_us)
        now = self._anchor.anchor_us + round(self._anchor.speed * elapsed)
        self._floor_us = max(now, self._floor_us)
        return self._floor_us

    def wall_at(self, fleet_us: int) -> int:
        """Return the wall time at which fleet time reaches `fleet_us`; far away if it will not."""
        anchor = self._anchor
        if fleet_us - anchor.anchor_us > anchor.speed * self._reach_us:
            return anchor.anchor_wall_us + 10**15
        if anchor.speed == 0.0:
            return anchor.anchor_wall_us
        return anchor.anchor_wall_us + round((fleet_us - anchor.anchor_us) / anchor.speed)

    def follow(self, anchor: ClockAnchor) -> "FleetClock":
        """Return the clock under a newer anchor; a new world starts at its own time."""
        clock = FleetClock(anchor, reach_us=self._reach_us)
        if anchor.world == self._anchor.world:
            clock._floor_us = self._floor_us
        return clock


class Pace:
    """Wakes its caller every `every_us` of wall time without drifting, or at once when late."""

    def __init__(self, every_us: int) -> None:
        self._every_us: Final = every_us
        self._next_us = monotonic_us() + every_us

    def wait(self, stop: threading.Event) -> bool:
        """Wait for the next beat; return False when `stop` was set meanwhile."""
        late = monotonic_us() - self._next_us
        self._next_us += self._every_us * (1 + max(late, 0) // self._every_us)
        return not stop.wait(max(-late, 0) / SECOND_US)
