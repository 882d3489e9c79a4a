"""How many workers of a service a running stack shall have.

The command line asks through a file in the stack's folder and the supervisor follows it: the two
have nothing else in common, and what was asked can be read. A stack starts with one of each.
"""

import os
from typing import Final

import msgspec

from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.services import SERVICES
from gpuloop.schemas.catalogue import SHARDS

MAX_WORKERS: Final = SHARDS
"""A partition is one worker's, so more of them would have nothing to do."""


def worker(name: str, number: int) -> str:
    """Return the name of a service's nth worker; the first bears the service's own."""
    return name if number == 1 else f"{name}-{number}"


def parse(text: str) -> tuple[str, int]:
    """Return service and count of `name=count`.

    Raises:
        StackError: it is not written so, or there cannot be so many of it.

    """
    name, _, count = text.partition("=")
    if not count.isdecimal():
        raise StackError(f"{text!r} says no number of workers; write observe=3")
    can = [service.name for service in SERVICES.values() if service.scales]
    if name not in SERVICES:
        raise StackError(f"no service {name}; {', '.join(can)} can have several workers")
    if name not in can:
        raise StackError(f"{name} is one process by design; only {', '.join(can)} can have more")
    if len(count) > 3 or not 1 <= int(count) <= MAX_WORKERS:
        raise StackError(
            f"{name} can have 1 to {MAX_WORKERS} workers: its topics have {MAX_WORKERS} partitions"
        )
    return name, int(count)


def ask(layout: Layout, counts: dict[str, int]) -> None:
    """Ask the stack in a folder for other numbers of workers than it has."""
    whole = asked(layout) | counts
    draft = layout.scale.with_name(f".{layout.scale.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(whole))
    draft.replace(layout.scale)


def asked(layout: Layout) -> dict[str, int]:
    """Return the numbers that were asked for since the stack started; nothing for a damaged file.

    It may have been written by hand: what cannot be is left out.
    """
    try:
        found = msgspec.json.decode(layout.scale.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError):
        return {}
    return {name: n for name, n in found.items() if name in SERVICES and SERVICES[name].scales}


def forget(layout: Layout) -> None:
    """Let a stack start with one worker of each."""
    layout.scale.unlink(missing_ok=True)
