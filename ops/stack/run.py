"""One run of the stack in the foreground: from the lock to the report.

Owns the order of things around the supervisor: what a dead predecessor left is ended, the world is
wiped if asked, the state file is kept, and at the end the services stop before the broker, so that
the report counts everything and the audit is complete.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Final, Protocol

import msgspec

from gpuloop.loop.evaluate.auditor import sources
from gpuloop.loop.shells.broker import BrokerError
from gpuloop.loop.shells.clock import wall_us
from gpuloop.ops.stack import kafka_jars, local, postgres, process, report, world
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.local import LocalStack, Options
from gpuloop.ops.stack.monitor import Monitor
from gpuloop.ops.stack.rerun import Rerun, plan, simulate
from gpuloop.ops.stack.state import StackPhase, StackState, read, write
from gpuloop.ops.stack.supervisor import Supervisor
from gpuloop.ops.stack.unit import Phase

STEP_SECONDS: Final = 0.1
STATE_SECONDS: Final = 1.0
CATCH_UP_SECONDS: Final = 15.0
LEFTOVER_SECONDS: Final = 5.0
INDISPENSABLE: Final = ("kafka", "topics")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The run as it is now, for whoever shows it. Read the tally under the monitor's lock."""

    phase: StackPhase
    supervisor: Supervisor
    monitor: Monitor | None
    elapsed_seconds: float
    stack: LocalStack


class View(Protocol):
    """Shows a run to a person."""

    def say(self, line: str) -> None:
        """Show one line for good."""
        ...

    def refresh(self, moment: Moment) -> None:
        """Show the run as it is now; called about ten times a second."""
        ...


class StopRequest:
    """A person's or the system's wish that the run stop; the second one interrupts it."""

    def __init__(self) -> None:
        self._event: Final = threading.Event()
        self.hasty = False
        """Whether somebody waits for the end, as `gpuloop down` does."""

    def wait(self, seconds: float) -> bool:
        """Wait; return whether the wish has come."""
        return self._event.wait(seconds)

    def set(self) -> None:
        """Ask the run to stop."""
        self._event.set()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into the wish until the end of the block."""

        def ask(number: int, _frame: FrameType | None) -> None:
            if self._event.is_set():
                raise KeyboardInterrupt
            self.hasty = number == signal.SIGTERM
            self._event.set()

        before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended; `report` is None when it never got as far as its topics."""

    report: report.Report | None
    rerun: Rerun | None
    failed: tuple[str, ...]
    killed: tuple[str, ...]


def run(
    options: Options,
    view: View,
    stop: StopRequest,
    *,
    fresh: bool = False,
    seconds: float | None = None,
    with_report: bool = True,
) -> Ended:
    """Run the stack until `stop`, or for `seconds`, and take it down again.

    Raises:
        StackError: it is already up, cannot be started, or lost what it cannot do without.

    """
    layout = Layout(options.root)
    layout.create()
    with layout.locked():
        for name in end_leftovers(layout):
            view.say(f"ended {name}, left by a supervisor that was killed")
        if fresh:
            postgres.wipe(layout.root)
            layout.wipe()
        if "twin" in {service.name for service in local.chosen(options)}:
            options = replace(options, settings=world.resume(layout.world, options.settings))
        classpath: tuple[Path, ...] = ()
        if not options.existing_cluster:
            classpath = kafka_jars.fetch(
                kafka_jars.cache_folder(),
                lambda done, total: kafka_jars.show(view.say, done=done, total=total),
            )
        current = _Run(layout, local.assemble(options, classpath), view, stop)
        with stop.on_signals():
            ended = current.through(seconds, with_report=with_report)
    return _simulated(ended, view)


def _simulated(ended: Ended, view: View) -> Ended:
    """Return the end of the run with its re-runs, unless there are none or a person won't wait."""
    if ended.report is None or ended.rerun is None:
        return ended
    view.say("running the twin again under policy and rule, for the report (Ctrl-C skips this)")
    try:
        found = report.with_simulation(ended.report, simulate(ended.rerun))
    except KeyboardInterrupt:
        return ended
    return replace(ended, report=found)


def end_leftovers(layout: Layout) -> list[str]:
    """End what a supervisor that is gone left behind; return the names."""
    state = read(layout.state)
    if state is None or state.phase == "stopped":
        return []
    return [
        entry.name
        for entry in state.processes
        if entry.pid is not None
        and process.end_leftover(entry.pid, entry.created, seconds=LEFTOVER_SECONDS)
    ]


class _Run:
    def __init__(self, layout: Layout, stack: LocalStack, view: View, stop: StopRequest) -> None:
        self._layout: Final = layout
        self._stack: Final = stack
        self._view: Final = view
        self._stop: Final = stop
        self._supervisor: Final = Supervisor(stack.units, logs=layout.logs)
        self._monitor: Monitor | None = None
        self._started_wall_us: Final = wall_us()
        self._started: Final = monotonic()
        self._phase: StackPhase = "starting"
        self._state_due = 0.0
        self._trace = ""
        self._rerun: Rerun | None = None

    def through(self, seconds: float | None, *, with_report: bool) -> Ended:
        try:
            self._until_asked(seconds)
            self._phase = "stopping"
            self._show(self._started)
            built = self._finish(with_report=with_report)
            self._forget_monitor()
            failed = tuple(watched.unit.name for watched in self._supervisor.failed())
            killed = self._supervisor.stop()
        except BaseException:
            self._supervisor.kill()
            raise
        finally:
            self._phase = "stopped"
            self._forget_monitor()
            self._stack.broker.close()
            self._save()
        return Ended(report=built, rerun=self._rerun, failed=failed, killed=tuple(killed))

    def _until_asked(self, seconds: float | None) -> None:
        units = self._supervisor.units
        while not self._stop.wait(STEP_SECONDS):
            now = monotonic()
            self._supervisor.step()
            if "twin" in units and units["twin"].phase is Phase.READY:
                self._trace = units["twin"].detail.partition(", fleet time")[0]
            if self._monitor is None and units["topics"].phase is Phase.READY:
                self._monitor = Monitor(self._stack.broker, self._stack.baseline)
            if self._phase == "starting" and self._settled():
                self._phase = "running"
                self._state_due = now
            self._show(now)
            for name in INDISPENSABLE:
                if units[name].phase is Phase.FAILED:
                    raise StackError(f"{name}: {units[name].detail}")
            if seconds is not None and now - self._started >= seconds:
                return

    def _settled(self) -> bool:
        return all(w.phase in (Phase.READY, Phase.FAILED) for w in self._supervisor.units.values())

    def _show(self, now: float) -> None:
        self._view.refresh(
            Moment(
                phase=self._phase,
                supervisor=self._supervisor,
                monitor=self._monitor,
                elapsed_seconds=now - self._started,
                stack=self._stack,
            )
        )
        if now >= self._state_due:
            self._state_due = now + STATE_SECONDS
            self._save()

    def _finish(self, *, with_report: bool) -> report.Report | None:
        """Stop the services, the auditor last, and count what they did."""
        services = [name for name in self._stack.services if name != "auditor"]
        ended_wall_us = wall_us()
        for name in self._supervisor.stop(services):
            self._view.say(f"{name} did not stop in time and was killed")
        if self._monitor is None:
            return None
        if "auditor" in self._stack.services:
            self._await_auditor()
            self._supervisor.stop(["auditor"])
        return self._report(ended_wall_us) if with_report else None

    def _await_auditor(self) -> None:
        """Let the auditor chain what the others wrote last; it is not long."""
        port = self._supervisor.units["auditor"].unit.port
        assert port is not None
        try:
            ends = self._stack.broker.ends(sources(self._stack.broker))
        except BrokerError as error:
            log.warning("cannot see how far the auditor must come: %s", error)
            return
        deadline = monotonic() + CATCH_UP_SECONDS
        while monotonic() < deadline:
            found = local.health(port)
            if found is None:
                return
            if all(found.positions.get(str(part), 0) >= end for part, end in ends.items()):
                return
            self._stop_pause()
        self._view.say("the auditor did not catch up in time")

    def _forget_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.close()

    def _stop_pause(self) -> None:
        threading.Event().wait(STEP_SECONDS)

    def _report(self, ended_wall_us: int) -> report.Report:
        assert self._monitor is not None
        if not self._monitor.catch_up(CATCH_UP_SECONDS):
            self._view.say("not everything written could be counted in time")
        settings = self._stack.settings
        with self._monitor.lock:
            if self._stack.simulated and not self._stop.hasty:
                self._rerun = plan(settings, self._monitor.tally, self._stack.broker)
            return report.build(
                self._monitor.tally,
                trace=self._trace,
                seed=settings.seed,
                events=self._monitor.events(),
                audited=report.verify_audit(settings),
                resident_bytes=self._supervisor.resident_peak_bytes,
                restarts={
                    name: watched.restarts
                    for name, watched in self._supervisor.units.items()
                    if watched.restarts
                },
                started_wall_us=self._started_wall_us,
                ended_wall_us=ended_wall_us,
            )

    def _save(self) -> None:
        supervisor = self._supervisor
        write(
            self._layout.state,
            StackState(
                phase=self._phase,
                pid=os.getpid(),
                created=process.created(os.getpid()) or 0.0,
                started_wall_us=self._started_wall_us,
                environment=self._stack.settings.environment(),
                resident_bytes=supervisor.resident_bytes,
                resident_peak_bytes=supervisor.resident_peak_bytes,
                processes=supervisor.states(),
            ),
        )


def write_report(path: Path, built: report.Report) -> None:
    """Write a report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(built), indent=2) + b"\n")
