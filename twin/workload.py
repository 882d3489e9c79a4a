"""Which jobs arrive when: the Philly trace, or else a generator calibrated on it.

A workload is a function of the hour: asking twice gives the same jobs, so a world saves only how
far it has come. Job names derive from the submission time, not from the position in a file, so a
job meets the same luck whichever weeks of the trace a folder holds.
"""

import gzip
import itertools
from bisect import bisect_left
from csv import DictReader
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Final, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.units import HOUR_US, SECOND_US
from gpuloop.twin.config import Shape, SizeClass
from gpuloop.twin.draws import generator, normal, uniform
from gpuloop.twin.fit import WHOLE_GPU

JOBS: Final = "philly/jobs.csv.gz"
PODS: Final = "openb/pods.csv"
OPENB_ZERO_US: Final = 1_672_531_200 * SECOND_US
"""2023-01-01T00:00:00Z."""
OPENB_BUSY_DAY: Final = 116
DAY_US: Final = 24 * HOUR_US
LONG_US: Final = 4 * HOUR_US
MAX_GPUS: Final = 64


@dataclass(frozen=True, slots=True, order=True)
class JobSpec:
    """A job as its tenant asks for it; `work_us` is its duration on healthy GPUs.

    `gpu_milli` is how many thousandths it needs of each GPU; less than all only of a single one.
    """

    submitted_us: int
    job: str
    gpus: int
    work_us: int
    tenant: str
    gpu_milli: int = 1000


def size_class(gpus: int, work_us: int) -> SizeClass:
    """Return the class by which a job finds its pool."""
    if gpus > 2:
        return "gang"
    return "long" if gpus == 2 or work_us >= LONG_US else "small"


class Workload(Protocol):
    """Jobs by hour. `name` says which workload it is, `start_us` where a world on it begins."""

    @property
    def name(self) -> str:
        """Return what is replayed or generated, as shown to people."""
        ...

    @property
    def start_us(self) -> int:
        """Return the fleet time at which a world on this workload begins."""
        ...

    def arrivals(self, hour: int) -> tuple[JobSpec, ...]:
        """Return the jobs submitted in hour `hour` since 1970, in order of submission."""
        ...

    def running_at(self, at_us: int) -> tuple[JobSpec, ...]:
        """Return the jobs that run at `at_us` if nothing ever waited, with what remains of them."""
        ...


def build_workload(
    traces: Path | None, which: str | Workload, *, start_us: int, seed: int, shape: Shape
) -> Workload:
    """Return the workload called `which`, or the one that it is.

    `philly`, `openb` and `generator[:shape]` are meant literally; `auto` is Philly's trace where it
    is at hand.

    Raises:
        ValueError: there is no such workload, or no trace in the folder.

    """
    if not isinstance(which, str):
        return which
    path = None if traces is None else traces / JOBS
    kind, _, wanted = which.partition(":")
    if kind == "philly" or (kind in ("auto", "") and path is not None and path.is_file()):
        if path is None or not path.is_file():
            raise ValueError(f"workload philly needs {JOBS} in the folder of traces")
        return Philly(path, start_us)
    if kind == "openb":
        if traces is None or not (traces / PODS).is_file():
            raise ValueError(f"workload openb needs {PODS} in the folder of traces")
        return Openb(traces / PODS, start_us)
    shapes = get_args(Shape)
    if kind not in ("auto", "", "generator") or (wanted and wanted not in shapes):
        raise ValueError(
            f"no workload {which!r}: philly, openb, generator:{'|'.join(shapes)}, auto"
        )
    chosen: Shape = next((s for s in shapes if s == wanted), shape)
    return Generator(chosen, seed, start_us)


class Recorded:
    """Published jobs, replayed at their own times."""

    name: str

    def __init__(self, jobs: tuple[JobSpec, ...], start_us: int, otherwise_us: int) -> None:
        """Begin at `start_us` if the jobs' times span it, else at `otherwise_us`."""
        self._jobs = jobs
        self._times = [job.submitted_us for job in jobs]
        inside = self._times[0] <= start_us <= self._times[-1]
        self.start_us = start_us if inside else otherwise_us

    @property
    def span_us(self) -> tuple[int, int]:
        """Return when the first and the last job were submitted."""
        return self._times[0], self._times[-1]

    def arrivals(self, hour: int) -> tuple[JobSpec, ...]:
        """Return the jobs of one hour."""
        first = bisect_left(self._times, hour * HOUR_US)
        return self._jobs[first : bisect_left(self._times, (hour + 1) * HOUR_US)]

    def running_at(self, at_us: int) -> tuple[JobSpec, ...]:
        """Return the jobs under way at `at_us`."""
        return _under_way(self._jobs[: bisect_left(self._times, at_us)], at_us)


class Philly(Recorded):
    """Microsoft's jobs of 2017; a world begins at their first midnight if no better is asked."""

    name = "philly"

    def __init__(self, path: Path, start_us: int) -> None:
        jobs = read_philly(path)
        super().__init__(jobs, start_us, jobs[0].submitted_us // DAY_US * DAY_US)


class Openb(Recorded):
    """Alibaba's pods of 2023, of which most ask for a part of a GPU.

    The trace has no dates: its first second is put at `OPENB_ZERO_US`. Nearly all pods come after
    day 116, where a world begins if nothing else is asked. Pods that need no GPU or were never
    scheduled are left out, for nothing says how long those would have run.
    """

    name = "openb"

    def __init__(self, path: Path, start_us: int) -> None:
        super().__init__(read_openb(path), start_us, OPENB_ZERO_US + OPENB_BUSY_DAY * DAY_US)


def _under_way(jobs: tuple[JobSpec, ...], at_us: int) -> tuple[JobSpec, ...]:
    return tuple(
        replace(job, work_us=job.submitted_us + job.work_us - at_us)
        for job in jobs
        if job.submitted_us + job.work_us > at_us
    )


@lru_cache(maxsize=4)
def read_philly(path: Path) -> tuple[JobSpec, ...]:
    """Return the jobs of a file of Philly's layout, in order of submission.

    Raises:
        ValueError: a column is missing or the file has no job.

    """
    rows = []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        try:
            for row in DictReader(lines):
                at = datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC)
                gpus, seconds = int(float(row["num_gpus"])), float(row["duration"])
                rows.append((int(at.timestamp()), gpus, round(seconds), row["cluster"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not laid out like the Philly jobs: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no job")
    rows.sort()
    jobs: list[JobSpec] = []
    for second, same in itertools.groupby(rows, key=lambda row: row[0]):
        for twin, (_, gpus, seconds, cluster) in enumerate(same):
            jobs.append(
                JobSpec(second * SECOND_US, f"philly-{second}-{twin}", min(max(gpus, 1), MAX_GPUS),
                        max(seconds, 1) * SECOND_US, cluster)
            )  # fmt: skip
    return tuple(jobs)


@lru_cache(maxsize=4)
def read_openb(path: Path) -> tuple[JobSpec, ...]:
    """Return the pods of a file of openb's layout that used a GPU, in order of creation.

    A pod's work is the time from when it was scheduled until it was deleted, its tenant its class
    of service.

    Raises:
        ValueError: a column is missing, a value is no number, or nothing is left.

    """
    jobs = []
    with path.open(encoding="utf-8", newline="") as lines:
        try:
            for row in DictReader(lines):
                gpus = int(row["num_gpu"])
                if not gpus or not row["scheduled_time"] or not row["deletion_time"]:
                    continue
                seconds = int(row["deletion_time"]) - int(row["scheduled_time"])
                at_us = OPENB_ZERO_US + int(row["creation_time"]) * SECOND_US
                milli = (
                    min(int(row["gpu_milli"] or WHOLE_GPU), WHOLE_GPU) if gpus == 1 else WHOLE_GPU
                )
                jobs.append(
                    JobSpec(at_us, row["name"], min(gpus, MAX_GPUS), max(seconds, 1) * SECOND_US,
                            row["qos"] or "none", milli)
                )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not laid out like the openb pods: {error}") from error
    if not jobs:
        raise ValueError(f"{path} holds no pod that ran on a GPU")
    return tuple(sorted(jobs))


@dataclass(frozen=True, slots=True)
class _Kind:
    """A mixture component: share of jobs, GPUs, lognormal duration in seconds."""

    share: float
    gpus: int
    log_mean: float
    log_sd: float


KINDS: Final = (
    _Kind(0.886, 1, 6.50, 1.64),
    _Kind(0.052, 1, 10.80, 1.07),
    _Kind(0.019, 2, 4.59, 3.52),
    _Kind(0.023, 4, 9.14, 2.78),
    _Kind(0.018, 8, 9.64, 2.89),
    _Kind(0.002, 16, 9.23, 3.48),
)
"""Philly's jobs by size and length: shares, and mean and deviation of the log of the duration."""

TENANTS: Final = ("6214e9", "11cb48", "6c71a0", "ee9e8c", "ed69ec", "103959", "e13805")
TENANT_SHARES: Final = (0.55, 0.20, 0.12, 0.05, 0.03, 0.03, 0.02)
JOBS_PER_HOUR: Final = 50.0
LONGEST_SECONDS: Final = 4 * 86_400
WARM_UP_HOURS: Final = 96
QUIET_SHARE: Final = 0.7
FLASH_FACTOR: Final = 10.0
FLASH_SECONDS: Final = (1_500, 5_400)
"""How far below the usual a day with a flash is, how far the flash is above that, and how long it
lasts: assumptions, chosen so that such a day brings about as many jobs as a steady one."""


class Generator:
    """Poisson arrivals with Philly's sizes and lengths; the shape is in the rate.

    `steady` has a constant rate, `cyclical` follows day and week, `bursty` multiplies the cycle by
    a lognormal factor per hour (log deviation 1, mean 1: on 25 September to 8 October the hourly
    counts of Philly have 1.1), `flash` is constant and quiet but for one time of each day,
    somewhere in it, when the rate is ten times that at once and as suddenly back. Durations end at
    four days, where the fitted tail would go on: it brings the load of 50 jobs an hour near the
    500 GPUs that Philly keeps busy.
    """

    def __init__(self, shape: Shape, seed: int, start_us: int) -> None:
        self.name = f"generator:{shape}"
        self.start_us = start_us
        self._shape: Shape = shape
        self._seed = seed
        self._cached = cache(self._draw)

    def arrivals(self, hour: int) -> tuple[JobSpec, ...]:
        """Return the jobs of one hour."""
        return self._cached(hour)

    def running_at(self, at_us: int) -> tuple[JobSpec, ...]:
        """Return the jobs under way at `at_us` after four days without a queue."""
        hour = at_us // HOUR_US
        before = itertools.chain.from_iterable(
            self.arrivals(past) for past in range(max(hour - WARM_UP_HOURS, 0), hour)
        )
        return _under_way(tuple(before), at_us)

    def rate(self, hour: int) -> float:
        """Return the expected number of jobs in an hour."""
        if self._shape == "steady":
            return JOBS_PER_HOUR
        if self._shape == "flash":
            first, last = self._flash(hour)
            share = (last - first) * SECOND_US / HOUR_US
            return JOBS_PER_HOUR * QUIET_SHARE * (1 + (FLASH_FACTOR - 1) * share)
        day = np.cos(2 * np.pi * ((hour % 24) - 15) / 24)
        weekend = (hour // 24 + 4) % 7 in (0, 6)
        cycle = (1 + 0.6 * float(day)) * (0.5 if weekend else 1.2)
        if self._shape == "cyclical":
            return JOBS_PER_HOUR * cycle
        burst = float(np.exp(normal(self._seed, "burst", hour) - 0.5))
        return JOBS_PER_HOUR * cycle * burst

    def _flash(self, hour: int) -> tuple[int, int]:
        """Return the first second of an hour within its day's flash, and the first after it."""
        day, of_day = divmod(hour, 24)
        shortest, longest = FLASH_SECONDS
        length = shortest + uniform(self._seed, "flash-length", day) * (longest - shortest)
        begin = uniform(self._seed, "flash-begin", day) * (DAY_US // SECOND_US - length)
        seconds = HOUR_US // SECOND_US
        first, last = (round(end) - of_day * seconds for end in (begin, begin + length))
        return min(max(first, 0), seconds), min(max(last, 0), seconds)

    def _seconds(self, hour: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return in which seconds of an hour its jobs come, in no order."""
        seconds = HOUR_US // SECOND_US
        if self._shape != "flash":
            return rng.integers(0, seconds, count)
        first, last = self._flash(hour)
        weights = np.ones(seconds)
        weights[first:last] = FLASH_FACTOR
        return rng.choice(seconds, count, p=weights / weights.sum())

    def _draw(self, hour: int) -> tuple[JobSpec, ...]:
        rng = generator(self._seed, "arrivals", hour)
        count = int(rng.poisson(self.rate(hour)))
        at = np.sort(self._seconds(hour, count, rng))
        kinds = rng.choice(len(KINDS), count, p=[kind.share for kind in KINDS])
        scores = rng.standard_normal(count)
        tenants = rng.choice(len(TENANTS), count, p=TENANT_SHARES)
        jobs = []
        for index in range(count):
            kind = KINDS[int(kinds[index])]
            seconds = np.exp(kind.log_mean + kind.log_sd * scores[index])
            seconds = int(min(max(seconds, 1.0), LONGEST_SECONDS))
            jobs.append(
                JobSpec(hour * HOUR_US + int(at[index]) * SECOND_US, f"job-{hour}-{index}",
                        kind.gpus, seconds * SECOND_US, TENANTS[int(tenants[index])])
            )  # fmt: skip
        return tuple(jobs)


def kept(jobs: tuple[JobSpec, ...], share: float, seed: int) -> tuple[JobSpec, ...]:
    """Return the share of jobs a world keeps; a smaller share is a subset of a larger one."""
    if share >= 1.0:
        return jobs
    return tuple(job for job in jobs if uniform(seed, "kept", job.job) < share)
