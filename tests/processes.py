"""Processes that tests start, and how to wait for what becomes of them."""

import sys
import textwrap
from collections.abc import Callable
from time import monotonic, sleep

import psutil

from gpuloop.ops.stack.process import Program

PATIENCE_SECONDS = 20.0
SLEEPER = "import time; time.sleep(600)"


def until(condition: Callable[[], bool], step: Callable[[], None] = lambda: None) -> None:
    """Step until the condition holds; a test that waits in vain fails."""
    deadline = monotonic() + PATIENCE_SECONDS
    while not condition():
        assert monotonic() < deadline, "waited in vain"
        step()
        sleep(0.01)


def python(code: str, **fields: object) -> Program:
    return Program(arguments=(sys.executable, "-c", textwrap.dedent(code)), **fields)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
