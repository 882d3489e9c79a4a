"""From the scores of pools' days to what a controller came to on the days of one class.

A day of the bootstrap is all that shares its luck: the pools of a class on one date, in all worlds
that replay it, are one day, for they meet the same jobs; generated days of two seeds are two.
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
    dates: Sequence[Sequence[str]],
    measure: Measure,
) -> Runs | None:
    """Return what a controller came to on the chosen days, or None where there are none.

    Args:
        name: of the controller.
        settings: values of its service knob.
        scores: of each training seed, and of each setting in it; one seed for the untrained.
        chosen: (rows, days) which pools' days are of the class.
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
    if measure == "service":
        chosen = chosen & (first.minutes > 0)
    if not chosen.any():
        return None
    days, place = np.unique(named[chosen], return_inverse=True)

    def summed(field: str) -> NDArray[np.float64]:
        rows = [
            [np.bincount(place, getattr(score, field)[chosen], len(days)) for score in one]
            for one in scores
        ]
        return np.array(rows, np.float64)

    batch = measure == "batch"
    return Runs(
        name=name,
        settings=tuple(settings),
        days=tuple(days.tolist()),
        violated=summed("violated" if batch else "minutes_violated"),
        judged=summed("judged" if batch else "minutes"),
        cost_usd=summed("cost_usd"),
    )
