"""Ends a process whose input waits while nothing moves.

Stream libraries can stop consuming without an error. Whether input waits is asked of the broker,
from a thread of its own, so a blocked event loop or a commit that never comes shows as well.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import BrokerError, Partition
from gpuloop.schemas.units import SECOND_US

Offsets = Mapping[Partition, int]

GRACE_FACTOR: Final = 4
"""How much more time a place gets while the process restores, or its input while other input
moves: a starved machine leaves one partition behind for a while, and a restart only adds to it."""

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look: where each partition ends, what is folded, settled, committed.

    Before it is `ready` a process restores its state; `restored` counts what it has read of it.
    """

    ready: bool
    restored: int = 0
    ends: Offsets
    handled: Offsets
    settled: Offsets
    committed: Offsets


@dataclass(slots=True)
class Stall:
    """Since when a position stands although there is something to do."""

    position: int
    since_us: int


class StallDetector:
    """Knows from repeated looks what has stood for too long."""

    def __init__(self, patience_us: int) -> None:
        self._patience_us: Final = patience_us
        self._stalls: Final[dict[tuple[str, Partition], Stall]] = {}
        self._folded: Offsets = {}
        self._restoring: tuple[bool, int] | None = None
        self._moved_us = -GRACE_FACTOR * patience_us

    def stuck(self, seen: Seen, now_us: int) -> list[str]:
        """Return what has stood for longer than the patience, in words."""
        found: list[str] = []
        if self._restoring != (seen.ready, seen.restored):
            # Input cannot move while state is restored: its time begins when that has moved on.
            self._restoring = (seen.ready, seen.restored)
            self._stalls.clear()
        if any(at > self._folded.get(place, at) for place, at in seen.handled.items()):
            self._moved_us = now_us
        self._folded = dict(seen.handled)
        moves = now_us - self._moved_us < self._patience_us
        patience_us = self._patience_us * (1 if seen.ready else GRACE_FACTOR)
        input_patience_us = self._patience_us * GRACE_FACTOR if moves else patience_us
        for place, end in sorted(seen.ends.items()):
            committed = seen.committed.get(place, 0)
            handled = max(seen.handled.get(place, 0), committed)
            settled = seen.settled.get(place, 0)
            for what, at, goal, bearable_us in (
                ("input", handled, end, input_patience_us),
                ("commit", committed, settled, patience_us),
            ):
                if self._stands((what, place), at, goal, now_us) >= bearable_us:
                    found.append(f"{what} of {place} stands at {at}, {goal} waits")
        return found

    def _stands(self, key: tuple[str, Partition], at: int, goal: int, now_us: int) -> int:
        """Return for how long a position has stood short of its goal."""
        stall = self._stalls.get(key)
        if at >= goal:
            self._stalls.pop(key, None)
            return 0
        if stall is None or stall.position != at:
            stall = self._stalls[key] = Stall(at, now_us)
        return now_us - stall.since_us


class Watchdog:
    """Looks every few seconds and calls `bite` once with what is stuck.

    Should looking itself fail with anything but an outage of the broker, it bites as well.
    """

    def __init__(
        self,
        look: Callable[[], Seen],
        bite: Callable[[list[str]], None],
        *,
        patience_s: float = 30.0,
        every_s: float = 3.0,
    ) -> None:
        self._look: Final = look
        self._bite: Final = bite
        self._every_s: Final = every_s
        self._detector: Final = StallDetector(round(patience_s * SECOND_US))
        self._stop: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:
            # Judging goes on from what was seen before, and that may be what is broken: a new
            # process, which recovers its tables, is safer than one that nobody watches.
            log.exception("the watchdog failed")
            self._bite([f"the watchdog failed: {error!r}"])

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                seen = self._look()
            except BrokerError as error:
                # Who cannot be asked cannot be judged; the consumer sees the same outage.
                log.warning("watchdog has no answer", extra={"why": str(error)})
                continue
            stuck = self._detector.stuck(seen, clock.monotonic_us())
            if stuck:
                self._bite(stuck)
                return
