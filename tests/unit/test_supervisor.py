"""The supervisor starts what is due, restarts what crashes, and leaves nothing behind."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import sleep

import psutil
import pytest

from gpuloop.ops.stack import process
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.supervisor import Supervisor
from gpuloop.ops.stack.unit import MAX_FAILURES_BEFORE_READY, Answer, Phase, Unit, Watched
from processes import SLEEPER, alive, process_unit, python, until


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def make(*units: Unit) -> Supervisor:
        made.append(Supervisor(units, logs=tmp_path))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.kill()


Supervise = Callable[..., Supervisor]


def test_unit_waits_until_what_it_needs_says_it_is_ready(supervise: Supervise) -> None:
    broker_ready = False
    supervisor = supervise(
        process_unit("broker", probe=lambda: Answer(broker_ready, "")),
        process_unit("service", needs=("broker",)),
    )
    service = supervisor.units["service"]
    until(lambda: supervisor.units["broker"].phase is Phase.STARTING, supervisor.step)
    for _ in range(30):
        supervisor.step()
        sleep(0.01)
    assert service.phase is Phase.WAITING
    assert service.child is None
    broker_ready = True
    until(supervisor.all_ready, supervisor.step)


def test_need_that_was_left_out_of_the_stack_does_not_block(supervise: Supervise) -> None:
    supervisor = supervise(process_unit("service", needs=("elsewhere",)))
    until(supervisor.all_ready, supervisor.step)


def test_failing_preparation_is_told_and_blocks_what_needs_it(supervise: Supervise) -> None:
    def prepare() -> str:
        raise StackError("no such cluster")

    supervisor = supervise(
        Unit(name="topics", prepare=prepare), process_unit("service", needs=("topics",))
    )
    until(lambda: bool(supervisor.failed()), supervisor.step)
    assert supervisor.failed()[0].detail == "no such cluster"
    supervisor.step()
    assert supervisor.units["service"].detail == "needs topics, which was given up"
    assert supervisor.units["service"].child is None


def test_task_whose_failure_passes_is_tried_again_and_then_ready(tmp_path: Path) -> None:
    """Time is an argument of `step`, so the waits can be read off without waiting."""
    failures = iter(["no leader", "no leader"])
    waits, details = task_that_fails(tmp_path, lambda: next(failures, ""))
    assert waits == [0.5, 1.0]
    assert details == ["no leader", "no leader", "done"]


def test_task_that_fails_every_time_is_given_up_with_what_failed(tmp_path: Path) -> None:
    waits, details = task_that_fails(tmp_path, lambda: "no leader")
    assert waits == [0.5, 1.0, 2.0]
    assert details[-1] == "no leader; given up after 4 tries in a row"


def task_that_fails(tmp_path: Path, failure: Callable[[], str]) -> tuple[list[float], list[str]]:
    """Return the waits of a task with four tries, and what it said after each."""

    def prepare() -> str:
        if why := failure():
            raise StackError(why)
        return "done"

    waits, details, now = list[float](), list[str](), 0.0
    with ThreadPoolExecutor(1) as workers:
        unit = Unit(name="topics", prepare=prepare, tries=4)
        watched = Watched(unit, log=tmp_path / "log", workers=workers)
        settled = (Phase.BACKOFF, Phase.FAILED, Phase.READY)
        while True:
            until(lambda: watched.phase in settled, partial(watched.step, now, needs_ready=True))
            details.append(watched.detail)
            if watched.phase is not Phase.BACKOFF:
                break
            waits.append(0.0)
            while watched.phase is Phase.BACKOFF:
                waits[-1] += 0.5
                watched.step(now + waits[-1], needs_ready=True)
            now += waits[-1]
    return waits, details


def test_crashed_process_is_restarted_and_counted(supervise: Supervise) -> None:
    supervisor = supervise(process_unit("service"))
    until(supervisor.all_ready, supervisor.step)
    watched = supervisor.units["service"]
    assert watched.child is not None
    first = watched.child.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: watched.phase is Phase.BACKOFF, supervisor.step)
    assert watched.detail == "ended with signal 9"
    until(supervisor.all_ready, supervisor.step)
    assert watched.child is not None
    assert watched.child.pid != first
    assert watched.restarts == 1


def test_status_says_in_the_words_of_a_service_why_it_ended(supervise: Supervise) -> None:
    says = 'print(\'{"level": "critical", "message": "service failed: x is damaged"}\'); exit(1)'
    supervisor = supervise(process_unit("service", says))
    watched = supervisor.units["service"]
    until(lambda: watched.phase is Phase.BACKOFF, supervisor.step)
    assert watched.state().last_failure == "ended with status 1: x is damaged"


def test_log_of_the_supervisor_tells_starts_readiness_restarts_and_stops(
    supervise: Supervise, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gpuloop.ops")
    supervisor = supervise(process_unit("service"))
    watched = supervisor.units["service"]
    until(supervisor.all_ready, supervisor.step)
    assert watched.child is not None
    os.kill(watched.child.pid, signal.SIGKILL)
    until(lambda: watched.restarts == 1, supervisor.step)
    until(supervisor.all_ready, supervisor.step)
    supervisor.stop()
    assert [record.getMessage() for record in caplog.records] == [
        "service: starting",
        "service: ready",
        "service: restarting",
        "service: starting",
        "service: ready",
        "service: asked to stop",
        "service: stopped",
    ]


def test_restarts_back_off_exponentially_and_end(tmp_path: Path) -> None:
    """Time is an argument of `step`, so the waits can be read off without waiting."""
    unit = process_unit("service", "raise SystemExit(3)")
    waits, troubles = [], []
    with ThreadPoolExecutor(1) as workers:
        watched = Watched(unit, log=tmp_path / "log", workers=workers)
        now = 0.0
        until(lambda: watched.child is not None, lambda: watched.step(now, needs_ready=True))
        while watched.phase is not Phase.FAILED:
            until(
                lambda: watched.phase in (Phase.BACKOFF, Phase.FAILED),
                partial(watched.step, now, needs_ready=True),
            )
            waited = 0.0
            while watched.phase is Phase.BACKOFF:
                waited += 0.5
                watched.step(now + waited, needs_ready=True)
            now += waited
            waits.append(waited)
            troubles.append(watched.trouble())
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 0.0]
    assert troubles[0] == ""
    assert set(troubles[1:-1]) == {"service fails again and again: ended with status 3"}
    assert troubles[-1].startswith("service was given up: ended with status 3")
    assert watched.restarts == MAX_FAILURES_BEFORE_READY - 1
    assert "given up after 6 starts in a row" in watched.detail


def test_process_that_never_becomes_ready_is_killed_and_started_again(
    supervise: Supervise,
) -> None:
    supervisor = supervise(
        process_unit("service", probe=lambda: Answer(False, "busy"), ready_seconds=0.3)
    )
    watched = supervisor.units["service"]
    until(lambda: watched.restarts == 1, supervisor.step)
    assert watched.detail == "not ready within 0 s"
    assert watched.child is None


def test_process_that_says_how_far_it_has_come_may_take_its_time_to_be_ready(
    tmp_path: Path,
) -> None:
    said = iter(range(1000))
    with ThreadPoolExecutor(1) as workers:
        unit = process_unit("service", probe=lambda: Answer(False, f"{next(said)} records read"))
        watched = Watched(unit, log=tmp_path / "log", workers=workers)
        now = 0.0
        until(lambda: watched.child is not None, lambda: watched.step(now, needs_ready=True))
        details = set[str]()
        for _ in range(20):
            now += unit.ready_seconds / 2
            details.add(watched.detail)
            until(
                lambda: watched.detail not in details,
                partial(watched.step, now, needs_ready=True),
            )
        assert (watched.phase, watched.restarts) == (Phase.STARTING, 0)
        assert watched.child is not None
        watched.child.kill_group()


def test_process_that_awaits_what_is_outside_has_started_and_may_wait_for_as_long_as_it_likes(
    tmp_path: Path,
) -> None:
    answers = [Answer(False, "the store is away", outside=True)]
    with ThreadPoolExecutor(1) as workers:
        unit = process_unit("sink", probe=lambda: answers[-1])
        watched = Watched(unit, log=tmp_path / "log", workers=workers)
        now = 0.0
        until(lambda: watched.child is not None, lambda: watched.step(now, needs_ready=True))
        assert not watched.settled()
        for _ in range(20):
            now += unit.ready_seconds
            watched.step(now, needs_ready=True)
            until(watched.settled, partial(watched.step, now, needs_ready=True))
        shown = watched.state()
        assert (shown.phase, shown.detail, shown.restarts) == ("not ready", "the store is away", 0)
        assert watched.trouble() == ""
        answers.append(Answer(True, "7 rows written"))
        now += 60.0
        until(lambda: watched.phase is Phase.READY, partial(watched.step, now, needs_ready=True))
        assert watched.child is not None
        watched.child.kill_group()


def test_what_a_crashed_process_had_started_dies_with_it(
    supervise: Supervise, tmp_path: Path
) -> None:
    note = tmp_path / "child"
    code = f"""
        import pathlib, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path({str(note)!r}).write_text(str(child.pid))
        time.sleep(600)
    """
    supervisor = supervise(process_unit("service", code))
    until(lambda: note.exists() and bool(note.read_text()), supervisor.step)
    watched = supervisor.units["service"]
    until(lambda: watched.child is not None, supervisor.step)
    assert watched.child is not None
    os.kill(watched.child.pid, signal.SIGKILL)
    until(lambda: watched.restarts == 1, supervisor.step)
    until(lambda: not alive(int(note.read_text())))


def test_stop_ends_dependents_before_what_they_need(supervise: Supervise, tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = """
        import signal, sys
        def end(*_):
            open({path!r}, "a").write({name!r} + " ")
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        open({path!r} + {name!r}, "w").close()
        signal.pause()
    """

    def unit(name: str, *needs: str) -> Unit:
        ready = Path(str(order) + name)
        return process_unit(
            name,
            code.format(path=str(order), name=name),
            needs=needs,
            probe=lambda: Answer(ready.exists(), ""),
        )

    supervisor = supervise(unit("a"), unit("b", "a"), unit("c", "b"))
    until(supervisor.all_ready, supervisor.step)
    assert supervisor.stop() == []
    assert order.read_text().split() == ["c", "b", "a"]
    assert {watched.phase for watched in supervisor.units.values()} == {Phase.STOPPED}


def test_process_deaf_to_its_stop_signal_is_killed_and_named(
    supervise: Supervise, tmp_path: Path
) -> None:
    deaf = tmp_path / "deaf"
    code = f"""
        import pathlib, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path({str(deaf)!r}).touch()
        while True: signal.pause()
    """
    program = python(code, stop_seconds=0.3)
    supervisor = supervise(
        Unit(name="deaf", program=lambda: program, probe=lambda: Answer(deaf.exists(), ""))
    )
    until(supervisor.all_ready, supervisor.step)
    assert supervisor.stop() == ["deaf"]


def test_killed_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    """SIGKILL gives it no chance to clean up: the kernel does."""
    note = tmp_path / "pid"
    code = f"""
        import pathlib, sys, time
        from gpuloop.ops.stack.process import Child, Program
        child = Child(
            Program(arguments=(sys.executable, "-c", {SLEEPER!r})), pathlib.Path({str(tmp_path / "log")!r})
        )
        pathlib.Path({str(note)!r}).write_text(str(child.pid))
        time.sleep(600)
    """  # noqa: E501
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        until(lambda: note.exists() and bool(note.read_text()))
        pid = int(note.read_text())
        # The launcher ties itself within milliseconds; wait for the program that it becomes.
        until(lambda: SLEEPER in psutil.Process(pid).cmdline())
        parent.kill()
        parent.wait()
        until(lambda: not alive(pid))
    finally:
        parent.kill()


def test_program_does_not_start_when_its_supervisor_is_already_gone(tmp_path: Path) -> None:
    note = tmp_path / "started"
    program = [sys.executable, "-c", f"open({str(note)!r}, 'w')"]
    tie = ["1", str(int(signal.SIGKILL)), "0", "-"]  # Process 1 is not this test's process.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(process.LAUNCHER), *tie, *program], check=False
    )
    assert done.returncode == 125
    assert not note.exists()
