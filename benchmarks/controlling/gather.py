"""From the scores of pools' days to what a controller came to on the days of one class.

A day of the bootstrap is all that shares its luck: the pools of a class on one date, in all worlds
that replay it, are one day, for they meet the same jobs; generated days of two seeds are two. What
each pool came to on it stays apart.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from benchmarks.controlling.classes import LoadClass
from benchmarks.controlling.frontier import Runs
from benchmarks.controlling.service import Score
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Measure = Literal["batch", "service"]


def cells_of(load: LoadClass, classes: Sequence[Sequence[LoadClass | None]]) -> Flags:
    """Return which pools' days, (rows, days), are of a class."""
    return np.array([[one == load for one in row] for row in classes], bool)


def gather(
    name: str,
    settings: Sequence[float],
    scores: Sequence[Sequence[Score]],
    *,
    chosen: Flags,
    pools: Sequence[str],
    dates: Sequence[Sequence[str]],
    measure: Measure,
) -> Runs | None:
    """Return what a controller came to on the chosen days, or None where there are none.

    Pools without a chosen day are left out, the others come in the order of their first rows.

    Args:
        name: of the controller.
        settings: values of its service knob.
        scores: of each training seed, and of each setting in it; one seed for the untrained.
        chosen: (rows, days) which pools' days are of the class.
        pools: (rows,) which pool each is; those of one name in several worlds are one.
        dates: (rows, days) what each is called; those of one name become one day.
        measure: jobs of the batch, or minutes of the pools that serve; cost is that of all chosen
            pools for the one, and of those that serve for the other.

    Raises:
        ValueError: the shapes do not fit each other.

    """
    first = scores[0][0]
    named = np.array(dates)
    if chosen.shape != first.judged.shape or named.shape != chosen.shape:
        raise ValueError(f"{name}: {chosen.shape} are chosen of {first.judged.shape} days")
    if len(pools) != len(chosen):
        raise ValueError(f"{name}: {len(pools)} pools are named of {len(chosen)}")
    if measure == "service":
        chosen = chosen & (first.minutes > 0)
    if not chosen.any():
        return None
    days, day = np.unique(named[chosen], return_inverse=True)
    mine = [pools[row] for row in np.nonzero(chosen)[0]]
    kept = tuple(pool for pool in dict.fromkeys(pools) if pool in mine)
    place = np.array([kept.index(pool) for pool in mine])
    cell, cells = place * len(days) + day, len(kept) * len(days)

    def summed(field: str) -> NDArray[np.float64]:
        rows = [
            [np.bincount(cell, getattr(score, field)[chosen], cells) for score in one]
            for one in scores
        ]
        return np.array(rows, np.float64).reshape(*np.shape(rows)[:2], len(kept), len(days))

    batch = measure == "batch"
    return Runs(
        name=name,
        settings=tuple(settings),
        pools=kept,
        days=tuple(days.tolist()),
        violated=summed("violated" if batch else "minutes_violated"),
        judged=summed("judged" if batch else "minutes"),
        cost_usd=summed("cost_usd"),
    )
