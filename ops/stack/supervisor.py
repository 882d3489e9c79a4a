"""Runs the units of a stack: starts each when what it needs is ready, restarts it, stops it.

Owns order and nothing else: what a unit is comes from `unit`, which units there are from `local`.
Everything happens in `step`, called from the main thread, because the kernel ties a process to the
thread that started it; probes and preparations run in a few worker threads.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Final

from gpuloop.ops.stack import process
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.state import ProcessState
from gpuloop.ops.stack.unit import Phase, Unit, Watched

WORKERS: Final = 6
CHORES_SECONDS: Final = 1.0
REAP_SECONDS: Final = 2.0
SUPERVISOR: Final = "supervisor"
_SILENT: Final = frozenset({Phase.WAITING, Phase.PREPARING})
_BAD: Final = frozenset({Phase.BACKOFF, Phase.FAILED, Phase.UNREADY})

log: Final = logging.getLogger(__name__)


class Supervisor:
    """A set of units that need each other, and their processes."""

    def __init__(self, units: Sequence[Unit], *, logs: Path) -> None:
        self._workers: Final = ThreadPoolExecutor(WORKERS, thread_name_prefix="probe")
        self._logs: Final = logs
        self.units: Final[dict[str, Watched]] = {}
        self._needs: Final[dict[str, tuple[str, ...]]] = {}
        known = {unit.name for unit in units}
        for unit in units:
            self._watch(unit, known)
        self._told: Final[dict[str, Phase]] = {}
        self._chores_due = 0.0
        self.resident_bytes = 0
        self.resident_peak_bytes = 0

    def step(self) -> None:
        """Look at every unit once and do what is due."""
        now = monotonic()
        for name, watched in self.units.items():
            for need in self._needs[name]:
                if self.units[need].phase is Phase.FAILED:
                    watched.cannot_start(f"needs {need}, which was given up")
            watched.step(now, needs_ready=self._needs_ready(name))
            self._tell(watched)
        if now >= self._chores_due:
            self._chores_due = now + CHORES_SECONDS
            self.resident_bytes = process.resident_bytes(os.getpid())
            self.resident_peak_bytes = max(self.resident_peak_bytes, self.resident_bytes)
            for name in (*self.units, SUPERVISOR):
                process.bound_log(self._logs / f"{name}.log")

    def add(self, unit: Unit) -> None:
        """Run one more unit, whose needs are there."""
        self._watch(unit, set(self.units))

    def remove(self, names: Sequence[str]) -> None:
        """Stop units that nothing needs, all at once, and watch them no more."""
        self.stop(names)
        for name in names:
            del self.units[name], self._needs[name]
            self._told.pop(name, None)

    def _watch(self, unit: Unit, known: set[str]) -> None:
        log = self._logs / f"{unit.name}.log"
        self.units[unit.name] = Watched(unit, log=log, workers=self._workers)
        # A unit that was left out is somebody else's to provide.
        self._needs[unit.name] = tuple(need for need in unit.needs if need in known)

    def all_ready(self) -> bool:
        """Return whether every unit is ready."""
        return all(watched.phase is Phase.READY for watched in self.units.values())

    def failed(self) -> list[Watched]:
        """Return the units that were given up."""
        return [watched for watched in self.units.values() if watched.phase is Phase.FAILED]

    def states(self) -> tuple[ProcessState, ...]:
        """Return what `status` shows of every unit."""
        return tuple(watched.state() for watched in self.units.values())

    def stop(self, names: Sequence[str] | None = None) -> list[str]:
        """Stop units, those first that nothing needs any more; return those that had to be killed.

        Named units are stopped together, without regard to what needs them.
        """
        killed: list[str] = []
        for layer in [list(names)] if names is not None else self._layers():
            killed += self._stop_together([self.units[name] for name in layer])
        if names is None:
            self._workers.shutdown(wait=True, cancel_futures=True)
        return killed

    def kill(self) -> None:
        """Kill everything at once: the person asked twice."""
        for watched in self.units.values():
            if watched.child is not None:
                watched.child.kill_group()
                watched.child.reap(REAP_SECONDS)
            watched.stopped()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _tell(self, watched: Watched) -> None:
        """Log what a unit has become, once."""
        name, phase = watched.unit.name, watched.phase
        if phase in _SILENT or self._told.get(name) is phase:
            return
        self._told[name] = phase
        pid = watched.child.pid if watched.child is not None else None
        log.log(
            logging.WARNING if phase in _BAD else logging.INFO,
            "%s: %s",
            name,
            phase,
            extra={"detail": watched.detail, "child": pid, "restarts": watched.restarts},
        )

    def _stop_together(self, layer: list[Watched]) -> list[str]:
        running = [(watched, watched.child) for watched in layer if watched.child is not None]
        for watched, child in running:
            log.info("%s: asked to stop", watched.unit.name, extra={"child": child.pid})
            child.ask_to_stop()
        began = monotonic()
        killed = []
        for watched, child in running:
            left = child.program.stop_seconds - (monotonic() - began)
            if not child.reap(max(left, 0.0)):
                log.warning("%s: killed, it did not stop in time", watched.unit.name)
                killed.append(watched.unit.name)
                child.kill_group()
                child.reap(REAP_SECONDS)
        for watched in layer:
            watched.stopped()
            self._tell(watched)
        return killed

    def _needs_ready(self, name: str) -> bool:
        return all(self.units[need].phase is Phase.READY for need in self._needs[name])

    def _layers(self) -> list[list[str]]:
        """Return the names so that no unit stands after one that it needs."""
        left, layers = dict(self._needs), []
        while left:
            needed = {need for name in left for need in left[name]}
            layer = [name for name in left if name not in needed]
            if not layer:
                raise StackError(f"{', '.join(left)} need each other in a circle")
            layers.append(layer)
            for name in layer:
                del left[name]
        return layers
