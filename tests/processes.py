"""Processes that tests start, and how to wait for what becomes of them."""

import sys
import textwrap
from collections.abc import Callable
from time import monotonic, sleep

import psutil

from gpuloop.ops.stack.process import Program
from gpuloop.ops.stack.state import ProcessState, StackPhase, StackState
from gpuloop.ops.stack.unit import Unit

PATIENCE_SECONDS = 20.0
SLEEPER = "import time; time.sleep(600)"


def until(
    condition: Callable[[], bool],
    step: Callable[[], None] = lambda: None,
    *,
    seconds: float = PATIENCE_SECONDS,
) -> None:
    """Step until the condition holds; a test that waits in vain fails."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "waited in vain"
        step()
        sleep(0.01)


def python(code: str, **fields: object) -> Program:
    return Program(arguments=(sys.executable, "-c", textwrap.dedent(code)), **fields)  # type: ignore[arg-type]


def process_unit(name: str, code: str = SLEEPER, **fields: object) -> Unit:
    program = python(code)
    return Unit(name=name, program=lambda: program, **fields)  # type: ignore[arg-type]


def stack_state(
    *processes: ProcessState, phase: StackPhase = "running", notices: tuple[str, ...] = ()
) -> StackState:
    """Return what a stack could have written of itself."""
    return StackState(
        phase=phase,
        pid=1,
        created=0.0,
        started_wall_us=0,
        environment={},
        resident_bytes=0,
        resident_peak_bytes=0,
        processes=processes,
        notices=notices,
    )


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
