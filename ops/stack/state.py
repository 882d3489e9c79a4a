"""What a running stack says of itself in `stack.json`: who runs, where, since when.

Written by the supervisor, read by every command that talks to the stack. It holds the database's
password, so only its owner may read it.
"""

import errno
import logging
import os
from pathlib import Path
from typing import Final, Literal

import msgspec

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

log: Final = logging.getLogger(__name__)

StackPhase = Literal["starting", "running", "stopping", "stopped"]


class ProcessState(msgspec.Struct, frozen=True, kw_only=True):
    """One process or task of the stack; `pid` with `created` names a process for good."""

    name: str
    phase: str
    detail: str
    pid: int | None = None
    created: float = 0.0
    port: int | None = None
    restarts: int = 0
    exit_status: int | None = None
    last_failure: str = ""


class StackState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole stack at one moment."""

    phase: StackPhase
    pid: int
    created: float
    started_wall_us: int
    environment: dict[str, str]
    """The settings that its services share, as `GPULOOP_*` variables."""
    resident_bytes: int
    resident_peak_bytes: int
    processes: tuple[ProcessState, ...]
    notices: tuple[str, ...] = ()
    """What a person must know now: no fresh state, a kill switch, what fails again and again."""


def write(path: Path, state: StackState) -> None:
    """Replace the file in one step, so that a reader never sees half of it.

    On a full disk the file stays as it is: whoever watches the processes must not end for it.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=2))
        draft.replace(path)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        log.warning("what runs is not written down: %s", error)
        draft.unlink(missing_ok=True)


def read(path: Path) -> StackState | None:
    """Return what a stack last said of itself, or None when there is none to be understood."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=StackState)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
