"""The fleet's clock beside the collector's sources: a thread that may fail and begin anew.

Kafka may be away for long while sources go on, so nothing waits for this thread: it ends with the
process, and what it last knew is read from outside.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from gpuloop.loop.shells.broker import Broker, BrokerError
from gpuloop.loop.shells.wall_world import WallWorld

AGAIN_SECONDS: Final = 5.0
LISTEN_SECONDS: Final = 0.5

log: Final = logging.getLogger("collector")


class ClockThread:
    """Follows the fleet's clock, and keeps it when it is this collector's turn."""

    def __init__(self, world: WallWorld, broker: Broker) -> None:
        self._world: Final = world
        self._broker: Final = broker
        self._stop: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name="clock", daemon=True)

    @property
    def elsewhere(self) -> str | None:
        """Return what clock the fleet runs on where that is not the present, else None."""
        return self._world.elsewhere

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for an end and wait no longer for it than a word from a present Kafka takes."""
        self._stop.set()
        self._thread.join(2 * LISTEN_SECONDS)

    def check(self) -> None:
        """Raise `RuntimeError` when the thread has ended unasked."""
        if not self._thread.is_alive() and not self._stop.is_set():
            raise RuntimeError("the clock's thread has ended")

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._followed(self._world.open):
                    while self._followed(lambda: self._world.advance(LISTEN_SECONDS)):
                        pass
                self._world.close()
        finally:
            self._broker.close()

    def _followed(self, act: Callable[[], None]) -> bool:
        """Do one thing with the clock; False when Kafka was away or a stop is asked for."""
        if self._stop.is_set():
            return False
        try:
            act()
        except BrokerError as error:
            log.warning("the fleet's clock cannot be followed", extra={"why": str(error)})
            self._stop.wait(AGAIN_SECONDS)
            return False
        return True
