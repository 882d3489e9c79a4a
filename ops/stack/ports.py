"""Free TCP ports on loopback, chosen so that they stay ours over a restart.

A port from the kernel's ephemeral range may be taken by any outgoing connection while the server
that owned it restarts, so ports come from below that range. The search starts at a place derived
from the stack's folder: the same stack tends to find the same ports, another one others.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from zlib import crc32

from gpuloop.ops.stack.errors import StackError

LOOPBACK: Final = "127.0.0.1"
FIRST: Final = 20_000
LAST: Final = 31_999


def is_free(port: int) -> bool:
    """Return whether a server could listen on `port` of the loopback address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_ports(owner: Path) -> Iterator[int]:
    """Yield distinct free ports for the stack in `owner`.

    Raises:
        StackError: every port of the range is taken.

    """
    count = LAST - FIRST + 1
    start = crc32(str(owner.resolve()).encode()) % count
    for step in range(count):
        port = FIRST + (start + step) % count
        if is_free(port):
            yield port
    raise StackError(f"no free port between {FIRST} and {LAST}")


def requested(port: int, *, purpose: str) -> int:
    """Return `port`, which a person asked for.

    Raises:
        StackError: there is no such port, or something else listens there.

    """
    if not 0 < port < 65_536:
        raise StackError(f"port {port}, requested for {purpose}, is not between 1 and 65535")
    if not is_free(port):
        raise StackError(f"port {port}, requested for {purpose}, is already in use")
    return port
