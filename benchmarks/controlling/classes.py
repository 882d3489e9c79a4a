"""Which kind of load a pool met on a day: steady, cyclical, bursty or flash, from arrivals alone.

    python benchmarks/controlling/classes.py [--traces DIR] > docs/loads.md

The thresholds stand here and were fixed before any controller ran, on Philly's training days and on
generated days; the command prints the figures that led to them, and how often generated days of
seeds that were not looked at are recognised. Nothing here knows a controller, cost or wait.

Unevenness is told by two numbers: the index of dispersion of counts (1 where only chance makes
hours differ: is it there?) and the relative variance of the rate, what exceeds chance (how large is
it, whatever the load?). Jobs are counted and not their GPUs: a pool of gangs sees some 30 jobs a
day of 1 to 64 GPUs, whose sizes alone would make its steady days look uneven. On such a pool a
class is least certain: a third of its generated flash days look steady.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.demand import choose_pool
from gpuloop.twin.workload import DAY_US, JOBS, Generator, Philly, Workload, kept

LoadClass = Literal["steady", "cyclical", "bursty", "flash"]
CLASSES: Final[tuple[LoadClass, ...]] = get_args(LoadClass)

Ints = NDArray[np.int64]

FEWEST_JOBS: Final = 10
"""A day with fewer says nothing about its shape, and has no class."""
UNEVEN_HOURS: Final = (1.6, 0.4)
UNEVEN_MINUTES: Final = (1.4, 1.0)
"""Dispersion and variance of the rate from which on hours, or five minutes, are uneven."""
UNEVEN_REST_HOURS: Final = (1.4, 0.3)
UNEVEN_REST_MINUTES: Final = (1.3, 0.6)
"""The same for what is left of a day without its busiest hours, which lowers both by chance."""
FLASH_PEAK: Final = 4.0
"""How many times the rest of its day the busiest hour of a flash has at least."""
FLASH_HOURS: Final = 3
"""Clock hours that an episode of an hour or two can touch; the day is looked at without them."""
CYCLE: Final = 0.13
"""Share of the differences between hours that the hour of the day explains, adjusted for chance."""
WEEK_DAYS: Final = 7
FEWEST_DAYS: Final = 5
"""Days before from which on a cycle can be told from chance."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How uneven counts are: index of dispersion, and relative variance of the rate behind them."""

    dispersion: float
    variance: float

    def reaches(self, least: tuple[float, float]) -> bool:
        """Return whether both numbers reach a threshold."""
        return self.dispersion >= least[0] and self.variance >= least[1]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Arrivals of one pool on one day.

    `rest_*` are those of the day without its busiest three hours, `peak` the largest hour (it may
    begin at any quarter) over the mean hour of that rest, `cycle` the share of variance of hourly
    jobs that the hour of the day explains over the week before, 0 where that is too short.
    """

    jobs: int
    hours: Spread
    minutes: Spread
    rest_hours: Spread
    rest_minutes: Spread
    peak: float
    cycle: float


def class_of(day: Statistics) -> LoadClass | None:
    """Return the class of a day, or None where too little arrived to say."""
    if day.jobs < FEWEST_JOBS:
        return None
    if not (day.hours.reaches(UNEVEN_HOURS) or day.minutes.reaches(UNEVEN_MINUTES)):
        return "cyclical" if day.cycle >= CYCLE else "steady"
    restless = day.rest_hours.reaches(UNEVEN_REST_HOURS)
    restless |= day.rest_minutes.reaches(UNEVEN_REST_MINUTES)
    return "flash" if day.peak >= FLASH_PEAK and not restless else "bursty"


def statistics(at_us: Ints, *, first_us: int, days: int) -> tuple[Statistics, ...]:
    """Return the statistics of `days` days from `first_us` on; what came before tells cycles.

    Args:
        at_us: (jobs,) when the jobs of a pool came, in any order, those of the week before as well.
        first_us: the first midnight.
        days: how many days.

    """
    return tuple(_statistics(at_us, first_us + day * DAY_US) for day in range(days))


def _statistics(at_us: Ints, midnight_us: int) -> Statistics:
    today = at_us[(at_us >= midnight_us) & (at_us < midnight_us + DAY_US)]
    minutes = np.bincount((today - midnight_us) // MINUTE_US, minlength=1440)
    hours, quarters, fives = (minutes.reshape(-1, width).sum(1) for width in (60, 15, 5))
    busiest = int(np.convolve(hours, np.ones(FLASH_HOURS), "valid").argmax())
    rest = np.delete(hours, np.arange(busiest, busiest + FLASH_HOURS))
    rest_fives = np.delete(fives, np.arange(12 * busiest, 12 * (busiest + FLASH_HOURS)))
    peak = float(np.convolve(quarters, np.ones(4), "valid").max())
    return Statistics(
        jobs=len(today),
        hours=_spread(hours),
        minutes=_spread(fives),
        rest_hours=_spread(rest),
        rest_minutes=_spread(rest_fives),
        peak=peak / max(float(rest.mean()), 1 / len(rest)),
        cycle=_cycle(at_us, midnight_us),
    )


def _spread(counts: Ints) -> Spread:
    mean = float(counts.mean())
    if mean == 0.0:
        return Spread(0.0, 0.0)
    variance = float(counts.var(ddof=1))
    return Spread(variance / mean, (variance - mean) / mean**2)


def _cycle(at_us: Ints, midnight_us: int) -> float:
    """Return the adjusted R^2 of hourly jobs on the hour of the day over the week before."""
    if not len(at_us):
        return 0.0
    begins = max(midnight_us - WEEK_DAYS * DAY_US, int(at_us.min()) // DAY_US * DAY_US)
    days = (midnight_us - begins) // DAY_US
    if days < FEWEST_DAYS:
        return 0.0
    before = at_us[(at_us >= begins) & (at_us < midnight_us)]
    jobs = np.bincount((before - begins) // HOUR_US, minlength=24 * days).reshape(days, 24)
    all_of_it = float(((jobs - jobs.mean()) ** 2).sum())
    if all_of_it == 0.0:
        return 0.0
    unexplained = float(((jobs - jobs.mean(0)) ** 2).sum())
    return 1.0 - (unexplained / (jobs.size - 24)) / (all_of_it / (jobs.size - 1))


TRAINING_US: Final = round(datetime(2017, 9, 25, tzinfo=UTC).timestamp()) * 1_000_000
TRAINING_DAYS: Final = 14
SEEN_SEEDS: Final = range(1, 7)
UNSEEN_SEEDS: Final = range(101, 107)


def days_by_pool(
    workload: Workload, config: TwinConfig, *, first_us: int, days: int
) -> dict[str, tuple[Statistics, ...]]:
    """Return the statistics of each pool of a world, whose config says which jobs it keeps."""
    found: dict[str, list[int]] = {pool.name: [] for pool in config.pools}
    first = first_us // HOUR_US
    for hour in range(first - 24 * WEEK_DAYS, first + 24 * days):
        for job in kept(workload.arrivals(hour), config.arrival_share, config.seed):
            found[choose_pool(config.seed, job, config.pools).name].append(job.submitted_us)
    return {
        pool: statistics(np.array(at_us, np.int64), first_us=first_us, days=days)
        for pool, at_us in found.items()
    }


def generated(shape: LoadClass, seeds: Sequence[int]) -> dict[str, tuple[Statistics, ...]]:
    """Return a fortnight of generated days of several seeds, by pool."""
    found: dict[str, tuple[Statistics, ...]] = {}
    for seed in seeds:
        config = TwinConfig(seed=seed, shape=shape)
        one = Generator(shape, seed, TRAINING_US)
        by_pool = days_by_pool(one, config, first_us=TRAINING_US, days=TRAINING_DAYS)
        found = {pool: (*found.get(pool, ()), *days) for pool, days in by_pool.items()}
    return found


def figures(traces: Path | None) -> str:
    """Return, as Markdown, what the thresholds were chosen on and how days are recognised."""
    table = {f"{shape}, seen": generated(shape, SEEN_SEEDS) for shape in CLASSES}
    if traces is not None and (traces / JOBS).is_file():
        table["Philly, training"] = days_by_pool(
            Philly(traces / JOBS, TRAINING_US), TwinConfig(), first_us=TRAINING_US,
            days=TRAINING_DAYS,
        )  # fmt: skip
    lines = [*thresholds(), "", "10, 50 and 90 % of days:", ""]
    lines += _headed("days", "pool", *FIGURES)
    for what, by_pool in table.items():
        for pool, days in by_pool.items():
            low, middle, high = np.quantile([_flat(day) for day in days], (0.1, 0.5, 0.9), axis=0)
            triples = zip(low, middle, high, strict=True)
            cells = [" ".join(f"{round(one, 3):.3g}" for one in triple) for triple in triples]
            lines.append(f"| {what} | {pool} | {' | '.join(cells)} |")
    table |= {f"{shape}, unseen": generated(shape, UNSEEN_SEEDS) for shape in CLASSES}
    lines += ["", "Days recognised as:", "", *_headed("days", "pool", *CLASSES, "none")]
    for what, by_pool in table.items():
        for pool, days in by_pool.items():
            classes = Counter(class_of(day) for day in days)
            told = [str(classes[one]) for one in (*CLASSES, None)]
            lines.append(f"| {what} | {pool} | {' | '.join(told)} |")
    return "\n".join(lines)


SPREADS: Final = ("hours", "minutes", "rest_hours", "rest_minutes")
FIGURES: Final = (
    "jobs",
    *(f"{one.replace('_', ' ')}: {what}" for one in SPREADS for what in ("dispersion", "variance")),
    "peak",
    "cycle",
)


def thresholds() -> list[str]:
    """Return in words, as Markdown, by which thresholds days are classed."""
    hours, minutes = (f"{a} and {b}" for a, b in (UNEVEN_HOURS, UNEVEN_MINUTES))
    rest_hours, rest_minutes = (f"{a} and {b}" for a, b in (UNEVEN_REST_HOURS, UNEVEN_REST_MINUTES))
    return [
        "# Classes of loads",
        "",
        "By which thresholds a pool's day is called steady, cyclical, bursty or flash, and what",
        "they were chosen on before any controller ran. `seen` are the generated days that they",
        "were chosen on, beside Philly's training days; `unseen` are days of other seeds. No day",
        "that is scored is among them. Written by `python benchmarks/controlling/classes.py`.",
        "",
        f"- No class: fewer than {FEWEST_JOBS} jobs.",
        f"- Uneven: dispersion and variance of the rate reach {hours} by hours,",
        f"  or {minutes} by five minutes.",
        f"- Flash: uneven, with an hour of {FLASH_PEAK:g} times the rest; and without its busiest",
        f"  {FLASH_HOURS} hours the day reaches neither {rest_hours} nor {rest_minutes}.",
        "- Bursty: any other uneven day.",
        f"- Cyclical: even, and the hour of the day explains at least {100 * CYCLE:.0f} % of what",
        f"  differed between hours over the {WEEK_DAYS} days before (at least {FEWEST_DAYS} are",
        "  needed), adjusted for chance.",
        "- Steady: the rest.",
    ]


def _flat(day: Statistics) -> list[float]:
    """Return the numbers that `FIGURES` names."""
    spreads: list[Spread] = [getattr(day, one) for one in SPREADS]
    pairs = [number for one in spreads for number in (one.dispersion, one.variance)]
    return [float(day.jobs), *pairs, day.peak, day.cycle]


def _headed(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    given = os.environ.get("GPULOOP_TRACES")
    parser.add_argument("--traces", type=Path, default=Path(given) if given else None)
    print(figures(parser.parse_args().traces))
    return 0


if __name__ == "__main__":
    sys.exit(main())
