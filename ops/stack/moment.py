"""How a run is shown and stopped: what a view is told, and who may ask for the end.

Knows neither terminals nor signals' senders; the command line gives both.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from gpuloop.ops.stack.local import LocalStack
from gpuloop.ops.stack.monitor import Monitor
from gpuloop.ops.stack.state import StackPhase
from gpuloop.ops.stack.supervisor import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The run as it is now, for whoever shows it. Read the tally under the monitor's lock.

    `elapsed_seconds` counts from the start, `phase_seconds` from when it was ready, once it was.
    """

    phase: StackPhase
    supervisor: Supervisor
    monitor: Monitor | None
    elapsed_seconds: float
    phase_seconds: float
    stack: LocalStack
    notices: tuple[str, ...] = ()


class View(Protocol):
    """Shows a run to a person."""

    def say(self, line: str) -> None:
        """Show one line for good."""
        ...

    def refresh(self, moment: Moment) -> None:
        """Show the run as it is now; called about ten times a second."""
        ...

    def progress(self, what: str, share: float) -> None:
        """Show how far something that takes its time has come, from 0 to 1."""
        ...


class StopRequest:
    """A person's or the system's wish that the run stop; the second one interrupts it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.hasty = False
        """Whether somebody waits for the end, as `gpuloop down` does."""

    def wait(self, seconds: float) -> bool:
        """Wait; return whether the wish has come."""
        return self._event.wait(seconds)

    def set(self, *, hasty: bool = False) -> None:
        """Ask the run to stop."""
        self.hasty = self.hasty or hasty
        self._event.set()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into the wish until the end of the block."""

        def ask(number: int, _frame: FrameType | None) -> None:
            if self._event.is_set():
                raise KeyboardInterrupt
            self.set(hasty=number == signal.SIGTERM)

        before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
