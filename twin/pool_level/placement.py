"""Where a job goes: `twin.placement` over arrays, for compiled code."""

import numpy as np

from gpuloop.twin.pool_level.arrays import (
    AVOID,
    FIELD,
    GPUS,
    NODES,
    READY,
    SPEC,
    TRAINING,
    Ints,
    Rules,
    Specs,
    State,
)
from gpuloop.twin.pool_level.compiling import compiled


@compiled
def find(
    state: State, rules: Rules, specs: Specs, row: int, slot: int, closed: Ints, chosen: Ints
) -> int:
    """Write the nodes and GPUs that a job gets now to `chosen` in pairs; return how many nodes.

    It is 0 where the job does not fit. Nodes that are `closed` are passed over.
    """
    gpus, avoid = state.job[row, slot, GPUS], state.job[row, slot, AVOID]
    training = specs.kind[state.job[row, slot, SPEC]] == TRAINING
    size = rules.gpus_per_node[row]
    whole, rest = gpus // size, gpus % size
    columns = state.phase.shape[1]
    half = columns // 2
    if whole == 0:
        best = _best_fit(state, row, rest, training, avoid, closed, chosen, 0)
        if best < 0:
            return 0
        chosen[0], chosen[1] = best, rest
        return 1
    per_rack = rules.nodes_per_rack[row]
    racks = half // per_rack + 1
    empty = np.zeros(2 * racks, dtype=np.int64)
    found = 0
    for node in range(columns):
        if _open(state, row, node, avoid, closed) and state.free[row, node] == size:
            empty[_rack(node, half, per_rack, racks)] += 1
            found += 1
    if found < whole:
        return 0
    taken = 0
    for least in (True, False):  # Racks that hold the whole gang come first.
        for preferred in (True, False):
            while taken < whole:
                rack, most = -1, 0
                for one in range(2 * racks):
                    spot = one >= racks
                    if (empty[one] >= whole) != least or (spot != training) != preferred:
                        continue
                    if empty[one] > most:
                        rack, most = one, empty[one]
                if rack < 0:
                    break
                for node in range(columns):
                    if (
                        taken < whole
                        and _rack(node, half, per_rack, racks) == rack
                        and _open(state, row, node, avoid, closed)
                        and state.free[row, node] == size
                    ):
                        chosen[2 * taken], chosen[2 * taken + 1] = node, size
                        taken += 1
                empty[rack] = 0
    if not rest:
        return taken
    best = _best_fit(state, row, rest, training, avoid, closed, chosen, taken)
    if best < 0:
        return 0
    chosen[2 * taken], chosen[2 * taken + 1] = best, rest
    return taken + 1


@compiled
def _rack(node: int, half: int, per_rack: int, racks: int) -> int:
    return node // per_rack if node < half else racks + (node - half) // per_rack


@compiled
def _open(state: State, row: int, node: int, avoid: int, closed: Ints) -> bool:
    return state.phase[row, node] == READY and node != avoid and closed[node] == 0


@compiled
def _best_fit(
    state: State, row: int, gpus: int, training: bool, avoid: int, closed: Ints, chosen: Ints,
    taken: int,
) -> int:  # fmt: skip
    """Return the fullest node with room, of the preferred billing if there is one; -1 for none."""
    columns = state.phase.shape[1]
    half = columns // 2
    best, score = -1, 1 << 60
    for node in range(columns):
        free = state.free[row, node]
        if free < gpus or not _open(state, row, node, avoid, closed):
            continue
        mine = False
        for index in range(taken):
            mine |= chosen[2 * index] == node
        if mine:
            continue
        other = int((node >= half) == training)
        if (other << 30) + free < score:
            best, score = node, (other << 30) + free
    return best


@compiled
def hold(state: State, rules: Rules, row: int, gpus: int, closed: Ints) -> None:
    """Close the nodes with most room, enough of them for a gang that has waited too long."""
    columns = state.phase.shape[1]
    while gpus > 0:
        best, most = -1, 0
        for node in range(columns):
            if (
                state.phase[row, node] == READY
                and closed[node] == 0
                and state.free[row, node] > most
            ):
                best, most = node, state.free[row, node]
        if best < 0:
            return
        closed[best] = 1
        gpus -= rules.gpus_per_node[row]


@compiled
def occupy(state: State, row: int, slot: int, chosen: Ints, nodes: int, tenant: int) -> bool:
    """Put a job on nodes; return whether all of them were its tenant's before."""
    warm = True
    state.job[row, slot, NODES] = nodes
    for index in range(nodes):
        node, gpus = chosen[2 * index], chosen[2 * index + 1]
        state.job[row, slot, FIELD + 2 * index] = node
        state.job[row, slot, FIELD + 2 * index + 1] = gpus
        state.free[row, node] -= gpus
        warm &= state.tenant[row, node] == tenant
        state.tenant[row, node] = tenant
    return warm
