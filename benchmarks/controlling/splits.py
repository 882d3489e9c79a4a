"""Which days of a folder of traces are trained on, tuned on and scored.

The weeks of the Philly trace are fixed: 25 September to 8 October 2017 train, 9 to 15 October tune,
every whole day from the 16th on is scored. Days are known by their content: these three weeks by
the digests below, and a day of some of the trace's tenants by its date as well, so that whichever
part of the trace a folder holds, no day is scored that anything was trained or tuned on. Any other
folder is new: the fleet's bounds come from its first three days, which are not scored, and all
whole days after them are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.workload import DAY_US, JOBS, TENANTS, JobSpec, read_philly

LLM: Final = "llm/azure_conv_2023.csv.gz"
BOUNDS_DAYS: Final = 3
BUSY_SHARE: Final = 0.1
"""Of the median day's jobs, from which on a folder's first days count: logs often fade in."""


def midnight_us(date: str) -> int:
    """Return the first microsecond of a day such as `2017-10-16`."""
    return round(datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp()) * 1_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """Whole days from `first_us` on."""

    first_us: int
    days: int

    @property
    def end_us(self) -> int:
        """Return the midnight after the last day."""
        return self.first_us + self.days * DAY_US

    @property
    def dates(self) -> tuple[str, ...]:
        """Return the dates of its days."""
        return tuple(
            datetime.fromtimestamp((self.first_us + day * DAY_US) / 1e6, UTC).date().isoformat()
            for day in range(self.days)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What a folder of traces is used for.

    Attributes:
        known: whether it holds the training and tuning weeks, so that one may train and tune on it.
        train: days to train on.
        tune: days on which controllers and their settings are tuned.
        bounds: days from which the fleet's bounds come, None for those of the shipped fleet.
        test: days that are scored, in stretches that nothing interrupts.
        llm: the hour of requests to a language model, for tests only, where the folder has it.

    """

    known: bool
    train: Span | None
    tune: Span | None
    bounds: Span | None
    test: tuple[Span, ...]
    llm: Path | None


TRAIN: Final = Span(midnight_us("2017-09-25"), 14)
TUNE: Final = Span(midnight_us("2017-10-09"), 7)
DIGESTS: Final = frozenset(
    (
        "f23442fdd657ee2e", "c13a31f02806e50e", "4ed766640098e2d3", "fcd6f04e988b924f",
        "2306d9b86aae85ec", "31fab365391a9091", "aa010e75a0376c54", "c64750d5258a9c3c",
        "132afcd141c614ac", "7e3894c411547702", "2ca0fdd3d41acd5f", "fceb0aedbe1e9f0c",
        "89267cb0001ddc0b", "8deec6ce03cba317", "34c0761faec1b981", "b03b77e12397c021",
        "991f9ed4a5604322", "77c5377ec71dfea0", "5cc9ffe12982080d", "3289a1ec68dfbbea",
        "ecdff0ceb5337282",
    )
)  # fmt: skip
"""Those of the days of `TRAIN` and `TUNE`, by `digest`."""
TAUGHT: Final = range(TRAIN.first_us // DAY_US, TUNE.end_us // DAY_US)


def split(traces: Path) -> Split:
    """Return what each day of a folder laid out like `traces/` is used for.

    Where it holds no jobs but requests to a language model, no day is scored.

    Raises:
        ValueError: the folder is not there, holds nothing that could be scored, holds jobs in
            another layout, or too few days of them.

    """
    if not traces.is_dir():
        raise ValueError(f"there is no folder of traces {traces}")
    llm = traces / LLM if (traces / LLM).is_file() else None
    if not (traces / JOBS).is_file():
        if llm is None:
            raise ValueError(f"{traces} holds neither {JOBS} nor {LLM}: nothing to score")
        return Split(known=False, train=None, tune=None, bounds=None, test=(), llm=llm)
    by_day = _by_day(read_philly(traces / JOBS))
    whole = {day for day, jobs in by_day.items() if digest(jobs) in DIGESTS}
    seen = whole | {day for day in TAUGHT if any(j.tenant in TENANTS for j in by_day.get(day, ()))}
    first, end = _whole_days(by_day)
    if whole >= set(TAUGHT):
        test = _stretches(range(TAUGHT.stop, end), seen)
        return Split(known=True, train=TRAIN, tune=TUNE, bounds=None, test=test, llm=llm)
    test = _stretches(range(first + BOUNDS_DAYS, end), seen)
    if not test:
        raise ValueError(
            f"{traces / JOBS} has {max(end - first, 0)} whole days, and {len(seen)} days that were "
            f"trained or tuned on; {BOUNDS_DAYS} for the fleet's bounds and one new day are needed"
        )
    bounds = Span(first * DAY_US, BOUNDS_DAYS)
    return Split(known=False, train=None, tune=None, bounds=bounds, test=test, llm=llm)


def digest(jobs: Sequence[JobSpec]) -> str:
    """Return what tells a day's jobs from any others: when they came, how wide, how long, whose."""
    lines = sorted(f"{j.submitted_us},{j.gpus},{j.work_us},{j.tenant}\n" for j in jobs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _by_day(jobs: Sequence[JobSpec]) -> dict[int, list[JobSpec]]:
    found: dict[int, list[JobSpec]] = {}
    for job in jobs:
        found.setdefault(job.submitted_us // DAY_US, []).append(job)
    return found


def _whole_days(by_day: dict[int, list[JobSpec]]) -> tuple[int, int]:
    """Return the first day, and the one after the last, that are whole and not of a quiet start.

    The first and the last day count where jobs came in their first, and in their last, hour.
    """
    first, last = min(by_day), max(by_day)
    counts = [len(by_day.get(day, ())) for day in range(first, last + 1)]
    least = BUSY_SHARE * median(counts)
    begins = next(day for day, count in enumerate(counts, first) if count >= max(least, 1))
    if begins == first and by_day[first][0].submitted_us >= first * DAY_US + HOUR_US:
        begins += 1
    ends = last + 1 if by_day[last][-1].submitted_us >= (last + 1) * DAY_US - HOUR_US else last
    return begins, ends


def _stretches(days: range, seen: set[int]) -> tuple[Span, ...]:
    """Return the days that nobody has seen, those side by side together."""
    spans: list[Span] = []
    for day in days:
        if day in seen:
            continue
        if spans and spans[-1].end_us == day * DAY_US:
            spans[-1] = Span(spans[-1].first_us, spans[-1].days + 1)
        else:
            spans.append(Span(day * DAY_US, 1))
    return tuple(spans)
