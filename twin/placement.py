"""Where a job of the live fleet goes: pure functions over how many GPUs each node has free.

A gang that needs part of a node goes where the fleet's strategy scores best; wide ones take whole
nodes, from one rack when one has enough. The preferred billing comes before any score, and no node
is chosen by hash order.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.twin import scores
from gpuloop.twin.config import PlacementStrategy
from gpuloop.twin.fit import WHOLE_GPU, Ask, Integers, Nodes, fits, tightest_devices
from gpuloop.twin.fragmentation import typical
from gpuloop.twin.strategies import Score, Strategy, gradient_descent

OWN_TENANT: Final = 0
_NO_LUCK: Final = np.random.default_rng(0)
"""Asked of every choice of devices, used by none of those here."""


class Room(NamedTuple):
    """A node as the scheduler sees it; `tenant` is whose images and data it holds.

    `free` counts the devices of which nothing is taken. `devices` is what each has free, in
    thousandths; a node that shares none may leave it out.
    """

    node: str
    rack: str
    billing: Billing
    free: int
    size: int
    tenant: str = ""
    devices: tuple[int, ...] = ()


class Manner(NamedTuple):
    """How a job wants to be placed, and by which strategy.

    `tenant` counts for affinity, `expected` for fragmentation: the GPUs of jobs that may come, and
    `expected_parts` the thousandths of those that ask for a part of one.
    """

    prefer: Billing
    strategy: PlacementStrategy = "binpack"
    tenant: str = ""
    expected: tuple[int, ...] = ()
    expected_parts: tuple[int, ...] = ()


def place_part(rooms: Sequence[Room], gpu_milli: int, manner: Manner) -> tuple[str, int] | None:
    """Return the node and the device of which a job gets a part, or None when none has it free.

    All rooms must say what each of their devices has free.
    """
    ask = Ask(gpus=1, gpu_milli=gpu_milli, kind=OWN_TENANT)
    best = _best(rooms, ask, manner)
    if best is None:
        return None
    nodes = _as_nodes([best], manner.tenant)
    if manner.strategy == "fragmentation":
        return best.node, _descent(manner, best.size).devices(nodes, 0, ask, _NO_LUCK)[0]
    return best.node, tightest_devices(nodes, 0, ask)[0]


def place(rooms: Iterable[Room], gpus: int, manner: Manner) -> tuple[tuple[str, int], ...] | None:
    """Return the nodes and GPUs that a gang gets, or None when it does not fit now."""
    candidates = [room for room in rooms if room.free > 0]
    if not candidates:
        return None
    size = candidates[0].size
    whole, rest = divmod(gpus, size)
    if whole == 0:
        best = _one_node(candidates, rest, manner)
        return None if best is None else ((best.node, rest),)
    empty = [room for room in candidates if room.free == room.size]
    if len(empty) < whole:
        return None
    in_rack: dict[str, int] = {}
    for room in empty:
        in_rack[room.rack] = in_rack.get(room.rack, 0) + 1
    empty.sort(key=lambda r: (in_rack[r.rack] < whole, r.billing != manner.prefer,
                              -in_rack[r.rack], r.rack, r.node))  # fmt: skip
    chosen = [(room.node, size) for room in empty[:whole]]
    if rest:
        taken = {room.node for room in empty[:whole]}
        others = [room for room in candidates if room.node not in taken]
        last = _one_node(others, rest, manner)
        if last is None:
            return None
        chosen.append((last.node, rest))
    return tuple(chosen)


def _one_node(rooms: list[Room], gpus: int, manner: Manner) -> Room | None:
    return _best(rooms, Ask(gpus=gpus, gpu_milli=WHOLE_GPU, kind=OWN_TENANT), manner)


def _best(rooms: Sequence[Room], ask: Ask, manner: Manner) -> Room | None:
    if not rooms:
        return None
    nodes = _as_nodes(rooms, manner.tenant)
    holding = np.flatnonzero(fits(nodes, ask))
    if not len(holding):
        return None
    found = _score(manner, rooms[0].size)(nodes.rows(holding), ask).tolist()
    ranked = zip((rooms[row] for row in holding.tolist()), found, strict=True)
    return min(ranked, key=lambda r: (r[0].billing != manner.prefer, -r[1], r[0].node))[0]


def _score(manner: Manner, size: int) -> Score:
    match manner.strategy:
        case "binpack":
            return scores.best_fit
        case "spread":
            return scores.spread
        case "affinity":
            return scores.clustering
        case "fragmentation":
            return _descent(manner, size).score


def _descent(manner: Manner, size: int) -> Strategy:
    parts = [Ask(gpus=1, gpu_milli=milli) for milli in manner.expected_parts]
    whole = manner.expected or (() if parts else (size,))
    tasks = [Ask(gpus=min(gpus, size), gpu_milli=WHOLE_GPU) for gpus in whole]
    return gradient_descent(typical(tasks + parts))


def _as_nodes(rooms: Sequence[Room], tenant: str) -> Nodes:
    """Return rooms as arrays; CPU and memory do not count."""
    free = np.array([room.free for room in rooms], dtype=np.int64)
    gpus = np.array([room.size for room in rooms], dtype=np.int64)
    none: Integers = np.zeros(len(rooms), dtype=np.int64)
    milli: Integers = WHOLE_GPU * (np.arange(gpus.max()) < free[:, None])
    for row, room in enumerate(rooms):
        if room.devices:
            milli[row, : room.size] = room.devices
    running = [(room.tenant == tenant != "", room.tenant not in ("", tenant)) for room in rooms]
    return Nodes(
        cpu_milli=none,
        memory_mib=none,
        gpu_milli=milli,
        gpus=gpus,
        model=none,
        running=np.array(running, dtype=np.int64),
    )


def held_for(rooms: Iterable[Room], gpus: int) -> frozenset[str]:
    """Return the nodes kept for a gang that has waited too long: those with most room."""
    ranked = sorted(rooms, key=lambda room: (-room.free, room.node))
    held: list[str] = []
    for room in ranked:
        if gpus <= 0:
            break
        held.append(room.node)
        gpus -= room.size
    return frozenset(held)
