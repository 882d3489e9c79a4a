"""How much of what is free could not be used, and placement that lets it grow least.

Weng et al., Beware of Fragmentation (USENIX ATC 2023): a node's fragmentation is the part of its
free GPUs that a task drawn from the expected workload could not use. All of it counts if that task
asks for no GPU or cannot run there; else only devices with less free than it needs of one.
Fragmentation gradient descent (FGD) puts a task where this expectation falls most or grows least.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from gpuloop.twin.fit import WHOLE_GPU, Ask, Flags, Floats, Integers, Nodes, left_after
from gpuloop.twin.scores import POINTS

TYPICAL_SHARE: Final = 0.95
"""The rarest types of task, this far from the whole workload, do not count (as published)."""


class Mix(NamedTuple):
    """The expected workload: K types of task and how likely each is to come next.

    A type asks for `sizes[size_of]` thousandths of each device. `allowed[min(model, C)]` says which
    types may run on a model, shape (C + 1, K): those from C on are named by none.
    """

    cpu_milli: Integers
    gpus: Integers
    sizes: Integers
    size_of: Integers
    allowed: Flags
    likelihood: Floats


def typical(tasks: Iterable[Ask], share: float = TYPICAL_SHARE) -> Mix:
    """Return the most frequent types that together are this share of all tasks.

    Types differ in CPU, GPUs and model; memory does not count. Among equally frequent ones the
    larger comes first.

    Raises:
        ValueError: there are no tasks.

    """
    counts = Counter((t.cpu_milli, t.gpu_milli, t.gpus, t.models) for t in tasks)
    if not counts:
        raise ValueError("the expected workload has no tasks")
    ranked = sorted(counts.items(), key=lambda item: (item[1], item[0]), reverse=True)
    cumulated = np.cumsum([count for _, count in ranked])
    kept = ranked[: int(np.searchsorted(cumulated, share * cumulated[-1])) + 1]
    types, frequency = [type_ for type_, _ in kept], np.array([float(count) for _, count in kept])
    sizes, size_of = np.unique([type_[1] for type_ in types], return_inverse=True)
    named = [type_[3] for type_ in types]
    codes = 1 + max((max(models) for models in named if models), default=-1)
    return Mix(
        cpu_milli=np.array([type_[0] for type_ in types], dtype=np.int64),
        gpus=np.array([type_[2] for type_ in types], dtype=np.int64),
        sizes=sizes.astype(np.int64),
        size_of=size_of.astype(np.int64),
        allowed=np.array(
            [[not models or code in models for models in named] for code in range(codes + 1)]
        ),
        likelihood=frequency / frequency.sum(),
    )


def fragmentation(nodes: Nodes, mix: Mix) -> Floats:
    """Return the thousandths of a GPU that are free and not expected to be of use, shape (N,)."""
    return _fragments(nodes.cpu_milli, nodes.gpu_milli, nodes.model, mix)


def growth(nodes: Nodes, ask: Ask, mix: Mix) -> Floats:
    """Return by how many GPUs fragmentation grows for each way to put a task on each node.

    Shape as `left_after` has it; infinite where that way is closed.
    """
    left, open_ways = left_after(nodes, ask)
    ways = left.shape[1]
    after = _fragments(
        np.repeat(nodes.cpu_milli - ask.cpu_milli, ways),
        left.reshape(-1, left.shape[2]),
        np.repeat(nodes.model, ways),
        mix,
    ).reshape(-1, ways)
    grown = (after - fragmentation(nodes, mix)[:, None]) / WHOLE_GPU
    return np.where(open_ways, grown, np.inf)


def descent_points(nodes: Nodes, ask: Ask, mix: Mix, *, rounded: bool = True) -> Floats:
    """Return FGD's score of each way: whole points of the logistic curve of what is gained.

    Closed ways have minus infinity. Rounding is not a detail: ways within 0.04 GPU of each other
    score alike, the first node among them wins, and so nodes are filled one after another
    (docs/placement.md has what that is worth).
    """
    grown = growth(nodes, ask, mix)
    points = POINTS / (1.0 + np.exp(grown))
    return np.where(np.isinf(grown), -np.inf, np.floor(points) if rounded else points)


def _fragments(cpu: Integers, free: Integers, model: Integers, mix: Mix) -> Floats:
    holds = free[:, None, :] >= mix.sizes[None, :, None]
    devices = holds.sum(axis=2)[:, mix.size_of]
    usable = (free[:, None, :] * holds).sum(axis=2)[:, mix.size_of]
    runs: Flags = (mix.gpus > 0) & (cpu[:, None] >= mix.cpu_milli) & (devices >= mix.gpus)
    runs &= mix.allowed[np.minimum(model, len(mix.allowed) - 1)]
    found: Floats = free.sum(axis=1) - (usable * runs) @ mix.likelihood
    return found
