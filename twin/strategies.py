"""Placement strategies by name: how a node is chosen, and which of its devices.

One implementation serves the live fleet (`placement`) and the study of the openb trace (`filling`).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from gpuloop.twin import scores
from gpuloop.twin.fit import WHOLE_GPU, Ask, Floats, Nodes, tightest_devices
from gpuloop.twin.fragmentation import Mix, descent_points, typical
from gpuloop.twin.worth import leftover_worth

Score = Callable[[Nodes, Ask], Floats]
"""Scores nodes, shape (N,), from their own rows alone; only nodes that hold the task count."""

Devices = Callable[[Nodes, int, Ask, np.random.Generator], tuple[int, ...]]
"""Chooses devices of one node that holds the task."""

Ways = Callable[[Nodes, Ask], Floats]
"""Scores each way to put a task on a node, shaped as `left_after` has it."""


class Strategy(NamedTuple):
    """A way to place tasks; the first of the best nodes is taken, or any of them `by_lot`."""

    score: Score
    devices: Devices
    by_lot: bool = False


def random() -> Strategy:
    """Return the strategy that takes any node and any device."""
    return Strategy(scores.indifferent, _any_devices, by_lot=True)


def classic(score: Score) -> Strategy:
    """Return the strategy that prefers nodes by a score and takes their tightest devices."""
    return Strategy(score, lambda nodes, row, ask, rng: tightest_devices(nodes, row, ask))


def gradient_descent(mix: Mix, *, rounded: bool = True) -> Strategy:
    """Return fragmentation gradient descent for an expected workload."""
    return _by_way(lambda nodes, ask: descent_points(nodes, ask, mix, rounded=rounded))


def worth_keeping(mix: Mix, worth: Floats) -> Strategy:
    """Return our strategy: a share goes where the devices' leftovers lose least worth.

    `worth` is what `leftover_worth` returns. What loses equally little, and all else than shares,
    goes by gradient descent. It has no parameter.
    """

    def ways(nodes: Nodes, ask: Ask) -> Floats:
        points = descent_points(nodes, ask, mix)
        if not ask.is_share:
            return points
        left = np.maximum(nodes.gpu_milli - ask.gpu_milli, 0)
        lost = np.round((worth[nodes.gpu_milli] - worth[left]) * WHOLE_GPU)
        ranked: Floats = points - (scores.POINTS + 1) * lost
        return ranked

    return _by_way(ways)


def studied(workload: Iterable[Ask]) -> dict[str, Strategy]:
    """Return the strategies of the published table by their names there, and ours.

    The last two expect the given workload.
    """
    tasks = tuple(workload)
    mix = typical(tasks)
    return {
        "Random": random(),
        "DotProd": classic(scores.dot_product),
        "GpuClustering": classic(scores.clustering),
        "GpuPacking": classic(scores.packing),
        "BestFit": classic(scores.best_fit),
        "FGD": gradient_descent(mix),
        "Worth": worth_keeping(mix, leftover_worth(tasks)),
    }


def _by_way(ways: Ways) -> Strategy:
    def score(nodes: Nodes, ask: Ask) -> Floats:
        best: Floats = ways(nodes, ask).max(axis=1)
        return best

    def devices(nodes: Nodes, row: int, ask: Ask, rng: np.random.Generator) -> tuple[int, ...]:
        if not ask.is_share:
            return tightest_devices(nodes, row, ask)
        return (int(ways(nodes.rows(np.array([row])), ask)[0].argmax()),)

    return Strategy(score, devices)


def _any_devices(nodes: Nodes, row: int, ask: Ask, rng: np.random.Generator) -> tuple[int, ...]:
    holding = np.flatnonzero(nodes.gpu_milli[row] >= ask.gpu_milli)
    return tuple(rng.permutation(holding)[: ask.gpus].tolist())
