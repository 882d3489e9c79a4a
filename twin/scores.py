"""The classic ways to prefer one node to another, each a function of the node's own row.

Scores are whole points from 0 to 100, higher is better, as the scheduling framework of Kubernetes
has them; among equals the first node wins. Definitions are those compared by Weng et al. (Beware of
Fragmentation, USENIX ATC 2023). Nodes that do not hold the task are scored too: ask `fits` first.
"""

from typing import Final

import numpy as np

from gpuloop.twin.fit import NO_KIND, WHOLE_GPU, Ask, Floats, Nodes

CPU_SCALE: Final = 128_000.0
GPU_SCALE: Final = 8_000.0
"""The largest node of the published inventory, by which CPU and GPUs are made comparable."""

POINTS: Final = 100.0


def indifferent(nodes: Nodes, ask: Ask) -> Floats:
    """Prefer no node."""
    return np.zeros(len(nodes.gpus))


def best_fit(nodes: Nodes, ask: Ask) -> Floats:
    """Prefer the node that would have least left, CPU and GPUs weighed alike."""
    return _points(1.0 - _left(nodes, ask))


def spread(nodes: Nodes, ask: Ask) -> Floats:
    """Prefer the node that would have most left."""
    return _points(_left(nodes, ask))


def dot_product(nodes: Nodes, ask: Ask) -> Floats:
    """Prefer where what is asked and what is free have the smallest product.

    The alignment of Tetris (Grandl et al., SIGCOMM 2014), turned round by Weng et al.: the fullest
    node wins, by the resource that the task needs most.
    """
    cpu = nodes.cpu_milli / CPU_SCALE * (ask.cpu_milli / CPU_SCALE)
    gpu = nodes.gpu_milli.sum(axis=1) / GPU_SCALE * (ask.total_milli / GPU_SCALE)
    return _points(1.0 - (cpu + gpu) / 2)


def clustering(nodes: Nodes, ask: Ask) -> Floats:
    """Prefer nodes that run nothing but this kind of task, then mixed ones, then empty ones.

    Inside each group the fuller node wins (Gandiva's affinity: Xiao et al., OSDI 2018).
    """
    if ask.kind == NO_KIND:
        return indifferent(nodes, ask)
    kinds = (nodes.running > 0).sum(axis=1)
    alike = nodes.running[:, ask.kind] > 0
    group = np.select([alike & (kinds == 1), alike, kinds == 0], [75.0, 50.0, 25.0], 0.0)
    full = 1.0 - nodes.gpu_milli.sum(axis=1) / GPU_SCALE
    found: Floats = group + np.floor(25.0 * full)
    return found


def packing(nodes: Nodes, ask: Ask) -> Floats:
    """Prefer devices in use, then free devices of nodes in use, then nodes not in use.

    (AntMan: Xiao et al., OSDI 2020.) In the first group the tighter device wins, in the others the
    smaller number of free devices.
    """
    if not ask.gpus:
        return indifferent(nodes, ask)
    free = nodes.gpu_milli
    open_devices = (free == WHOLE_GPU).sum(axis=1)
    holding = np.sort(np.where(free >= ask.gpu_milli, free, 2 * WHOLE_GPU), axis=1)[:, : ask.gpus]
    opened = (holding == WHOLE_GPU).sum(axis=1)
    slack = np.floor(np.floor(holding * POINTS / WHOLE_GPU).sum(axis=1) / 10.0)
    in_use = np.where(opened > 0, np.maximum(50.0 - opened, 33.0), np.maximum(POINTS - slack, 50.0))
    unused = np.maximum(33.0 - open_devices, open_devices)
    found: Floats = np.where(open_devices == nodes.gpus, unused, in_use)
    return found


def _left(nodes: Nodes, ask: Ask) -> Floats:
    """Return the share of the largest node's CPU and GPUs that would be left, 0 to 1."""
    cpu = (nodes.cpu_milli - ask.cpu_milli) / CPU_SCALE
    gpu = (nodes.gpu_milli.sum(axis=1) - ask.total_milli) / GPU_SCALE
    left: Floats = (cpu + gpu) / 2
    return left


def _points(share: Floats) -> Floats:
    points: Floats = np.floor(POINTS * share)
    return points
