"""One run of the stack in the foreground: from the lock to the report.

Owns the order of things around the supervisor: what a dead predecessor left is ended, the world is
wiped if asked, the state file is kept, and at the end the services stop before the broker, so that
the report counts everything and the audit is complete.
"""

import logging
import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Final

import msgspec

from gpuloop.loop.evaluate.auditor import sources
from gpuloop.loop.shells.broker import BrokerError
from gpuloop.loop.shells.clock import wall_us
from gpuloop.ops.stack import (
    kafka_jars,
    local,
    notices,
    postgres,
    preflight,
    process,
    report,
    scale,
    world,
)
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.local import LocalStack, Options
from gpuloop.ops.stack.moment import Moment, StopRequest, View
from gpuloop.ops.stack.monitor import Monitor
from gpuloop.ops.stack.rerun import Rerun, plan, simulate
from gpuloop.ops.stack.state import StackPhase, StackState, read, write
from gpuloop.ops.stack.supervisor import Supervisor
from gpuloop.ops.stack.tally import Tally
from gpuloop.ops.stack.unit import Phase

STEP_SECONDS: Final = 0.1
STATE_SECONDS: Final = 1.0
CATCH_UP_SECONDS: Final = 15.0
LEFTOVER_SECONDS: Final = 5.0
READY_SECONDS: Final = 600.0
"""How long a run of limited length waits for its stack; longer is not slow, it is broken."""

INDISPENSABLE: Final = ("kafka", "topics")
AGAIN: Final = "running the twin again under {}, for the report (Ctrl-C skips this)"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended; `problem` says why it did not do what it is for, and is empty if it did."""

    report: report.Report | None
    rerun: Rerun | None
    failed: tuple[str, ...]
    killed: tuple[str, ...]
    problem: str = ""


def run(
    options: Options,
    view: View,
    stop: StopRequest,
    *,
    fresh: bool = False,
    seconds: float | None = None,
    with_report: bool = True,
) -> Ended:
    """Run the stack until `stop`, or for `seconds` from when it is ready, and take it down again.

    Raises:
        StackError: it is already up, or cannot be started.

    """
    options = replace(options, settings=preflight.check(options, fresh=fresh))
    layout = Layout(options.root)
    layout.create()
    with layout.locked():
        for name in end_leftovers(layout):
            view.say(f"ended {name}, left by a supervisor that was killed")
        if fresh:
            postgres.wipe(layout.root)
            layout.wipe()
        classpath: tuple[Path, ...] = ()
        if not options.existing_cluster:
            classpath = kafka_jars.fetch(
                kafka_jars.cache_folder(),
                lambda done, total: kafka_jars.show(view.say, done=done, total=total),
            )
        stack = local.assemble(options, classpath)
        if stack.simulated:
            world.remember(layout.world, options.settings)
        current = _Run(layout, stack, view, stop)
        with stop.on_signals():
            ended = current.through(seconds, with_report=with_report)
    return _simulated(ended, view)


def _simulated(ended: Ended, view: View) -> Ended:
    """Return the end of the run with its re-runs, unless there are none or a person won't wait."""
    if ended.report is None or ended.rerun is None:
        return ended
    view.say(AGAIN.format("policy and rule" if ended.rerun.policies else "the rule"))
    try:
        found = simulate(ended.rerun, lambda share: view.progress("simulating", share))
    except KeyboardInterrupt:
        view.say("skipped: the report has no simulated figures")
        return ended
    except StackError as error:
        view.say(f"{error}: the report has no simulated figures")
        return ended
    return replace(ended, report=report.with_simulation(ended.report, found))


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


def _before_the_auditor(units: Iterable[str]) -> list[str]:
    """Return the services that write what the auditor chains, added workers among them."""
    return [name for name in units if name not in (*INDISPENSABLE, "postgres", "auditor")]


class _Run:
    def __init__(self, layout: Layout, stack: LocalStack, view: View, stop: StopRequest) -> None:
        self._layout: Final = layout
        self._stack: Final = stack
        self._view: Final = view
        self._stop: Final = stop
        self._supervisor: Final = Supervisor(stack.units, logs=layout.logs)
        scale.forget(layout)
        self._monitor: Monitor | None = None
        self._started_wall_us: Final = wall_us()
        self._started: Final = monotonic()
        self._ready: float | None = None
        self._ready_wall_us = 0
        self._phase: StackPhase = "starting"
        self._notices: tuple[str, ...] = ()
        self._stale_seconds = 0.0
        self._looked = self._started
        self._state_due = 0.0
        self._trace = ""
        self._rerun: Rerun | None = None

    def through(self, seconds: float | None, *, with_report: bool) -> Ended:
        problem = ""
        log.info("the stack starts", extra={"units": [unit.name for unit in self._stack.units]})
        try:
            try:
                self._until_asked(seconds)
            except StackError as error:
                problem = str(error)
            self._say_stopping()
            troubles = tuple(notices.of_units(self._supervisor.units.values()))
            failed = tuple(watched.unit.name for watched in self._supervisor.failed())
            built = self._finish(with_report=with_report)
            self._forget_monitor()
            killed = self._supervisor.stop()
        except BaseException:
            self._supervisor.kill()
            raise
        finally:
            self._phase = "stopped"
            self._forget_monitor()
            self._stack.broker.close()
            self._save()
            log.info("the stack has stopped")
        problem = problem or self._problem(built)
        if built is not None:
            built = msgspec.structs.replace(built, problem=problem, troubles=troubles)
        return Ended(
            report=built, rerun=self._rerun, failed=failed, killed=tuple(killed), problem=problem
        )

    def _problem(self, built: report.Report | None) -> str:
        """Return why the run did not do what it is for, if it did not."""
        if self._ready is None:
            return "the stack was not ready when the run ended"
        if built is not None and "decider" in self._stack.services and built.decisions == 0:
            return "nothing was decided"
        return ""

    def _say_stopping(self) -> None:
        self._phase = "stopping"
        self._save()
        self._view.say("stopping: services, audit, then Kafka (Ctrl-C again kills everything)")
        log.info("the stack is asked to stop")
        self._show(monotonic())

    def _until_asked(self, seconds: float | None) -> None:
        units = self._supervisor.units
        while not self._stop.wait(STEP_SECONDS):
            now = monotonic()
            self._supervisor.step()
            for name in INDISPENSABLE:
                if units[name].phase is Phase.FAILED:
                    raise StackError(f"{name} failed: {units[name].detail}")
            if "twin" in units and units["twin"].phase is Phase.READY:
                self._trace = units["twin"].detail.partition(", fleet time")[0]
            if self._monitor is None and units["topics"].phase is Phase.READY:
                self._monitor = Monitor(self._stack.broker, self._stack.baseline)
            if self._phase == "starting" and self._settled():
                self._phase, self._ready, self._ready_wall_us = "running", now, wall_us()
                self._state_due = now
                log.info("the stack is ready", extra={"seconds": round(now - self._started, 1)})
            if self._phase == "running":
                self._scale()
            self._look(now)
            self._show(now)
            if seconds is not None and self._is_over(now, seconds):
                return

    def _scale(self) -> None:
        """Have as many workers of each service as were asked for."""
        too_many = []
        for name, count in scale.asked(self._layout).items():
            if name not in self._stack.services:
                continue  # Left out of this stack.
            for number in range(2, scale.MAX_WORKERS + 1):
                one = scale.worker(name, number)
                if number <= count and one not in self._supervisor.units:
                    self._supervisor.add(self._stack.worker(name, number))
                elif number > count and one in self._supervisor.units:
                    too_many.append(one)
        self._supervisor.remove(too_many)

    def _is_over(self, now: float, seconds: float) -> bool:
        if self._ready is not None:
            return now - self._ready >= seconds
        return now - self._started >= READY_SECONDS

    def _settled(self) -> bool:
        return all(watched.settled() for watched in self._supervisor.units.values())

    def _look(self, now: float) -> None:
        """Note what a person must know, and for how long there was no fresh state."""
        root = self._layout.root
        said = notices.of_room(root, shutil.disk_usage(root).free)
        said += notices.of_units(self._supervisor.units.values())
        if self._ready is not None and self._monitor is not None:
            fleet = "observe" in self._stack.services
            with self._monitor.lock:
                said += notices.of_people(self._monitor.tally)
                stale = fleet and notices.of_state(
                    self._monitor.tally,
                    now_us=wall_us(),
                    ready_us=self._ready_wall_us,
                    speed=self._stack.settings.speed,
                )
            if stale:
                said.insert(0, stale)
                self._stale_seconds += now - self._looked
        self._looked = now
        self._notices = tuple(said)

    def _show(self, now: float) -> None:
        self._view.refresh(
            Moment(
                phase=self._phase,
                supervisor=self._supervisor,
                monitor=self._monitor,
                elapsed_seconds=now - self._started,
                phase_seconds=now - (self._started if self._ready is None else self._ready),
                stack=self._stack,
                notices=self._notices,
            )
        )
        if now >= self._state_due:
            self._state_due = now + STATE_SECONDS
            self._save()

    def _finish(self, *, with_report: bool) -> report.Report | None:
        """Stop the services, the auditor last, and count what they did."""
        ended_wall_us = wall_us()
        for name in self._supervisor.stop(_before_the_auditor(self._supervisor.units)):
            self._view.say(f"{name} did not stop in time and was killed")
        if self._monitor is not None and "auditor" in self._stack.services:
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
            threading.Event().wait(STEP_SECONDS)
        self._view.say("the auditor did not catch up in time")

    def _forget_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.close()

    def _report(self, ended_wall_us: int) -> report.Report:
        monitor = self._monitor
        if monitor is None:
            nothing = report.Audited(records=0, ok=False, problem="there is no topic to verify")
            return self._built(Tally(), 0, nothing, ended_wall_us)
        audited = report.verify_audit(self._stack.settings)
        try:
            if not monitor.catch_up(CATCH_UP_SECONDS):
                self._view.say("not everything written could be counted in time")
            events = monitor.events()
            with monitor.lock:
                if self._stack.simulated and not self._stop.hasty:
                    self._rerun = plan(self._stack.settings, monitor.tally, self._stack.broker)
        except BrokerError as error:
            self._view.say(f"not everything written could be counted: {error}")
            events = 0
        with monitor.lock:
            return self._built(monitor.tally, events, audited, ended_wall_us)

    def _built(
        self, tally: Tally, events: int, audited: report.Audited, ended_wall_us: int
    ) -> report.Report:
        units = self._supervisor.units
        ready_us = self._ready_wall_us - self._started_wall_us
        return report.build(
            tally,
            trace=self._trace,
            seed=self._stack.settings.seed,
            events=events,
            audited=audited,
            resident_bytes=self._supervisor.resident_peak_bytes,
            restarts={name: unit.restarts for name, unit in units.items() if unit.restarts},
            started_wall_us=self._started_wall_us,
            ended_wall_us=ended_wall_us,
            seconds_to_ready=None if self._ready is None else round(ready_us / 1e6, 1),
            seconds_without_fresh_state=round(self._stale_seconds, 1),
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
                notices=self._notices if self._phase in ("starting", "running") else (),
            ),
        )
