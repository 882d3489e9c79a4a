"""A sparse linear programme that grows row by row and is solved by HiGHS."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array

Entry = tuple[int, float]
"""A column and its factor."""

INFEASIBLE: Final = 2


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The least cost, the columns' values, and by how much a row's limit changes that cost."""

    cost: float
    values: NDArray[np.float64]
    marginals: NDArray[np.float64]


@dataclass
class _Rows:
    """One side of the programme: entries and limits."""

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    def add(self, limit: float, entries: Iterable[Entry]) -> int:
        self.limits.append(limit)
        number = len(self.limits) - 1
        for column, factor in entries:
            self.put(number, column, factor)
        return number

    def put(self, row: int, column: int, factor: float) -> None:
        self.rows.append(row)
        self.columns.append(column)
        self.factors.append(factor)

    def matrix(self, columns: int) -> csr_array | None:
        if not self.limits:
            return None
        places = (self.rows, self.columns)
        return csr_array((self.factors, places), shape=(len(self.limits), columns))


class Programme:
    """Minimise cost over columns within bounds, under rows that equal or do not exceed a limit."""

    def __init__(self) -> None:
        """Begin without columns and rows."""
        self._costs: list[float] = []
        self._bounds: list[tuple[float, float]] = []
        self._equal = _Rows()
        self._at_most = _Rows()

    def column(self, *, cost: float = 0.0, least: float = 0.0, most: float = np.inf) -> int:
        """Add a column; return its number."""
        self._costs.append(cost)
        self._bounds.append((least, most))
        return len(self._costs) - 1

    def equal(self, limit: float, entries: Iterable[Entry] = ()) -> int:
        """Add a row that equals its limit; return its number among these."""
        return self._equal.add(limit, entries)

    def at_most(self, limit: float, entries: Iterable[Entry] = ()) -> int:
        """Add a row that does not exceed its limit; return its number among these."""
        return self._at_most.add(limit, entries)

    def put_equal(self, row: int, column: int, factor: float) -> None:
        """Add to a row that equals its limit."""
        self._equal.put(row, column, factor)

    def compile(self) -> "Compiled":
        """Return it in the solver's form, for any limits of the rows that do not exceed them."""
        columns = len(self._costs)
        return Compiled(
            np.array(self._costs),
            np.array(self._bounds),
            (self._equal.matrix(columns), np.array(self._equal.limits)),
            (self._at_most.matrix(columns), np.array(self._at_most.limits)),
        )


Side = tuple[csr_array | None, NDArray[np.float64]]


@dataclass(frozen=True)
class Compiled:
    """A programme in the solver's form."""

    costs: NDArray[np.float64]
    bounds: NDArray[np.float64]
    equal: Side
    at_most: Side

    def solve(self, changed: dict[int, float]) -> Optimum | None:
        """Return the optimum with some limits of the `at_most` rows changed; None: there is none.

        Raises:
            RuntimeError: the solver gave up.

        """
        limits = self.at_most[1].copy()
        for row, limit in changed.items():
            limits[row] = limit
        found = linprog(
            self.costs,
            A_ub=self.at_most[0],
            b_ub=limits if len(limits) else None,
            A_eq=self.equal[0],
            b_eq=self.equal[1] if len(self.equal[1]) else None,
            bounds=self.bounds,
            method="highs",
        )
        if found.status == INFEASIBLE:
            return None
        if found.status != 0:
            raise RuntimeError(f"HiGHS: {found.message}")
        return Optimum(cost=float(found.fun), values=found.x, marginals=found.ineqlin.marginals)
