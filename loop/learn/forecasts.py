"""The forecasts of `reasoning.forecast` for many pools side by side, minute by minute.

Same regressions, same gate, same errors; what the live fold keeps in lists is kept in arrays here
and worked on by compiled code. `tests/unit/test_learn_forecasts.py` holds the two together.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from gpuloop.reasoning import forecast as live
from gpuloop.schemas.policy import Flags, Floats

RUNG: Final = 64
"""Rows of history are shifted once in so many minutes, not every minute."""

_HORIZONS: Final = np.array(live.HORIZONS)


class Past(NamedTuple):
    """Regressions by row and horizon, and histories of `KEPT` minutes that end at `minutes`."""

    minutes: NDArray[np.int64]
    """(rows,) minutes that are known, at most `KEPT`; the last stands at this place less one."""
    demand: Floats
    """(rows, KEPT + RUNG)"""
    arrived: Floats
    normal: Floats
    """(rows, horizons, terms, terms)"""
    moment: Floats
    evidence: Floats
    fitted: Floats
    """(rows, horizons, longest horizon) by minute, in a ring."""
    forecast: Floats
    steps: NDArray[np.int64]
    """(rows,) minutes since the beginning, which turn the rings."""
    errors: Floats
    """(rows, horizons, ERRORS_KEPT) in a ring, and below the same in order."""
    ordered: Floats
    fitted_error: Floats
    forecast_error: Floats
    last_error: Floats
    day_error: Floats
    scored: NDArray[np.int64]


class Forecasts:
    """What will be demanded of n pools, learned online from what was."""

    def __init__(self, rows: int) -> None:
        """Know nothing yet."""
        one = (rows, len(_HORIZONS))
        shapes: dict[str, tuple[int, ...]] = {
            "minutes": (rows,),
            "steps": (rows,),
            "demand": (rows, live.KEPT + RUNG),
            "arrived": (rows, live.KEPT + RUNG),
            "normal": (*one, live.TERMS, live.TERMS),
            "moment": (*one, live.TERMS),
            "fitted": (*one, max(live.HORIZONS)),
            "forecast": (*one, max(live.HORIZONS)),
            "errors": (*one, live.ERRORS_KEPT),
            "ordered": (*one, live.ERRORS_KEPT),
        }
        whole = ("minutes", "steps", "scored")
        arrays: dict[str, Any] = {
            name: np.zeros(shapes.get(name, one), np.int64 if name in whole else np.float64)
            for name in Past._fields
        }
        self._past: Final = Past(**arrays)
        self.gpus: Final = np.zeros((*one, 3))
        """(rows, horizons, p10 p50 p90)"""

    def learn(self, demand: Floats, arrived: Floats) -> None:
        """Take in a minute: GPUs at work or waited for, and all that ever arrived, (rows,)."""
        _learn_all(self._past, demand, arrived, self.gpus, _CONSTANTS)

    def trusted(self) -> Flags:
        """Return which rows' forecasts beat their rivals, (rows,)."""
        past = self._past
        rival = np.minimum(past.last_error, past.day_error).sum(axis=1)
        known = (past.scored >= live.MIN_SAMPLES).all(axis=1) & (rival > 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            skill = np.round(1.0 - past.forecast_error.sum(axis=1) / rival, 4)
        trusted: Flags = known & (skill > 0.0)
        return trusted


class _Constants(NamedTuple):
    """The live model's numbers: arguments, because compiled code would keep old ones."""

    horizons: NDArray[np.int64]
    kept: int
    day: int
    memory: float
    prior: float
    clip: float
    min_samples: int
    min_errors: int


_CONSTANTS: Final = _Constants(
    horizons=_HORIZONS,
    kept=live.KEPT,
    day=live.DAY,
    memory=live.MEMORY,
    prior=live.PRIOR,
    clip=live.CLIP,
    min_samples=live.MIN_SAMPLES,
    min_errors=live.MIN_ERRORS,
)

F = TypeVar("F", bound=Callable[..., Any])
_njit: Final[Any] = numba.njit


def _compiled(function: F) -> F:
    """Return a function as machine code, kept on disk: all that it calls stands in this file."""
    return cast(F, _njit(error_model="numpy", cache=True)(function))


@_compiled
def _learn_all(
    past: Past, demand: Floats, arrived: Floats, gpus: Floats, constants: _Constants
) -> None:
    for row in range(demand.shape[0]):
        _remember(past, row, demand[row], arrived[row], constants.kept)
        now = past.minutes[row] - 1
        terms = _terms(past, row, now)
        for horizon in range(constants.horizons.shape[0]):
            minutes = constants.horizons[horizon]
            if now >= minutes:
                _score(past, row, horizon, minutes, now, constants)
            change = 0.0
            if past.evidence[row, horizon] >= minutes:
                change = _predict(past, row, horizon, minutes, terms, constants.prior)
            better = (
                past.scored[row, horizon] >= constants.min_samples
                and past.fitted_error[row, horizon] < past.last_error[row, horizon]
            )
            place = past.steps[row] % minutes
            past.fitted[row, horizon, place] = change
            past.forecast[row, horizon, place] = change if better else 0.0
            _quantiles(past, row, horizon, change if better else 0.0, gpus, constants.min_errors)
        past.steps[row] += 1


@_compiled
def _remember(past: Past, row: int, demand: float, arrived: float, kept: int) -> None:
    """Append a minute; a full history is moved to its beginning, less what is too old."""
    if past.minutes[row] == past.demand.shape[1]:
        for series in (past.demand, past.arrived):
            for place in range(kept - 1):
                series[row, place] = series[row, place + series.shape[1] - kept + 1]
        past.minutes[row] = kept - 1
    past.demand[row, past.minutes[row]] = demand
    past.arrived[row, past.minutes[row]] = arrived
    past.minutes[row] += 1


@_compiled
def _terms(past: Past, row: int, at: int) -> Floats:
    demand, arrived, long = past.demand[row], past.arrived[row], max(0, at - 240)
    now, terms = demand[at], np.empty(4)
    flow = arrived[at] - arrived[max(0, at - 15)]
    usual = (arrived[at] - arrived[long]) * 15.0 / max(1, at - long)
    terms[0] = demand[long : at + 1].sum() / (at + 1 - long) - now
    terms[1] = now - demand[max(0, at - 15)]
    terms[2] = now - demand[max(0, at - 60)]
    terms[3] = flow - usual
    return terms


@_compiled
def _predict(
    past: Past, row: int, horizon: int, minutes: int, terms: Floats, prior: float
) -> float:
    normal = past.normal[row, horizon].copy()
    for term in range(terms.shape[0]):
        own = past.normal[row, horizon, term, term]
        normal[term, term] += prior * minutes / past.evidence[row, horizon] * own + 1e-6
    return float((terms * _solve(normal, past.moment[row, horizon].copy())).sum())


@_compiled
def _solve(matrix: Floats, right: Floats) -> Floats:
    """Return x of matrix x = right, both of which are used up; the matrix is positive definite.

    Numba's own solver needs a library that nothing else here does.
    """
    size = right.shape[0]
    for pivot in range(size):
        for below in range(pivot + 1, size):
            factor = matrix[below, pivot] / matrix[pivot, pivot]
            right[below] -= factor * right[pivot]
            for column in range(pivot, size):
                matrix[below, column] -= factor * matrix[pivot, column]
    for pivot in range(size - 1, -1, -1):
        for column in range(pivot + 1, size):
            right[pivot] -= matrix[pivot, column] * right[column]
        right[pivot] /= matrix[pivot, pivot]
    return right


@_compiled
def _score(
    past: Past, row: int, horizon: int, minutes: int, now: int, constants: _Constants
) -> None:
    then = now - minutes
    change = past.demand[row, now] - past.demand[row, then]
    if past.steps[row] >= minutes:
        place = past.steps[row] % minutes
        past.scored[row, horizon] += 1
        weight = max(1.0 / past.scored[row, horizon], 1.0 - constants.memory)
        error = change - past.forecast[row, horizon, place]
        _keep_error(past, row, horizon, error)
        day = 0.0
        if then >= constants.day:
            start = then - constants.day
            day = past.demand[row, start + minutes] - past.demand[row, start]
        off = abs(change - past.fitted[row, horizon, place])
        past.forecast_error[row, horizon] += weight * (
            abs(error) - past.forecast_error[row, horizon]
        )
        past.fitted_error[row, horizon] += weight * (off - past.fitted_error[row, horizon])
        past.last_error[row, horizon] += weight * (abs(change) - past.last_error[row, horizon])
        past.day_error[row, horizon] += weight * (abs(change - day) - past.day_error[row, horizon])
    terms = _terms(past, row, then)
    limit = constants.clip * max(past.last_error[row, horizon], 1.0)
    clipped = min(max(change, -limit), limit)
    for one in range(terms.shape[0]):
        past.moment[row, horizon, one] *= constants.memory
        past.moment[row, horizon, one] += terms[one] * clipped
        for other in range(terms.shape[0]):
            past.normal[row, horizon, one, other] *= constants.memory
            past.normal[row, horizon, one, other] += terms[one] * terms[other]
    past.evidence[row, horizon] = constants.memory * past.evidence[row, horizon] + 1.0


@_compiled
def _keep_error(past: Past, row: int, horizon: int, error: float) -> None:
    """Put an error into the ring and into the ordered ones, in place of the oldest."""
    kept = past.errors.shape[2]
    before = past.scored[row, horizon] - 1
    ordered, place = past.ordered[row, horizon], min(before, kept - 1)
    if before >= kept:
        place = np.searchsorted(ordered, past.errors[row, horizon, before % kept])
        while place < kept - 1:
            ordered[place] = ordered[place + 1]
            place += 1
    while place > 0 and ordered[place - 1] > error:
        ordered[place] = ordered[place - 1]
        place -= 1
    ordered[place] = error
    past.errors[row, horizon, before % kept] = error


@_compiled
def _quantiles(
    past: Past, row: int, horizon: int, change: float, gpus: Floats, min_errors: int
) -> None:
    middle = past.demand[row, past.minutes[row] - 1] + change
    known = min(past.scored[row, horizon], past.errors.shape[2])
    low = high = 0.0
    if known >= min_errors:
        low = _quantile(past.ordered[row, horizon], known, 0.1)
        high = _quantile(past.ordered[row, horizon], known, 0.9)
    gpus[row, horizon, 0] = round(max(0.0, middle + min(0.0, low)), 3)
    gpus[row, horizon, 1] = round(max(0.0, middle), 3)
    gpus[row, horizon, 2] = round(max(0.0, middle + max(0.0, high)), 3)


@_compiled
def _quantile(ordered: Floats, known: int, share: float) -> float:
    at = share * (known - 1)
    below = int(at)
    above = min(below + 1, known - 1)
    return float(ordered[below] + (at - below) * (ordered[above] - ordered[below]))
