"""An hour of real requests to a language model as a test of service, and of nothing else.

The hour of the Azure conversation trace drives the inference service of the fleet, after an hour of
the service's own draws in which everyone settles. Nobody was tuned, trained or calibrated on how it
unfolds. Several worlds meet it, each with its own jobs beside it and its own luck. One hour is one
sample: what it came to is told by controller, at its tuned setting, and no ratio is taken.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from benchmarks.calibrating.published import requests
from benchmarks.controlling.evaluate import SYNTHETIC_SEED
from benchmarks.controlling.play import SLOTS, Entrant, rows_of
from msgspec.structs import replace

from gpuloop.loop.learn.pool_course import PoolCourse
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.policy import Floats
from gpuloop.schemas.units import HOUR_US, USD_MICROS
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level import arrays
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.workload import Generator

WORLDS: Final = 8
LEAD_MINUTES: Final = 60
HOURS: Final = 2


class Hour(msgspec.Struct, frozen=True, kw_only=True):
    """What a controller's service came to in that hour, over all worlds.

    `usd_per_hour` is capacity and energy of the pool that serves, the mean of the worlds.
    """

    name: str
    setting: float
    minutes: int
    violated: int
    usd_per_hour: float


def rates(traces: Path) -> Floats:
    """Return requests per second, (minutes,), by whole minutes since the first."""
    at, _, _ = requests(traces)
    return np.bincount((at // 60).astype(np.int64))[:-1] / 60.0


def play_hour(
    traces: Path, config: TwinConfig, entrants: Sequence[Entrant], rule: RuleConfig
) -> tuple[Hour, ...]:
    """Let entrants serve the hour side by side, and return what each came to."""
    arriving = rates(traces)[: (HOURS - 1) * 60]
    first = LEAD_MINUTES + 1
    told = np.full(first + len(arriving), np.nan)
    told[first:] = arriving
    seeds = range(SYNTHETIC_SEED, SYNTHETIC_SEED + WORLDS)
    configs = [replace(config, seed=seed, start_us=_start_us(config)) for seed in seeds]
    worlds = build_pool_worlds(
        configs,
        hours=HOURS,
        traces=traces,
        workload=[Generator(one.shape, one.seed, one.start_us) for one in configs],
        slots=SLOTS,
        copies=len(entrants),
        requests=told,
    )
    pools = worlds.rows // len(entrants)
    names = [pool.name for one in configs for pool in one.pools] * len(entrants)
    course = PoolCourse(worlds, seed=0, names=names, rule=rule)
    shares = [slice(place * pools, (place + 1) * pools) for place in range(len(entrants))]
    for entrant in entrants:
        entrant.controller.reset(np.ones(pools, np.bool_))
    state = worlds.state
    for minute in range(LEAD_MINUTES + len(arriving)):
        if minute == LEAD_MINUTES:
            books, counts = state.books.copy(), state.counts.copy()
        batch = course.look()
        wish = np.empty_like(batch.present)
        for entrant, share in zip(entrants, shares, strict=True):
            wish[share] = entrant.controller(rows_of(batch, share))
        course.act(wish)
    paid = (state.books - books)[:, [arrays.CAPACITY, arrays.ENERGY]].sum(axis=1) / USD_MICROS
    missed = (state.counts - counts)[:, arrays.VIOLATED]
    serves = worlds.rules.service[:pools] > 0
    return tuple(
        Hour(
            name=entrant.name,
            setting=entrant.setting,
            minutes=len(arriving) * int(serves.sum()),
            violated=int(missed[share][serves].sum()),
            usd_per_hour=float(paid[share][serves].mean()) * 60 / len(arriving),
        )
        for entrant, share in zip(entrants, shares, strict=True)
    )


def _start_us(config: TwinConfig) -> int:
    """Return the hour of the day at which the trace begins, less the lead."""
    return config.start_us // (24 * HOUR_US) * 24 * HOUR_US + 17 * HOUR_US
