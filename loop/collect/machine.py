"""The GPUs of this machine: a sample each beat, and XIDs as they are raised in between."""

import logging
import threading
from collections.abc import Callable
from typing import Final, Protocol

from gpuloop.loop.collect.source import Listener, raised, sampled
from gpuloop.schemas.component import Output
from gpuloop.schemas.errors import Explained
from gpuloop.schemas.units import SECOND_US
from gpuloop.streams.collect.edges import Edges, XidEvent
from gpuloop.streams.collect.readings import GpuReading, Place, Stamp, clean, sample_of

log: Final = logging.getLogger(__name__)

DETAIL_EVERY_US: Final = 30 * SECOND_US
REOPEN_EVERY_US: Final = 60 * SECOND_US
"""How often a driver is asked whether a lost device is back: it must be opened anew for that."""
WAIT_US: Final = 200_000
"""How long a wish to stop may go unheard."""


class NoEvents(Exception):
    """The devices cannot be waited for now."""


class DriverMissing(Explained):
    """The devices of this machine cannot be reached; the text says why in one line."""


class Devices(Protocol):
    """The GPUs of a machine."""

    def open(self) -> None:
        """Find the devices; again, to find those that came back. Raises `DriverMissing`."""
        ...

    def close(self) -> None:
        """Let go of them."""
        ...

    def read(self, *, detail: bool) -> list[GpuReading]:
        """Return what every device says now, with those that are lost."""
        ...

    def wait(self, timeout_us: int) -> XidEvent | None:
        """Return the next XID or, after `timeout_us`, None. Raises `NoEvents`."""
        ...


class Machine:
    """Observes one machine's devices."""

    name = "nvml"

    def __init__(
        self,
        devices: Devices,
        place: Place,
        *,
        boot: int,
        every_us: int,
        wall_us: Callable[[], int],
        monotonic_us: Callable[[], int],
    ) -> None:
        self._devices: Final = devices
        self._place: Final = place
        self._boot: Final = boot
        self.every_us = every_us
        self._wall_us: Final = wall_us
        self._monotonic_us: Final = monotonic_us
        self._edges: Final = Edges(place, boot)
        self._seq = 0
        self._detail_us: int | None = None
        self._opened_us = 0

    def open(self) -> None:
        """Find the devices.

        Raises:
            DriverMissing: there are none, or no driver.

        """
        self._opened_us = self._monotonic_us()
        self._devices.open()

    def close(self) -> None:
        """Let go of the devices."""
        self._devices.close()

    def run(self, stop: threading.Event, listener: Listener) -> None:
        """Sample every `every_us` and tell XIDs at once, until `stop`."""
        self.open()
        try:
            due_us = self._monotonic_us()
            while not stop.is_set():
                listener.said(self.sample(listener))
                late_us = self._monotonic_us() - due_us
                due_us += self.every_us * (1 + max(late_us, 0) // self.every_us)
                self._heed_events(due_us, stop, listener)
        finally:
            self.close()

    def sample(self, listener: Listener, *, detail: bool = False) -> list[Output]:
        """Return a sample of the devices, with the edges that it shows.

        It has `detail` when that is wanted, and every `DETAIL_EVERY_US`.
        """
        now_us = self._monotonic_us()
        self._look_for_lost(now_us)
        due = self._detail_us is None or now_us - self._detail_us >= DETAIL_EVERY_US
        detail = detail or due
        if detail:
            self._detail_us = now_us
        wall_us = self._wall_us()
        readings, refused = clean(self._devices.read(detail=detail))
        for reason in sorted(set(refused)):
            listener.failed(self.name, reason, refused.count(reason))
        faults = [raised(fault) for fault in self._edges.read(readings, wall_us)]
        self._seq += 1
        stamp = Stamp(time_us=wall_us, boot=self._boot, seq=self._seq)
        return [*faults, sampled(sample_of(readings, self._place, stamp, detail=detail))]

    def _look_for_lost(self, now_us: int) -> None:
        if self._edges.any_lost and now_us - self._opened_us >= REOPEN_EVERY_US:
            try:
                self.open()
            except DriverMissing as error:
                log.warning("devices are lost and cannot be opened", extra={"why": str(error)})

    def _heed_events(self, until_us: int, stop: threading.Event, listener: Listener) -> None:
        while not stop.is_set() and (left_us := until_us - self._monotonic_us()) > 0:
            try:
                event = self._devices.wait(min(left_us, WAIT_US))
            except NoEvents:
                stop.wait(min(left_us, WAIT_US) / SECOND_US)
                continue
            if event is None:
                continue
            repeats = self._edges.repeats
            listener.said([raised(fault) for fault in self._edges.raised(event, self._wall_us())])
            if self._edges.repeats > repeats:
                listener.failed(self.name, "repeated xid")
