"""One program as a child of the supervisor: started tied to it, stopped as a group, log bounded.

Owns the mechanics of a single process. It must not know why a program runs or when to restart it.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

LAUNCHER: Final = Path(__file__).with_name("launch.py")
LOG_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run, and how it wants to be stopped.

    `environment` is added to the supervisor's own, less its `GPULOOP_*` variables. `user` is a
    `(uid, gid)` to run as. `death_signal` is what the kernel sends when the supervisor dies.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    user: tuple[int, int] | None = None
    niceness: int = 0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    death_signal: signal.Signals = signal.SIGKILL


class Child:
    """A started program. Its process group is its own, so that nothing it started is left."""

    def __init__(self, program: Program, log: Path) -> None:
        user = "-" if program.user is None else ":".join(str(part) for part in program.user)
        tie = [str(os.getpid()), str(int(program.death_signal)), str(program.niceness), user]
        own = {k: v for k, v in os.environ.items() if not k.startswith("GPULOOP_")}
        with log.open("ab") as output:
            self._popen: Final = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", str(LAUNCHER), *tie, *program.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=own | dict(program.environment),
                cwd=program.folder,
                start_new_session=True,
            )
        self.program: Final = program
        self.pid: Final = self._popen.pid
        self.created: Final = created(self.pid) or 0.0

    def exit_status(self) -> int | None:
        """Return the exit status, negative for a signal, or None while it runs."""
        return self._popen.poll()

    def ask_to_stop(self) -> None:
        """Send the program its stop signal."""
        if self._popen.poll() is None:
            self._popen.send_signal(self.program.stop_signal)

    def kill_group(self) -> None:
        """Kill what is left of the program and of everything it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def reap(self, timeout_seconds: float) -> bool:
        """Wait for the program's end; return whether it came."""
        try:
            self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def created(pid: int) -> float | None:
    """Return when a process started, which with its pid names it for good; None if it is gone."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def runs(pid: int) -> bool:
    """Say whether a process runs; one that only waits to be reaped by its parent does not."""
    try:
        return str(psutil.Process(pid).status()) != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_leftover(pid: int, started: float, *, seconds: float) -> bool:
    """Kill the process group of a process that a dead supervisor left; return whether it existed.

    A pid that now belongs to something else is left alone.
    """
    found = created(pid)
    if found is None or abs(found - started) > 0.05:
        return False
    try:
        process = psutil.Process(pid)
        os.killpg(pid, signal.SIGKILL)
        process.wait(seconds)
    except (ProcessLookupError, psutil.NoSuchProcess, psutil.TimeoutExpired):
        pass
    return True


def resident_bytes(root: int) -> int:
    """Return the resident memory of a process and everything below it, in bytes.

    Pages that processes share count once for each: the sum overstates rather than hides.
    """
    try:
        tree = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in tree:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def bound_log(log: Path, limit_bytes: int = LOG_BYTES) -> None:
    """Keep a log that is being appended to within its limit: one older file is kept.

    The writer keeps its descriptor, so the file is copied and emptied, not renamed; lines written
    between the two are lost.
    """
    if not log.exists() or log.stat().st_size <= limit_bytes:
        return
    with suppress(OSError):  # Without room for the older file, the room is what is needed.
        shutil.copyfile(log, log.with_suffix(".log.1"))
    os.truncate(log, 0)
