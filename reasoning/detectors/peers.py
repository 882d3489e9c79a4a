"""How far a node is from its pool, metric by metric, in robust standard deviations.

Nodes of a pool are one population: the median and the median absolute deviation of its last
node-minutes say what is usual. Floors keep a pool of equals from finding fault with a hair.
"""

from typing import Final

import numpy as np

from gpuloop.reasoning.detectors.behaviour import METRICS, Floats
from gpuloop.reasoning.series import median, spread
from gpuloop.schemas.component import State

KEPT: Final = 1024
ENOUGH: Final = 256
FLOORS: Final = np.array([0.05, 0.05, 0.07, 1.0])
"""What a metric of `METRICS` scatters by at least."""


class Peers(State):
    """The last `KEPT` node-minutes of a pool, float32 (row, metric), the next at `count`."""

    cells: bytearray
    count: int = 0

    @classmethod
    def empty(cls) -> "Peers":
        """Return a population that nobody belongs to yet."""
        return cls(cells=bytearray(4 * KEPT * len(METRICS)))


def judge(peers: Peers, metrics: Floats) -> tuple[Floats, Floats]:
    """Return robust z-scores, (node, metric), and what is usual of each metric."""
    known = np.frombuffer(peers.cells, dtype="<f4").reshape(KEPT, -1)[: peers.count]
    if peers.count < ENOUGH:
        return np.zeros_like(metrics), np.full(len(METRICS), np.nan)
    usual = median(known, axis=0).astype(np.float64)
    width = np.maximum(spread(known, axis=0), FLOORS)
    return (metrics - usual) / width, usual


def learn(peers: Peers, metrics: Floats) -> None:
    """Let rows join the population, and the oldest leave."""
    known = np.frombuffer(peers.cells, dtype="<f4").reshape(KEPT, -1)
    for row in metrics:
        known[peers.count % KEPT] = row
        peers.count += 1
        if peers.count == 2 * KEPT:
            peers.count = KEPT
