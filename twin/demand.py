"""How tenants behave: where their jobs go, what they would pay, how long they wait.

Every answer is a draw keyed by the job, so that demand nests across prices: who accepts a price
accepts every lower one, whatever else differs between two runs.
"""

from typing import NamedTuple

from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.config import JobClass, PoolConfig, SegmentConfig
from gpuloop.twin.draws import lognormal, uniform
from gpuloop.twin.workload import LONG_US, JobSpec, size_class

INTERACTIVE_US = 10 * MINUTE_US
PATIENCE_SIGMA = 0.8
PATRON_JOBS = 10
"""Quotes of a pool that a tenant has accepted when it has a record of use there."""
RECORD_US = 7 * 24 * HOUR_US
"""How long a record lasts after the last of them."""


def job_class(spec: JobSpec) -> JobClass:
    """Return the segment of a job: short single-GPU work is interactive, long or wide training."""
    if spec.gpus > 2 or spec.work_us >= LONG_US:
        return "training"
    return "interactive" if spec.gpus == 1 and spec.work_us < INTERACTIVE_US else "batch"


def choose_pool(seed: int, spec: JobSpec, pools: tuple[PoolConfig, ...]) -> PoolConfig:
    """Return the pool a job is for, in proportion to the weights its size class gives them."""
    size = size_class(spec.gpus, spec.work_us)
    weights = [pool.weights.get(size, 0.0) for pool in pools]
    mark = uniform(seed, "pool", spec.job) * sum(weights)
    for pool, weight in zip(pools, weights, strict=True):
        mark -= weight
        if mark < 0:
            return pool
    return pools[0]


def reservation_price(seed: int, job: str, segment: SegmentConfig, reference: int) -> int:
    """Return the highest quote a job accepts, in USD micros per GPU-hour."""
    return round(reference * lognormal(segment.median, segment.sigma, seed, "reservation", job))


def told_quote(quote: float, loyalty: float, jobs: int, last_us: int, now_us: int) -> float:
    """Return what a tenant is told where `quote` is posted, with `loyalty` off it for patrons.

    A patron has accepted at least `PATRON_JOBS` quotes of the pool, the last within `RECORD_US`.
    """
    patron = jobs >= PATRON_JOBS and now_us - last_us <= RECORD_US
    return quote * (1.0 - loyalty) if patron else quote


def accepted_jobs(jobs: int, last_us: int, now_us: int) -> int:
    """Return how many quotes a tenant has accepted with the one it accepts now."""
    return jobs + 1 if now_us - last_us <= RECORD_US else 1


def patience_us(seed: int, job: str, segment: SegmentConfig) -> int:
    """Return how long a job waits for its first start before its tenant cancels it."""
    return round(lognormal(segment.patience_us, PATIENCE_SIGMA, seed, "patience", job))


class Profile(NamedTuple):
    """What a job does to a GPU while it runs at full speed, as ratios.

    `comm` is the share of its time spent exchanging data between GPUs.
    """

    utilisation: float
    sm_active: float
    tensor_active: float
    memory_used: float
    comm: float


def profile(seed: int, job: str) -> Profile:
    """Return a job's load.

    Mean utilisation is 62 %, so that a fleet allocated to three quarters shows Philly's 47 %. SM
    and tensor activity and memory keep the ratios to utilisation of the Seren and Kalos means
    (0.62, 0.19 and 0.7), read from the unnamed columns of their published distributions.
    """
    utilisation = 0.15 + 0.85 * uniform(seed, "util", job) ** 0.8
    vary = 0.7 + 0.6 * uniform(seed, "vary", job)
    return Profile(
        utilisation,
        min(utilisation * 0.62 * vary, 1.0),
        min(utilisation * 0.19 * vary * vary, 1.0),
        0.15 + 0.8 * uniform(seed, "memory", job),
        0.2 + 0.3 * uniform(seed, "comm", job),
    )
