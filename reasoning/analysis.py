"""What the deep tier is asked and what it answers, free of the library that answers it.

The fold builds an `Analysis` from its state and a worker process answers with an `Attribution`;
both are plain data, so a request can be made, sent, logged and compared without DoWhy.
"""

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Edge(msgspec.Struct, frozen=True, array_like=True):
    """A direct causal link; `slope` is what physics says of its effect, in the columns' units."""

    cause: str
    effect: str
    slope: float


class Analysis(msgspec.Struct, frozen=True, kw_only=True):
    """The question which ancestor of `target` made it depart from normal.

    `normal` and `anomalous` are row-major little-endian float64 matrices over `columns`; a column
    moves by about `scale` on its own. Every node of the graph is a column and ends in `target`.
    """

    target: str
    columns: tuple[str, ...]
    edges: tuple[Edge, ...]
    scale: tuple[float, ...]
    normal: bytes
    anomalous: bytes
    seed: int

    def matrix(self, data: bytes) -> Array:
        """Return `normal` or `anomalous` with one row per minute."""
        return np.frombuffer(data, dtype="<f8").reshape(-1, len(self.columns))


class Share(NamedTuple):
    """How much of the target's departure a column's own disturbance accounts for."""

    column: str
    value: float


class Attribution(msgspec.Struct, frozen=True, kw_only=True):
    """The departure of the target, in its own units, split over the columns."""

    departure: float
    shares: tuple[Share, ...]


def pack(rows: Array) -> bytes:
    """Return a matrix as `Analysis` carries it."""
    return np.ascontiguousarray(rows, dtype="<f8").tobytes()
