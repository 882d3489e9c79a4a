"""What every source of telemetry is to the collector, and what the collector is to it."""

import threading
from collections.abc import Sequence
from typing import Protocol

from gpuloop.schemas.component import Output
from gpuloop.schemas.identity import source_event_id
from gpuloop.schemas.messages import Fault, GpuSample


class Listener(Protocol):
    """Takes what sources say; sources run in threads of their own and share it."""

    def said(self, outputs: Sequence[Output]) -> None:
        """Take telemetry, in order."""
        ...

    def failed(self, source: str, reason: str, count: int = 1) -> None:
        """Count something that could not be read or believed; `reason` is one of few."""
        ...


class Source(Protocol):
    """Something to observe; it says something, or that it failed, about every `every_us`."""

    name: str
    every_us: int

    def run(self, stop: threading.Event, listener: Listener) -> None:
        """Observe until `stop`.

        Raises:
            Explained: it can not be observed at all.

        """
        ...


def sampled(sample: GpuSample) -> Output:
    """Return a sample as it is written."""
    return Output(
        topic="telemetry.gpu",
        key=sample.node,
        message=sample,
        event_id=source_event_id(sample.fleet, sample.node, sample.boot, sample.seq),
        time_us=sample.event_time_us,
    )


def raised(fault: Fault) -> Output:
    """Return a fault as it is written."""
    source = f"{fault.node}/faults"
    return Output(
        topic="telemetry.faults",
        key=fault.node,
        message=fault,
        event_id=source_event_id(fault.fleet, source, fault.boot, fault.seq),
        time_us=fault.event_time_us,
    )
