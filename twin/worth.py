"""What the free part of a device is worth to the shares of a GPU that are expected to come.

Shares are items, devices are bins, and the fluid bound of bin packing (Gilmore and Gomory, 1961)
prices every share: at those prices no set of shares that fits on a device is worth more than it.
The worth of a leftover is what it can still hold at those prices. A share of 810 thousandths is
worth a whole device here, because nothing frequent fits beside it, and what it leaves is worth
nothing; filling that leftover with a rare small share costs nothing, opening a device for it does.
"""

from collections import Counter
from collections.abc import Iterable
from math import gcd
from typing import Final

import numpy as np

from gpuloop.twin.fit import WHOLE_GPU, Ask, Floats, Integers

MAX_ROUNDS: Final = 1000
TOLERANCE: Final = 1e-9


def leftover_worth(tasks: Iterable[Ask]) -> Floats:
    """Return the worth, 0 to 1 device, of 0 to 1,000 free thousandths, shape (1001,).

    Raises:
        RuntimeError: the prices were not found in a bounded number of rounds.

    """
    counts = Counter(task.gpu_milli for task in tasks if task.is_share)
    if not counts:
        whole: Floats = (np.arange(WHOLE_GPU + 1) == WHOLE_GPU).astype(np.float64)
        return whole
    sizes = np.array(sorted(counts), dtype=np.int64)
    demand = np.array([counts[int(size)] for size in sizes], dtype=np.float64)
    unit = gcd(WHOLE_GPU, *counts)
    prices = _prices(sizes // unit, demand, WHOLE_GPU // unit)
    worth = _worth(sizes // unit, prices, WHOLE_GPU // unit)
    found: Floats = worth[np.arange(WHOLE_GPU + 1) // unit]
    return found


def _prices(sizes: Integers, demand: Floats, capacity: int) -> Floats:
    """Return the price of each share, by adding fillings of a device until none is worth more."""
    fillings = np.diag(capacity // sizes).astype(np.float64)
    for _ in range(MAX_ROUNDS):
        prices = _maximise(demand, fillings)
        worth = _worth(sizes, prices, capacity)
        if worth[capacity] <= 1.0 + TOLERANCE:
            return prices
        fillings = np.vstack([fillings, _best_filling(sizes, prices, worth)])
    raise RuntimeError(f"no prices for {len(sizes)} shares within {MAX_ROUNDS} rounds")


def _worth(sizes: Integers, prices: Floats, capacity: int) -> Floats:
    """Return the most that shares filling 0 to `capacity` can be worth (unbounded knapsack)."""
    worth = np.zeros(capacity + 1)
    for room in range(1, capacity + 1):
        fitting = sizes <= room
        with_one = worth[room - sizes[fitting]] + prices[fitting]
        worth[room] = max(worth[room - 1], with_one.max(initial=0.0))
    return worth


def _best_filling(sizes: Integers, prices: Floats, worth: Floats) -> Floats:
    """Return how many of each share fill a device to its greatest worth."""
    filling, room = np.zeros(len(sizes)), len(worth) - 1
    while worth[room] > TOLERANCE:
        if worth[room] == worth[room - 1]:
            room -= 1
            continue
        fitting = np.flatnonzero(sizes <= room)
        made = worth[room - sizes[fitting]] + prices[fitting]
        chosen = fitting[np.argmax(made)]
        filling[chosen] += 1
        room -= int(sizes[chosen])
    return filling


def _maximise(value: Floats, fillings: Floats) -> Floats:
    """Return prices x >= 0 of greatest total value with no filling above 1 (simplex, Bland's rule).

    Zero prices are feasible, so there is no first phase.
    """
    rows, columns = fillings.shape
    table = np.zeros((rows + 1, columns + rows + 1))
    table[:rows, :columns], table[:rows, columns:-1], table[:rows, -1] = fillings, np.eye(rows), 1.0
    table[rows, :columns] = -value
    basis = np.arange(columns, columns + rows)
    for _ in range(MAX_ROUNDS * (rows + columns)):
        entering = np.flatnonzero(table[rows, :-1] < -TOLERANCE)
        if not len(entering):
            prices = np.zeros(columns + rows)
            prices[basis] = table[:rows, -1]
            return prices[:columns]
        column = entering[0]
        limits = np.full(rows, np.inf)
        positive = table[:rows, column] > TOLERANCE
        limits[positive] = table[:rows, -1][positive] / table[:rows, column][positive]
        tied = np.flatnonzero(limits <= limits.min() + TOLERANCE)
        row = tied[np.argmin(basis[tied])]
        table[row] /= table[row, column]
        others = np.arange(rows + 1) != row
        table[others] -= np.outer(table[others, column], table[row])
        basis[row] = column
    raise RuntimeError(f"the simplex did not end on {rows} fillings of {columns} shares")
