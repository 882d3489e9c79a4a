"""One supervised thing and its life: waiting, starting, ready, crashed, restarted, given up.

A unit is a process, or a task that is done once. `Watched` decides from what it can observe (exit
status, answer of the unit itself, time) what to do next; waiting is never a guess at how long
something takes. It does not know the other units beyond their names.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.last_words import last_words
from gpuloop.ops.stack.process import Child, Program
from gpuloop.ops.stack.state import ProcessState

FIRST_BACKOFF_SECONDS: Final = 0.5
LAST_BACKOFF_SECONDS: Final = 30.0
MAX_FAILURES: Final = 10
MAX_FAILURES_BEFORE_READY: Final = 6
"""What has never been ready fails for a reason that does not pass."""

STEADY_SECONDS: Final = 60.0
AGAIN: Final = 2
"""Ends without a steady minute between them, from which on it is said: it fails again and again."""

MIN_UNANSWERED: Final = 10
"""A supervisor that was itself kept from running has asked few times, however late it is."""

FIRST_PROBE_SECONDS: Final = 0.1
STARTING_PROBE_SECONDS: Final = 1.0
RUNNING_PROBE_SECONDS: Final = 2.0


class Phase(StrEnum):
    """Where a unit is in its life."""

    WAITING = "waiting"
    PREPARING = "preparing"
    STARTING = "starting"
    READY = "ready"
    UNREADY = "not ready"
    BACKOFF = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class Answer(NamedTuple):
    """What a unit says of itself; `answered` is false when nobody did, or not the one who works.

    `outside` is true of one that runs and is only not ready for what is no part of the loop.
    """

    ready: bool
    detail: str
    answered: bool = True
    outside: bool = False


def _nothing() -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is supervised.

    `prepare` runs in a thread when the units in `needs` are ready, and returns a detail to show.
    What it raises may pass: it gets `tries` in a row, further and further apart. A unit without a
    `program` is a task: ready once prepared. `probe` runs in a thread and asks the process itself.
    `prepare` and `probe` raise `StackError` for what a person can fix.
    A process gets `ready_seconds` to be ready from when it last said something new of itself:
    recovering much takes long and is not hanging. One that was ready and then gives no answer for
    `hung_seconds` is started again; one that answers that it is not ready is left alone, for it may
    wait for another. One that waits for what is outside has started, ready or not.
    """

    name: str
    needs: tuple[str, ...] = ()
    prepare: Callable[[], str] = _nothing
    tries: int = 1
    program: Callable[[], Program] | None = None
    probe: Callable[[], Answer] = lambda: Answer(True, "")
    port: int | None = None
    ready_seconds: float = 120.0
    hung_seconds: float | None = None


class Watched:
    """A unit as it is now. Driven by `step` from the thread that may start processes."""

    def __init__(self, unit: Unit, *, log: Path, workers: ThreadPoolExecutor) -> None:
        self.unit: Final = unit
        self.phase = Phase.WAITING
        self.detail = ""
        self.restarts = 0
        self.last_failure = ""
        self.exit_status: int | None = None
        self.child: Child | None = None
        self._log: Final = log
        self._workers: Final = workers
        self._asked: Future[Answer] | None = None
        self._failures = 0
        self._is_prepared = False
        self._was_ready = False
        self._blocked = False
        self._moved = 0.0
        self._ready_since: float | None = None
        self._next = 0.0
        self._interval = FIRST_PROBE_SECONDS
        self._unanswered = 0
        self._silent_since = 0.0
        self._outside = False

    def step(self, now: float, *, needs_ready: bool) -> None:
        """Take what can be observed at `now` (monotonic seconds) and do what follows from it."""
        match self.phase:
            case Phase.WAITING if needs_ready:
                self._prepare()
            case Phase.PREPARING:
                self._prepared(now)
            case Phase.STARTING | Phase.READY | Phase.UNREADY if self.child is not None:
                self._watch(now)
            case Phase.BACKOFF if now >= self._next and self._is_prepared:
                self._start(now)
            case Phase.BACKOFF if now >= self._next:
                self._prepare()

    def settled(self) -> bool:
        """Say whether a start has come to its end: ready, given up, or awaiting what is outside."""
        if self.phase is Phase.UNREADY:
            return self._outside
        return self.phase in (Phase.READY, Phase.FAILED)

    def trouble(self) -> str:
        """Return what a person must know of the unit: given up, or failing again and again."""
        if self._blocked:
            return ""  # What it waited for is the trouble.
        if self.phase is Phase.FAILED:
            given_up = self.unit.tries > 1 or self.unit.program is not None
            return f"{self.unit.name}{' was given up' if given_up else ''}: {self.detail}"
        if self._failures >= AGAIN:
            return f"{self.unit.name} fails again and again: {self.last_failure}"
        return ""

    def cannot_start(self, why: str) -> None:
        """Give the unit up if it still waits; one that runs goes on without what it needed."""
        if self.phase is Phase.WAITING:
            self.phase, self.detail, self._blocked = Phase.FAILED, why, True

    def state(self) -> ProcessState:
        """Return what `status` shows."""
        child = self.child
        return ProcessState(
            name=self.unit.name,
            phase=str(self.phase),
            detail=self.detail,
            pid=child.pid if child else None,
            created=child.created if child else 0.0,
            port=self.unit.port,
            restarts=self.restarts,
            exit_status=self.exit_status,
            last_failure=self.last_failure,
        )

    def stopped(self) -> None:
        """Note that the process is gone because it was asked to."""
        if self.child is not None:
            self.exit_status = self.child.exit_status()
            self.child.kill_group()
            self.child = None
        if self.phase is not Phase.FAILED:
            self.phase, self.detail = Phase.STOPPED, ""

    def _prepare(self) -> None:
        self.phase = Phase.PREPARING
        self._asked = self._workers.submit(lambda: Answer(True, self.unit.prepare()))

    def _prepared(self, now: float) -> None:
        if self._asked is None or not self._asked.done():
            return
        answer, self._asked = self._result(self._asked), None
        self.detail = answer.detail
        if not answer.ready:
            self._unprepared(now)
            return
        self._is_prepared, self._failures = True, 0
        if self.unit.program is None:
            self.phase = Phase.READY
        else:
            self._start(now)

    def _unprepared(self, now: float) -> None:
        self.last_failure = self.detail
        self._failures += 1
        if self._failures < self.unit.tries:
            self._back_off(now)
            return
        self.phase = Phase.FAILED
        if self.unit.tries > 1:
            self.detail += f"; given up after {self._failures} tries in a row"

    def _start(self, now: float) -> None:
        assert self.unit.program is not None
        self.child = Child(self.unit.program(), self._log)
        self.phase, self.detail = Phase.STARTING, ""
        self._moved, self._ready_since, self._asked = now, None, None
        self._unanswered = 0
        self._interval = FIRST_PROBE_SECONDS
        self._next = now + self._interval

    def _watch(self, now: float) -> None:
        assert self.child is not None
        status = self.child.exit_status()
        if status is not None:
            words = last_words(self._log)
            self._crashed(now, status, f"ended with {_exit_text(status)}{words and f': {words}'}")
            return
        if self._asked is not None:
            if self._asked.done():
                answer, self._asked = self._result(self._asked), None
                self._hear(answer, now)
        elif now >= self._next:
            self._asked = self._workers.submit(self.unit.probe)
        late = now - self._moved > self.unit.ready_seconds
        if self.phase is Phase.STARTING and late:
            self._kill(now, f"not ready within {self.unit.ready_seconds:.0f} s")
        elif self._hangs(now):
            self._kill(now, f"hung: {self.detail} for {now - self._silent_since:.0f} s")

    def _kill(self, now: float, why: str) -> None:
        assert self.child is not None
        self.child.kill_group()
        self.child.reap(1.0)
        self._crashed(now, None, why)

    def _hangs(self, now: float) -> bool:
        """Say whether a process that was ready has been silent for long, however often asked."""
        patience = self.unit.hung_seconds
        return (
            patience is not None
            and self.phase is Phase.UNREADY
            and self._unanswered >= MIN_UNANSWERED
            and now - self._silent_since > patience
        )

    def _hear(self, answer: Answer, now: float) -> None:
        if answer.answered and answer.detail != self.detail:
            self._moved = now
        self.detail, self._outside = answer.detail, answer.outside
        if answer.answered:
            self._unanswered = 0
        else:
            self._silent_since = self._silent_since if self._unanswered else now
            self._unanswered += 1
        if answer.ready:
            self.phase, self._was_ready = Phase.READY, True
            self._ready_since = now if self._ready_since is None else self._ready_since
            if now - self._ready_since >= STEADY_SECONDS:
                self._failures = 0
            self._next = now + RUNNING_PROBE_SECONDS
            return
        if self.phase is not Phase.STARTING or answer.outside:
            self.phase, self._ready_since = Phase.UNREADY, None
        self._interval = min(self._interval * 1.5, STARTING_PROBE_SECONDS)
        self._next = now + self._interval

    def _crashed(self, now: float, status: int | None, detail: str) -> None:
        assert self.child is not None
        self.child.kill_group()
        self.child, self.exit_status, self.detail = None, status, detail
        self.last_failure = detail
        self._asked = None
        self._failures += 1
        if self._failures >= (MAX_FAILURES if self._was_ready else MAX_FAILURES_BEFORE_READY):
            self.phase = Phase.FAILED
            self.detail = f"{detail}; given up after {self._failures} starts in a row"
            return
        self._back_off(now)

    def _back_off(self, now: float) -> None:
        self.restarts += 1
        self.phase = Phase.BACKOFF
        wait = FIRST_BACKOFF_SECONDS * 2 ** (self._failures - 1)
        self._next = now + min(wait, LAST_BACKOFF_SECONDS)

    @staticmethod
    def _result(asked: Future[Answer]) -> Answer:
        try:
            return asked.result()
        except (StackError, OSError) as error:
            return Answer(False, str(error), answered=False)


def _exit_text(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
