"""One vector: what a pool state says of a subject, joined with its past, at one tick.

A number that is not known is null with quality 0. Its age is that of the newest input: what a
rolling feature rests on may be older than the tick, and says so. Numbers are rounded to six digits,
below which processors need not agree.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from gpuloop.schemas.component import State
from gpuloop.schemas.messages import FeatureVector, PoolState
from gpuloop.schemas.units import HOUR_US, INT64_MAX, MINUTE_US, SECOND_US, USD_MICROS
from gpuloop.streams.features.definitions import (
    DAY_US,
    LAGS,
    STATISTICS,
    WINDOWS,
    FeatureSet,
    Interaction,
)
from gpuloop.streams.features.windows import NEVER, Taken, Windows, lagged, put, rolling

DIGITS: Final = 6
_EPOCH_WEEKDAY: Final = 3
"""1970 began on a Thursday."""


class Reading(NamedTuple):
    """A series at one tick: its value, how old that is, and what share of inputs is behind it."""

    value: float | None
    age_us: int = 0
    quality: float = 1.0


class Track(State):
    """What is remembered of a subject: its windows, its counters, when each series was last true.

    `true_us` is -1 for a series that never had a value.
    """

    windows: Windows
    counted_us: int = NEVER
    counters: list[int] = []
    true_us: list[int] = []


def new_track(kind: FeatureSet) -> Track:
    """Return the track of a subject that was never heard of."""
    width = len(kind.series)
    return Track(windows=Windows.empty(width), true_us=[NEVER] * width)


def take(track: Track, tick_us: int, readings: Sequence[Reading]) -> Taken:
    """Let a track know the readings of a tick, on time or late."""
    minute = tick_us // MINUTE_US
    values = np.array([np.nan if r.value is None else r.value for r in readings])
    quality = np.array([r.quality if r.value is not None else 0.0 for r in readings])
    taken = put(track.windows, minute, values, quality)
    if taken == "taken":
        track.true_us = [
            was if reading.value is None else max(was, tick_us - reading.age_us)
            for was, reading in zip(track.true_us, readings, strict=True)
        ]
    return taken


def rates(track: Track, tick_us: int, counters: Sequence[int]) -> list[float | None]:
    """Return each counter's growth per minute since the last tick, null after a reset or a start.

    Ticks must rise; what comes late has no rate.
    """
    before, then_us = track.counters, track.counted_us
    track.counters = [min(count, INT64_MAX) for count in counters]
    track.counted_us = tick_us
    if then_us == NEVER:
        return [None] * len(counters)
    minutes = (tick_us - then_us) / MINUTE_US
    return [
        (now - was) / minutes if now >= was else None
        for now, was in zip(counters, before, strict=True)
    ]


def vector(
    kind: FeatureSet, track: Track, pool: PoolState, readings: Sequence[Reading], job_class: str
) -> FeatureVector:
    """Return the features of a subject at the tick of `pool`, whose readings were just taken."""
    tick_us = pool.tick_us
    minute = tick_us // MINUTE_US
    statistics, coverage = rolling(track.windows, minute)
    ago, ago_quality = lagged(track.windows, minute)
    ages = [tick_us - max(true_us, 0) for true_us in track.true_us]
    width = len(kind.series)
    values = [
        *(math.nan if reading.value is None else reading.value for reading in readings),
        *statistics.ravel().tolist(),
        *ago.ravel().tolist(),
        *temporal(tick_us),
    ]
    quality = [
        *(0.0 if reading.value is None else reading.quality for reading in readings),
        *np.repeat(coverage, len(STATISTICS), axis=0).ravel().tolist(),
        *ago_quality.ravel().tolist(),
    ]
    quality += [1.0] * (len(values) - len(quality))
    told_ages = ages * (1 + len(WINDOWS) * len(STATISTICS))
    told_ages += [lag.span_us for lag in LAGS for _ in range(width)]
    told_ages += [0] * (len(values) - len(told_ages))
    places = {name: place for place, name in enumerate(kind.names)}
    for one in kind.interactions:
        left, right = places[one.left], places[one.right]
        values.append(_combine(one, values[left], values[right]))
        quality.append(min(quality[left], quality[right]))
        told_ages.append(max(told_ages[left], told_ages[right]))
    return FeatureVector(
        fleet=pool.fleet,
        pool=pool.pool,
        job_class=job_class,
        tick_us=tick_us,
        definitions=kind.digest,
        values=tuple(_told(value) for value in values),
        ages_us=tuple(told_ages),
        quality=tuple(
            0.0 if math.isnan(value) else round(min(share, 1.0), 4)
            for value, share in zip(values, quality, strict=True)
        ),
    )


def _told(value: float) -> float | None:
    return None if not math.isfinite(value) else float(f"{value:.{DIGITS}g}") + 0.0


def _combine(one: Interaction, left: float, right: float) -> float:
    match one.operation:
        case "ratio":
            return left / right if right else math.nan
        case "difference":
            return left - right
        case "product":
            return left * right


def temporal(tick_us: int) -> list[float]:
    """Return the features that follow from the time alone, in the order of `TEMPORAL`."""
    day, of_day_us = divmod(tick_us, DAY_US)
    weekday = (day + _EPOCH_WEEKDAY) % 7
    of_day = of_day_us / DAY_US
    of_week = (weekday + of_day) / 7
    return [
        of_day_us / HOUR_US,
        math.sin(2 * math.pi * of_day),
        math.cos(2 * math.pi * of_day),
        float(weekday),
        math.sin(2 * math.pi * of_week),
        math.cos(2 * math.pi * of_week),
        float(weekday >= 5),
    ]


# What is read from a pool state, in the order of `POOL_SERIES` and `CLASS_SERIES`.


def of_pool(pool: PoolState, grown: Sequence[float | None]) -> list[Reading]:
    """Return the readings of a pool; `grown` are the rates of its counters."""
    told = pool.shards_reported / pool.shards_expected if pool.shards_expected else 0.0
    queued = sum(queue.gpus for queue in pool.queues)
    demand_age_us = pool.demand_age_us or 0
    ready = sum(tranche.nodes_ready for tranche in pool.tranches) * pool.gpus_per_node
    capacity = Reading(float(ready) if pool.gpus_per_node else None, pool.capacity_age_us)
    quote = pool.quote_usd_micros_per_gpu_hour / USD_MICROS if pool.gpus_per_node else None
    arrived, refused = grown
    services = pool.services
    oldest = min((s.event_time_us for s in services), default=pool.tick_us)
    service_age_us = max(pool.tick_us - oldest, 0)
    busiest = max((s.utilisation for s in services), default=None)
    slowest = max((s.first_token_p95_us / SECOND_US for s in services), default=None)
    return [
        Reading(float(pool.gpus_allocated + queued), demand_age_us, told),
        Reading(float(pool.gpus_allocated), demand_age_us, told),
        Reading(float(queued), 0, told),
        Reading(float(sum(queue.jobs for queue in pool.queues)), 0, told),
        Reading(_oldest_wait(pool, None), 0, told),
        capacity,
        Reading(arrived, 0, told),
        Reading(refused, 0, told),
        Reading(quote, pool.capacity_age_us),
        Reading(busiest, service_age_us),
        Reading(slowest, service_age_us),
        *(
            _sensor(pool, name)
            for name in (
                "utilisation",
                "sm_active",
                "temperature_celsius",
                "power_watts",
                "throttled",
            )
        ),
    ]


def _sensor(pool: PoolState, name: str) -> Reading:
    feature = pool.features.get(name)
    if feature is None:
        return Reading(None, pool.tick_us, 0.0)
    return Reading(feature.value, feature.age_us, feature.quality)


def of_class(pool: PoolState, members: frozenset[str], grown: float | None) -> list[Reading]:
    """Return the readings of the jobs of some classes, told as one; `grown` is what arrived."""
    told = pool.shards_reported / pool.shards_expected if pool.shards_expected else 0.0
    jobs = [one for one in pool.classes if one.job_class in members]
    queues = [queue for queue in pool.queues if queue.job_class in members]
    age_us = (pool.demand_age_us or 0) if any(one.running_jobs for one in jobs) else 0
    return [
        Reading(float(sum(one.running_gpus for one in jobs)), age_us, told),
        Reading(float(sum(one.running_jobs for one in jobs)), age_us, told),
        Reading(float(sum(queue.gpus for queue in queues)), 0, told),
        Reading(float(sum(queue.jobs for queue in queues)), 0, told),
        Reading(_oldest_wait(pool, members), 0, told),
        Reading(grown, 0, told),
    ]


def _oldest_wait(pool: PoolState, members: frozenset[str] | None) -> float:
    """Return for how many seconds the oldest job has waited, 0 where none does."""
    oldest_us = min(
        (q.oldest_submitted_us for q in pool.queues if members is None or q.job_class in members),
        default=pool.tick_us,
    )
    return max(pool.tick_us - oldest_us, 0) / SECOND_US
