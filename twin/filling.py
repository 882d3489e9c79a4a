"""Tasks arrive and none leaves until the cluster is full: what the study of fragmentation measures.

As in the simulator of Weng et al. (github.com/hkust-adsl/kubernetes-scheduler-simulator, commit
8f3d641): the tasks of a workload arrive in random order, then more of them, drawn with replacement,
until they would ask for more GPUs than `load` times what the cluster has. A task that does not fit
when it comes is not tried again. Among equally good nodes the first wins, in a random order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpuloop.twin.fit import WHOLE_GPU, Ask, Floats, Integers, Nodes, fits, take
from gpuloop.twin.fragmentation import Mix, fragmentation
from gpuloop.twin.strategies import Strategy


class Filled(NamedTuple):
    """A cluster after each arrival, in per cent of its GPUs; `lost` counts tasks that found none.

    `fragment` is what is free and not expected to be of use (`fragmentation`).
    """

    arrived: Floats
    used: Floats
    fragment: Floats
    lost: int

    def at(self, series: Floats, load: int) -> float:
        """Return the mean of a series where the arrived per cent round to `load`, as published."""
        return float(series[np.round(self.arrived) == load].mean())


def arrivals(
    workload: Sequence[Ask], capacity_milli: int, load: float, rng: np.random.Generator
) -> list[Ask]:
    """Return a workload in random order, made to ask for `load` times the capacity.

    A smaller one is made longer, a larger one is cut.
    """
    order = [workload[index] for index in rng.permutation(len(workload)).tolist()]
    asked, limit = sum(task.total_milli for task in workload), load * capacity_milli
    if asked > limit:
        while asked > limit:
            asked -= order.pop().total_milli
        return order
    while True:
        task = workload[int(rng.integers(len(workload)))]
        if asked + task.gpu_milli > limit:
            return order
        asked += task.total_milli
        order.append(task)


def fill(
    nodes: Nodes, tasks: Sequence[Ask], strategy: Strategy, mix: Mix, rng: np.random.Generator
) -> Filled:
    """Let tasks arrive at a cluster that is free, and return what it was like after each.

    `nodes` is left as it is; `mix` is the expected workload by which fragmentation is measured.
    """
    order = rng.permutation(len(nodes.gpus))
    nodes = nodes.rows(order)
    board = _Board(nodes, strategy, rng)
    per_cent = 100.0 / (WHOLE_GPU * int(nodes.gpus.sum()))
    fragments = fragmentation(nodes, mix)
    arrived = used = lost = 0
    series = np.zeros((3, len(tasks)))
    for index, task in enumerate(tasks):
        arrived += task.total_milli
        row = board.place(task)
        if row is None:
            lost += 1
        else:
            used += task.total_milli
            fragments[row] = fragmentation(nodes.rows(np.array([row])), mix)[0]
        series[:, index] = arrived, used, fragments.sum()
    arrived_share, used_share, fragment_share = series * per_cent
    return Filled(arrived_share, used_share, fragment_share, lost)


class _Board:
    """Scores by task, renewed only for nodes that have changed since it was last asked for.

    A score depends on nothing but a node's own row, and between two tasks of a kind few change.
    """

    def __init__(self, nodes: Nodes, strategy: Strategy, rng: np.random.Generator) -> None:
        self._nodes = nodes
        self._strategy = strategy
        self._rng = rng
        self._changed: list[int] = []
        self._scores: dict[Ask, tuple[Floats, int]] = {}

    def place(self, task: Ask) -> int | None:
        """Put a task on its best node and return which that is, if any holds it."""
        found = self._renewed(task)
        best = found.max()
        if best == -np.inf:
            return None
        equals = np.flatnonzero(found == best)
        chosen = self._rng.integers(len(equals)) if self._strategy.by_lot else 0
        row = int(equals[chosen])
        devices = self._strategy.devices(self._nodes, row, task, self._rng)
        take(self._nodes, row, task, devices)
        self._changed.append(row)
        return row

    def _renewed(self, task: Ask) -> Floats:
        known = self._scores.get(task)
        if known is None:
            found, stale = np.full(len(self._nodes.gpus), -np.inf), np.arange(len(self._nodes.gpus))
        else:
            found = known[0]
            stale = np.unique(np.array(self._changed[known[1] :], dtype=np.int64))
        self._scores[task] = (found, len(self._changed))
        found[stale] = -np.inf
        open_rows: Integers = stale[fits(self._nodes.rows(stale), task)]
        if len(open_rows):
            found[open_rows] = self._strategy.score(self._nodes.rows(open_rows), task)
        return found
