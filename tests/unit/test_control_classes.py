"""A pool's day is classed by its arrivals: shapes that nobody calibrated on are recognised."""

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from benchmarks.controlling.classes import (
    CLASSES,
    SEEN_SEEDS,
    UNSEEN_SEEDS,
    LoadClass,
    class_of,
    generated,
    statistics,
    thresholds,
)

from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.workload import DAY_US

SEEDS = range(201, 204)
FIRST_US = 17_000 * DAY_US


@cache
def recognised(shape: LoadClass) -> dict[str, Counter[LoadClass | None]]:
    return {
        pool: Counter(class_of(day) for day in days)
        for pool, days in generated(shape, SEEDS).items()
    }


def share(shape: LoadClass, pool: str, named: LoadClass) -> float:
    counts = recognised(shape)[pool]
    return counts[named] / counts.total()


def test_the_seeds_here_are_not_those_that_the_thresholds_saw() -> None:
    assert not set(SEEDS) & {*SEEN_SEEDS, *UNSEEN_SEEDS}


@pytest.mark.parametrize("shape", CLASSES)
@pytest.mark.parametrize("pool", ["a100", "l4"])
def test_generated_days_of_a_busy_pool_are_recognised(shape: LoadClass, pool: str) -> None:
    assert share(shape, pool, shape) > 0.85


@pytest.mark.parametrize("shape", CLASSES)
def test_generated_days_of_a_pool_of_gangs_are_mostly_recognised(shape: LoadClass) -> None:
    """Some 35 jobs a day: other classes are named less often than the right one."""
    counts = recognised(shape)["h100"]
    assert counts.most_common(1)[0][0] == shape


def test_quiet_day_has_no_class() -> None:
    at_us = FIRST_US + np.arange(9) * HOUR_US
    (day,) = statistics(at_us, first_us=FIRST_US, days=1)
    assert class_of(day) is None
    (none,) = statistics(np.zeros(0, np.int64), first_us=FIRST_US, days=1)
    assert class_of(none) is None


def even(jobs_per_hour: int, hours: int, first_us: int = FIRST_US) -> np.ndarray:
    """Return arrivals as even as Poisson ones are on average, or a little more."""
    rng = np.random.default_rng(7)
    return first_us + np.sort(rng.integers(0, hours * HOUR_US, jobs_per_hour * hours))


def test_burst_within_minutes_is_seen_though_the_hours_are_even() -> None:
    quiet = even(40, 24)
    minute = (quiet - FIRST_US) // HOUR_US * HOUR_US + quiet % (2 * MINUTE_US)
    (day,) = statistics(FIRST_US + minute, first_us=FIRST_US, days=1)
    assert day.hours.dispersion < 1.6
    assert class_of(day) == "bursty"


def test_one_episode_is_a_flash_and_two_are_bursts() -> None:
    quiet = even(30, 24)
    rng = np.random.default_rng(8)
    sudden = rng.integers(0, 40 * MINUTE_US, 300)
    once = np.concatenate([quiet, FIRST_US + 9 * HOUR_US + sudden])
    twice = np.concatenate([once, FIRST_US + 18 * HOUR_US + sudden])
    (flash,), (bursts,) = (statistics(a, first_us=FIRST_US, days=1) for a in (once, twice))
    assert class_of(flash) == "flash"
    assert class_of(bursts) == "bursty"


def test_cycle_is_told_from_the_days_before_only() -> None:
    rng = np.random.default_rng(9)
    hours = np.repeat(np.arange(7 * 24), 1 + 4 * (np.arange(7 * 24) % 24 > 11))
    before = FIRST_US + hours * HOUR_US + rng.integers(0, HOUR_US, len(hours))
    today = even(4, 24, FIRST_US + 7 * DAY_US)
    both = np.concatenate([before, today])
    (with_week,) = statistics(both, first_us=FIRST_US + 7 * DAY_US, days=1)
    (without,) = statistics(today, first_us=FIRST_US + 7 * DAY_US, days=1)
    assert (class_of(with_week), class_of(without)) == ("cyclical", "steady")
    later = np.concatenate([today, before + 8 * DAY_US])
    (unaware,) = statistics(later, first_us=FIRST_US + 7 * DAY_US, days=1)
    assert unaware == without


def test_order_of_arrivals_does_not_matter() -> None:
    at_us = even(30, 48)
    shuffled = np.random.default_rng(1).permutation(at_us)
    assert statistics(shuffled, first_us=FIRST_US, days=2) == statistics(
        at_us, first_us=FIRST_US, days=2
    )


def test_unevenness_is_measured_at_any_load_alike() -> None:
    """A day whose hours alternate between nothing and twice the mean has a variance of 1."""
    for jobs in (20, 200):
        hours = np.repeat(np.arange(0, 24, 2), 2 * jobs)
        spread = np.tile(np.arange(2 * jobs), 12) * (HOUR_US // (2 * jobs))
        (day,) = statistics(FIRST_US + hours * HOUR_US + spread, first_us=FIRST_US, days=1)
        assert day.hours.variance == pytest.approx(24 / 23 - 1 / jobs)
        assert day.hours.dispersion == pytest.approx(24 / 23 * jobs)


def test_page_of_figures_names_the_thresholds_in_force() -> None:
    page = (Path(__file__).parents[2] / "docs" / "loads.md").read_text()
    assert page.startswith("\n".join(thresholds()))
