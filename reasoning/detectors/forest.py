"""How rare a combination of metrics is in its pool: half-space trees, from river.

The trees (Tan, Ting and Liu, 2011) are cut at random, by a seed, before any data are seen; what is
learned are masses of their cells, of the window that fills and of the one before it. So the trees
are made once per process and a state holds masses only. This module alone knows river's trees.
"""

from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import numpy as np
from river.anomaly import HalfSpaceTrees

from gpuloop.reasoning.detectors.behaviour import METRICS, Floats
from gpuloop.schemas.component import State

TREES: Final = 25
HEIGHT: Final = 6
WINDOW: Final = 1024
"""Node-minutes after which what was learned becomes what is compared with."""
CELLS: Final = TREES * (2 ** (HEIGHT + 1) - 1)
SEED: Final = 20171016

RANGES: Final = np.array([(0.0, 1.2), (0.0, 0.8), (-0.8, 0.8), (-20.0, 20.0)])
"""What of each metric of `METRICS` the trees tell apart."""


class Forest(State):
    """Masses of all cells, tree by tree: (cell, present and last window) as int32."""

    masses: bytearray
    learned: int = 0

    @classmethod
    def empty(cls) -> "Forest":
        """Return a forest that has seen nothing."""
        return cls(masses=bytearray(8 * CELLS))

    @property
    def ready(self) -> bool:
        """Return whether there is a window to compare with."""
        return self.learned >= WINDOW


class _Cell(Protocol):
    """What river keeps per cell: the mass of the window that fills, and of the one before."""

    l_mass: int
    r_mass: int


class _Trees(NamedTuple):
    model: HalfSpaceTrees
    cells: list[_Cell]


@lru_cache(maxsize=1)
def _trees() -> _Trees:
    """Return trees past their first window, so that their score depends on masses only."""
    model = HalfSpaceTrees(n_trees=TREES, height=HEIGHT, window_size=WINDOW, seed=SEED)
    for _ in range(WINDOW):
        model.learn_one(dict.fromkeys(METRICS, 0.5))
    return _Trees(model, [cell for tree in model.trees for cell in tree.iter_dfs()])


def judge_and_learn(forest: Forest, metrics: Floats, normal: list[bool]) -> list[float]:
    """Return a score per row, 1 the rarest and 0 until a window is full; learn the normal rows.

    All rows are scored before any is learned. The forest is changed in place.
    """
    low, high = RANGES.T
    points = np.clip((metrics - low) / (high - low), 0.0, 1.0).tolist()
    readings = [dict(zip(METRICS, point, strict=True)) for point in points]
    model, cells = _trees()
    masses = np.frombuffer(forest.masses, dtype="<i4").reshape(CELLS, 2)
    for cell, (present, last) in zip(cells, masses.tolist(), strict=True):
        cell.l_mass, cell.r_mass = present, last
    model.counter = forest.learned % WINDOW
    scores = [model.score_one(reading) if forest.ready else 0.0 for reading in readings]
    for reading, is_normal in zip(readings, normal, strict=True):
        if is_normal:
            model.learn_one(reading)
            forest.learned += 1
    masses[:] = [(cell.l_mass, cell.r_mass) for cell in cells]
    return scores
