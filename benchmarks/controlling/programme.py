"""A sparse linear programme that grows row by row and is solved by HiGHS."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import highspy
import numpy as np
from highspy import HighsModelStatus, HighsStatus
from numpy.typing import NDArray
from scipy.sparse import csc_array

Entry = tuple[int, float]
"""A column and its factor."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The least cost, the columns' values, and by how much each row's limit changes that cost."""

    cost: float
    values: NDArray[np.float64]
    marginals: NDArray[np.float64]


class Programme:
    """Minimise cost over columns within bounds, under rows that equal or do not exceed a limit."""

    def __init__(self) -> None:
        """Begin without columns and rows."""
        self._costs: Final[list[float]] = []
        self._bounds: Final[list[tuple[float, float]]] = []
        self._limits: Final[list[tuple[float, float]]] = []
        self._rows: Final[list[int]] = []
        self._columns: Final[list[int]] = []
        self._factors: Final[list[float]] = []

    def column(self, *, cost: float = 0.0, least: float = 0.0, most: float = np.inf) -> int:
        """Add a column; return its number."""
        self._costs.append(cost)
        self._bounds.append((least, most))
        return len(self._costs) - 1

    def equal(self, limit: float, entries: Iterable[Entry] = ()) -> int:
        """Add a row that equals its limit; return its number."""
        return self._row(limit, limit, entries)

    def at_most(self, limit: float, entries: Iterable[Entry] = ()) -> int:
        """Add a row that does not exceed its limit; return its number."""
        return self._row(-np.inf, limit, entries)

    def put(self, row: int, column: int, factor: float) -> None:
        """Add to a row; what is put in one place twice is summed."""
        self._rows.append(row)
        self._columns.append(column)
        self._factors.append(factor)

    def compile(self) -> "Compiled":
        """Return it in the solver, for any limits of the rows that do not exceed them."""
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self._costs), len(self._limits)
        lp.col_cost_ = np.array(self._costs)
        lp.col_lower_, lp.col_upper_ = np.array(self._bounds).T
        lp.row_lower_, lp.row_upper_ = np.array(self._limits).T
        places = (self._rows, self._columns)
        matrix = csc_array((self._factors, places), shape=(lp.num_row_, lp.num_col_))
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_, lp.a_matrix_.index_ = matrix.indptr, matrix.indices
        lp.a_matrix_.value_ = matrix.data
        return Compiled(lp)

    def _row(self, least: float, most: float, entries: Iterable[Entry]) -> int:
        self._limits.append((least, most))
        number = len(self._limits) - 1
        for column, factor in entries:
            self.put(number, column, factor)
        return number


class Compiled:
    """A programme in the solver, which goes on from one optimum to that under other limits.

    The first is found by interior points and a crossover to a vertex: with thousands of jobs the
    simplex method takes ten times as long to get there, and HiGHS turns to it by itself only where
    interior points do not converge. From a vertex it needs a few steps to the next.
    """

    def __init__(self, lp: highspy.HighsLp) -> None:
        """Hand the programme to the solver."""
        self._highs: Final = highspy.Highs()
        self._highs.setOptionValue("output_flag", False)
        self._highs.setOptionValue("threads", 1)
        self._highs.setOptionValue("solver", "ipm")
        if self._highs.passModel(lp) == HighsStatus.kError:
            raise ValueError("HiGHS does not take this programme")

    def solve(self, changed: Mapping[int, float]) -> Optimum | None:
        """Return the optimum with some limits of `at_most` rows changed; None: there is none.

        Limits stay as they were changed.

        Raises:
            RuntimeError: the solver gave up.

        """
        for row, limit in changed.items():
            self._highs.changeRowBounds(row, -np.inf, limit)
        self._highs.run()
        status = self._highs.getModelStatus()
        if status == HighsModelStatus.kInfeasible:
            return None
        if status != HighsModelStatus.kOptimal:
            raise RuntimeError(f"HiGHS: {self._highs.modelStatusToString(status)}")
        self._highs.setOptionValue("solver", "simplex")
        found = self._highs.getSolution()
        return Optimum(
            cost=self._highs.getInfo().objective_function_value,
            values=np.array(found.col_value),
            marginals=np.array(found.row_dual),
        )
