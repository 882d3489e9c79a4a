"""Running a process's own loop, that would read for ever, until it has read all there is."""

import threading
from collections.abc import Mapping

from gpuloop.loop.services.health import Health
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.memory import MemoryBroker


class UntilRead(Health):
    """Sets `stop` once the process has come to where its sources end."""

    def __init__(self, service: str, broker: MemoryBroker) -> None:
        super().__init__(service)
        self.stop = threading.Event()
        self._broker = broker

    def progress(self, detail: str, positions: Mapping[str, int] | None = None) -> None:
        """Compare where it has come with where its sources end."""
        parts = [Partition.parse(name) for name in positions or {}]
        if positions and all(
            positions[str(p)] == end for p, end in self._broker.ends(parts).items()
        ):
            self.stop.set()
