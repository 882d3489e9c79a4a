"""Where a job goes: pure functions over how many GPUs each node has free.

Small gangs go to the fullest node that holds them whole (best fit), wide ones to whole nodes,
from one rack when one has enough. No node is chosen by hash order.
"""

from collections.abc import Iterable
from typing import NamedTuple

from gpuloop.schemas.messages.telemetry import Billing


class Room(NamedTuple):
    """A node as the scheduler sees it."""

    node: str
    rack: str
    billing: Billing
    free: int
    size: int


def place(rooms: Iterable[Room], gpus: int, prefer: Billing) -> tuple[tuple[str, int], ...] | None:
    """Return the nodes and GPUs that a gang gets, or None when it does not fit now."""
    candidates = [room for room in rooms if room.free > 0]
    if not candidates:
        return None
    size = candidates[0].size
    whole, rest = divmod(gpus, size)
    if whole == 0:
        best = _best_fit(candidates, rest, prefer)
        return None if best is None else ((best.node, rest),)
    empty = [room for room in candidates if room.free == room.size]
    if len(empty) < whole:
        return None
    in_rack: dict[str, int] = {}
    for room in empty:
        in_rack[room.rack] = in_rack.get(room.rack, 0) + 1
    empty.sort(key=lambda r: (in_rack[r.rack] < whole, r.billing != prefer, -in_rack[r.rack],
                              r.rack, r.node))  # fmt: skip
    chosen = [(room.node, size) for room in empty[:whole]]
    if rest:
        taken = {room.node for room in empty[:whole]}
        last = _best_fit([room for room in candidates if room.node not in taken], rest, prefer)
        if last is None:
            return None
        chosen.append((last.node, rest))
    return tuple(chosen)


def _best_fit(rooms: list[Room], gpus: int, prefer: Billing) -> Room | None:
    fitting = [room for room in rooms if room.free >= gpus]
    if not fitting:
        return None
    return min(fitting, key=lambda room: (room.billing != prefer, room.free, room.node))


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
