"""Which nodes a job of the live fleet would get now: its pool as rooms, and its own manner."""

from msgspec.structs import replace

from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.twin.engine import Engine
from gpuloop.twin.fit import WHOLE_GPU
from gpuloop.twin.placement import Manner, Room, place, place_part
from gpuloop.twin.sharing import free_milli, leave
from gpuloop.twin.state import Job, Node

Places = tuple[tuple[str, int], ...]
"""Nodes and how many GPUs of each, or for a part of a GPU the node and which of its devices."""


def rooms_of(engine: Engine, pool: str) -> list[Room]:
    """Return the nodes of a pool on which anything is free."""
    return [
        _room(node)
        for node in engine.nodes_of[pool]
        if (node.free or node.shares) and node.phase == "ready"
    ]


def with_own_room(
    engine: Engine, job: Job, pool: str, avoid: tuple[str, ...], rooms: list[Room]
) -> list[Room]:
    """Count what a running job would free itself on nodes it need not avoid."""
    if pool != job.pool:
        return rooms
    own = []
    for name in job.nodes:
        node = engine.state.nodes[name]
        if name not in avoid and node.phase == "ready":
            parts = {device: dict(held) for device, held in node.shares.items()}
            without = replace(node, slots=list(node.slots), shares=parts)
            leave(without, job.id)
            own.append(_room(without)._replace(devices=free_milli(without)))
    return sorted([room for room in rooms if room.node not in job.nodes] + own)


def find(engine: Engine, job: Job, rooms: list[Room]) -> Places | None:
    """Return where a job would go, or None when it does not fit now."""
    if job.avoid:
        rooms = [room for room in rooms if room.node not in job.avoid]
    prefer: Billing = "on_demand" if job.job_class == "training" else "spot"
    manner = Manner(prefer, engine.config.placement, job.tenant)
    if manner.strategy == "fragmentation":
        likely = [job, *(one for one in engine.state.jobs.values() if one.pool == job.pool)]
        manner = manner._replace(
            expected=tuple(one.gpus for one in likely if one.gpu_milli == WHOLE_GPU),
            expected_parts=tuple(one.gpu_milli for one in likely if one.gpu_milli < WHOLE_GPU),
        )
    if job.gpu_milli < WHOLE_GPU:
        part = place_part(_exact(engine, rooms), job.gpu_milli, manner)
        return None if part is None else (part,)
    return place(rooms, job.gpus, manner)


def find_part(engine: Engine, pool: str, gpu_milli: int) -> tuple[str, int] | None:
    """Return the node and device of which one server of a service gets a part, fullest first."""
    return place_part(_exact(engine, rooms_of(engine, pool)), gpu_milli, Manner("spot"))


def _exact(engine: Engine, rooms: list[Room]) -> list[Room]:
    """Return rooms that say what each of their devices has free."""
    nodes = engine.state.nodes
    return [
        room if room.devices else room._replace(devices=free_milli(nodes[room.node]))
        for room in rooms
    ]


def _room(node: Node) -> Room:
    """Return a node as a room; which devices are free is looked up only where some are shared."""
    devices = free_milli(node) if node.shares else ()
    size = len(node.slots)
    return Room(node.id, node.rack, node.billing, node.free, size, node.tenant, devices)
