"""What nodes have free, as arrays, and what fits on them.

One row per node, one column per device. A share of a GPU (`gpu_milli` below 1,000) must fit on one
device; whole GPUs need devices of which nothing is taken. Strategies score rows; nothing here
prefers one node to another.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

WHOLE_GPU: Final = 1000
"""A device's capacity in thousandths."""

NO_KIND: Final = -1


class Nodes(NamedTuple):
    """What N nodes of at most G devices have free; a device that a node lacks has nothing free.

    `gpus` is how many devices a node has, `model` a code for what they are, and `running` counts
    its tasks by kind, for strategies that keep kinds together.
    """

    cpu_milli: Integers
    memory_mib: Integers
    gpu_milli: Integers
    gpus: Integers
    model: Integers
    running: Integers

    def rows(self, rows: Integers) -> "Nodes":
        """Return a copy of some rows."""
        return Nodes(*(column[rows] for column in self))


class Ask(NamedTuple):
    """What one task needs: `gpu_milli` of each of `gpus` different devices of one node.

    No `models` means that any will do. `kind` is its column of `Nodes.running`.
    """

    cpu_milli: int = 0
    memory_mib: int = 0
    gpus: int = 0
    gpu_milli: int = 0
    models: tuple[int, ...] = ()
    kind: int = NO_KIND

    @property
    def total_milli(self) -> int:
        """Return thousandths of a GPU over all devices."""
        return self.gpus * self.gpu_milli

    @property
    def is_share(self) -> bool:
        """Return whether it takes a part of one device."""
        return self.gpus == 1 and self.gpu_milli < WHOLE_GPU


def fits(nodes: Nodes, ask: Ask) -> Flags:
    """Return which nodes hold a task now, shape (N,)."""
    room: Flags = (nodes.cpu_milli >= ask.cpu_milli) & (nodes.memory_mib >= ask.memory_mib)
    if ask.gpus:
        room &= (nodes.gpu_milli >= ask.gpu_milli).sum(axis=1) >= ask.gpus
        if ask.models:
            room &= np.isin(nodes.model, ask.models)
    return room


def tightest_devices(nodes: Nodes, row: int, ask: Ask) -> tuple[int, ...]:
    """Return the devices with least free that hold a task which fits on this node."""
    free = nodes.gpu_milli[row]
    by_room = np.argsort(free, kind="stable")
    return tuple(by_room[free[by_room] >= ask.gpu_milli][: ask.gpus].tolist())


def left_after(nodes: Nodes, ask: Ask) -> tuple[Integers, Flags]:
    """Return what devices have free if a task came, for each way to put it on a node that holds it.

    A share can go to each of G devices, shape (N, G, G), and the flags (N, G) say to which it
    fits. All else goes to the tightest devices, shapes (N, 1, G) and (N, 1).
    """
    free = nodes.gpu_milli
    if ask.is_share:
        taken = ask.gpu_milli * np.eye(free.shape[1], dtype=np.int64)
        return free[:, None, :] - taken, free >= ask.gpu_milli
    by_room = np.argsort(
        np.where(free >= ask.gpu_milli, free, 2 * WHOLE_GPU), axis=1, kind="stable"
    )
    chosen = np.argsort(by_room, axis=1) < ask.gpus
    left: Integers = (free - ask.gpu_milli * chosen)[:, None, :]
    return left, np.ones((len(free), 1), dtype=np.bool_)


def take(nodes: Nodes, row: int, ask: Ask, devices: tuple[int, ...]) -> None:
    """Let a task have its part of a node, in place.

    Raises:
        ValueError: it does not fit there; nothing has changed.

    """
    chosen = list(devices)
    free = nodes.gpu_milli[row, chosen]
    room = nodes.cpu_milli[row] >= ask.cpu_milli and nodes.memory_mib[row] >= ask.memory_mib
    distinct = len(set(chosen)) == len(chosen) == ask.gpus
    if not (room and distinct and (free >= ask.gpu_milli).all()):
        raise ValueError(f"{ask} does not fit on devices {devices} of node {row}")
    nodes.cpu_milli[row] -= ask.cpu_milli
    nodes.memory_mib[row] -= ask.memory_mib
    nodes.gpu_milli[row, chosen] -= ask.gpu_milli
    if ask.kind != NO_KIND:
        nodes.running[row, ask.kind] += 1
