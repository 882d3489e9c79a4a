"""Forecasts of GPU demand, 15, 30 and 60 minutes ahead, that must beat a rival to be used.

Demand is GPUs at work or waited for. The model predicts how it will change: a ridge regression,
fitted online, of the change over a horizon on how far demand is from its mean, where it came from
and how much arrives. Shrunk to zero it is the last value; that is where it starts, and what a
horizon falls back to while its regression does not do better. Quantiles are those of its own past
errors. The rival is the better of the last value and, once a day is known, the change of the day
before. All are scored on what was forecast when the truth was not known.

Job demand is close to a random walk, on which hardly anything beats the last value for long; that
is what the gate is for.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

import msgspec
import numpy as np

from gpuloop.schemas.component import Context, Event, Output, Received, State
from gpuloop.schemas.horizon import STATE_AHEAD_US, refuse_ahead
from gpuloop.schemas.identity import derived_event_id, sha256_of
from gpuloop.schemas.messages import Forecast, PoolState
from gpuloop.schemas.messages.insight import Quantiles
from gpuloop.schemas.policy import CONTROL_TICK_US, FORECAST_HORIZONS_US, Floats
from gpuloop.schemas.units import TimeUs

MODEL: Final = "ridge-change"
LAST_VALUE: Final = "last-value"
DAY_BEFORE: Final = "day-before"
METRIC: Final = "gpus_demanded"

HORIZONS: Final = tuple(horizon // CONTROL_TICK_US for horizon in FORECAST_HORIZONS_US)
DAY: Final = 24 * 60
KEPT: Final = DAY + 2 * max(HORIZONS)
"""Minutes of demand kept: a day, and what its changes refer to."""

MAX_GAP: Final = 30
"""Minutes of silence that are bridged with the last value; after more the past is dropped."""

TERMS: Final = 4
PRIOR: Final = 20.0
"""Horizons of evidence at which the regression believes half of what it sees."""

CLIP: Final = 3.0
"""Changes count at most for this many times the mean one: demand has heavy tails."""

MEMORY: Final = 1.0 - 1.0 / (2 * DAY)
"""What a minute's evidence is worth a minute later: evidence halves in about 33 hours."""

ERRORS_KEPT: Final = 360
MIN_ERRORS: Final = 20
MIN_SAMPLES: Final = 120
"""Scored forecasts below which no skill is claimed."""


class Horizon(msgspec.Struct, kw_only=True):
    """The regression of one horizon and its record so far; errors are running means, in GPUs."""

    normal: list[float] = msgspec.field(default_factory=lambda: [0.0] * TERMS**2)
    """Row by row, TERMS x TERMS."""
    moment: list[float] = msgspec.field(default_factory=lambda: [0.0] * TERMS)
    evidence: float = 0.0
    fitted: list[float] = []
    """Changes that the regression gave and that are not due yet, oldest first."""
    forecast: list[float] = []
    """Changes that were forecast: the regression's, or none."""
    errors: list[float] = []
    fitted_error: float = 0.0
    forecast_error: float = 0.0
    last_error: float = 0.0
    day_error: float = 0.0
    scored: int = 0


class Track(msgspec.Struct, kw_only=True):
    """One pool's demand by minute, and a regression per horizon."""

    minute: int
    demand: list[float] = []
    arrived: list[float] = []
    """Cumulative GPUs that have arrived, by minute."""
    horizons: list[Horizon] = []


class ForecasterState(State):
    """A track per pool."""

    tracks: dict[str, Track] = {}


class Forecaster:
    """Folds `state.pools` into `insight.forecasts`, one per pool and tick."""

    name: ClassVar[str] = "forecaster"
    inputs: ClassVar[tuple[str, ...]] = ("state.pools",)
    state_version: ClassVar[int] = 1

    def __init__(self, fleet: str) -> None:
        """Forecast for `fleet`."""
        self.state_type = ForecasterState
        self.tick_every_us: TimeUs = 0
        self.fleet = fleet

    def initial(self) -> ForecasterState:
        """Return a state without any past."""
        return ForecasterState()

    def step(
        self, state: ForecasterState, event: Event, ctx: Context
    ) -> tuple[ForecasterState, Sequence[Output]]:
        """Learn from a pool's demand and forecast it.

        Raises:
            BadInput: a state from the future, after which all others would be old.

        """
        if not isinstance(event, Received) or not isinstance(event.message, PoolState):
            return state, ()
        pool = event.message
        refuse_ahead(pool.tick_us, ctx.now_us, STATE_AHEAD_US)
        track = state.tracks.get(pool.pool)
        minute = pool.tick_us // CONTROL_TICK_US
        if track is None or not 0 < minute - track.minute <= MAX_GAP:
            if track is not None and minute <= track.minute:
                return state, ()
            track = state.tracks[pool.pool] = Track(
                minute=minute - 1, horizons=[Horizon() for _ in HORIZONS]
            )
        demand = float(pool.gpus_allocated + sum(queue.gpus for queue in pool.queues))
        for _ in range(minute - track.minute):
            _learn(track, demand, float(pool.arrived_gpus))
        track.minute = minute
        forecast = self._forecast(track, pool, event.id)
        output = Output(
            topic="insight.forecasts",
            key=pool.pool,
            message=forecast,
            event_id=derived_event_id("insight.forecasts", [event.id]),
            time_us=pool.tick_us,
        )
        return state, (output,)

    def _forecast(self, track: Track, pool: PoolState, cause: str) -> Forecast:
        return Forecast(
            fleet=self.fleet,
            forecast_id=sha256_of("forecast", pool.pool, str(pool.tick_us), cause),
            pool=pool.pool,
            metric=METRIC,
            tick_us=pool.tick_us,
            horizons=tuple(
                _quantiles(track, horizon, minutes)
                for horizon, minutes in zip(track.horizons, HORIZONS, strict=True)
            ),
            model=MODEL,
            rival=_rival(track.horizons[-1]),
            skill=_skill(track.horizons),
            samples=min(horizon.scored for horizon in track.horizons),
        )


def _learn(track: Track, demand: float, arrived: float) -> None:
    """Append a minute, score the forecasts that fall due and make new ones."""
    track.demand.append(demand)
    track.arrived.append(arrived)
    del track.demand[:-KEPT], track.arrived[:-KEPT]
    now = len(track.demand) - 1
    terms = _terms(track, now)
    for horizon, minutes in zip(track.horizons, HORIZONS, strict=True):
        if now >= minutes:
            _score(track, horizon, minutes, now)
        change = float(terms @ _weights(horizon, minutes))
        better = horizon.scored >= MIN_SAMPLES and horizon.fitted_error < horizon.last_error
        horizon.fitted.append(change)
        horizon.forecast.append(change if better else 0.0)
        del horizon.fitted[:-minutes], horizon.forecast[:-minutes]


def _score(track: Track, horizon: Horizon, minutes: int, now: int) -> None:
    then = now - minutes
    change = track.demand[now] - track.demand[then]
    if len(horizon.forecast) >= minutes:
        horizon.scored += 1
        weight = max(1.0 / horizon.scored, 1.0 - MEMORY)
        error = change - horizon.forecast[-minutes]
        horizon.errors.append(error)
        del horizon.errors[:-ERRORS_KEPT]
        day = _day_before(track, then, minutes) or 0.0
        horizon.forecast_error += weight * (abs(error) - horizon.forecast_error)
        off = abs(change - horizon.fitted[-minutes])
        horizon.fitted_error += weight * (off - horizon.fitted_error)
        horizon.last_error += weight * (abs(change) - horizon.last_error)
        horizon.day_error += weight * (abs(change - day) - horizon.day_error)
    terms = _terms(track, then)
    limit = CLIP * max(horizon.last_error, 1.0)
    normal = MEMORY * np.array(horizon.normal) + np.outer(terms, terms).ravel()
    moment = MEMORY * np.array(horizon.moment) + terms * min(max(change, -limit), limit)
    horizon.normal, horizon.moment = normal.tolist(), moment.tolist()
    horizon.evidence = MEMORY * horizon.evidence + 1.0


def _weights(horizon: Horizon, minutes: int) -> Floats:
    """Return the regression's weights, shrunk as if minutes within a horizon told one thing."""
    if horizon.evidence < minutes:
        return np.zeros(TERMS)
    normal = np.array(horizon.normal).reshape(TERMS, TERMS)
    ridge = PRIOR * minutes / horizon.evidence * np.diag(normal) + 1e-6
    return np.linalg.solve(normal + np.diag(ridge), np.array(horizon.moment))


def _terms(track: Track, at: int) -> Floats:
    """Return what a change is explained by, in GPUs, as known at minute `at`."""
    demand, arrived = track.demand, track.arrived
    now, long = demand[at], max(0, at - 240)
    mean = sum(demand[long : at + 1]) / (at + 1 - long)
    flow = arrived[at] - arrived[max(0, at - 15)]
    usual = (arrived[at] - arrived[long]) * 15.0 / max(1, at - long)
    return np.array(
        [
            mean - now,
            now - demand[max(0, at - 15)],
            now - demand[max(0, at - 60)],
            flow - usual,
        ]
    )


def _day_before(track: Track, at: int, minutes: int) -> float | None:
    """Return the change a day before over the same minutes, or None when it is not known."""
    start = at - DAY
    return track.demand[start + minutes] - track.demand[start] if start >= 0 else None


def _rival(horizon: Horizon) -> str:
    return DAY_BEFORE if horizon.day_error < horizon.last_error else LAST_VALUE


def _skill(horizons: Sequence[Horizon]) -> float:
    """Return 1 - MAE / MAE of the rival over all horizons; 0 until enough forecasts fell due."""
    rival = sum(min(one.last_error, one.day_error) for one in horizons)
    if rival <= 0.0 or any(one.scored < MIN_SAMPLES for one in horizons):
        return 0.0
    return round(1.0 - sum(one.forecast_error for one in horizons) / rival, 4)


def _quantiles(track: Track, horizon: Horizon, minutes: int) -> Quantiles:
    middle = track.demand[-1] + horizon.forecast[-1]
    low, high = 0.0, 0.0
    if len(horizon.errors) >= MIN_ERRORS:
        low, high = np.quantile(horizon.errors, [0.1, 0.9]).tolist()
    return Quantiles(
        horizon_us=minutes * CONTROL_TICK_US,
        p10=round(max(0.0, middle + min(0.0, low)), 3),
        p50=round(max(0.0, middle), 3),
        p90=round(max(0.0, middle + max(0.0, high)), 3),
    )
