"""Builders of nodes and tasks for placement: only what a test is about is named."""

import numpy as np

from gpuloop.twin.fit import NO_KIND, Ask, Nodes


def nodes_with(
    *free: list[int],
    cpu: int | list[int] = 96_000,
    memory: int | list[int] = 1 << 20,
    model: int | list[int] = 0,
    running: list[list[int]] | None = None,
) -> Nodes:
    """Return nodes with these thousandths free on each device; the rest of a column is alike."""
    count, widest = len(free), max(len(row) for row in free)

    def column(value: int | list[int]) -> np.ndarray:
        return np.broadcast_to(np.array(value, dtype=np.int64), (count,)).copy()

    return Nodes(
        cpu_milli=column(cpu),
        memory_mib=column(memory),
        gpu_milli=np.array([row + [0] * (widest - len(row)) for row in free], dtype=np.int64),
        gpus=np.array([len(row) for row in free], dtype=np.int64),
        model=column(model),
        running=np.array(running or [[0] * 9] * count, dtype=np.int64),
    )


def share(milli: int, cpu: int = 0, **rest) -> Ask:
    """Return a task that asks for a part of one GPU."""
    return Ask(cpu_milli=cpu, gpus=1, gpu_milli=milli, **{"kind": 0, **rest})


def whole(gpus: int, cpu: int = 0, **rest) -> Ask:
    """Return a task that asks for whole GPUs."""
    return Ask(cpu_milli=cpu, gpus=gpus, gpu_milli=1000, **{"kind": gpus, **rest})


def no_gpu(cpu: int) -> Ask:
    """Return a task that asks for CPU alone."""
    return Ask(cpu_milli=cpu, kind=NO_KIND)
