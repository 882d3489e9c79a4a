"""Demand answers price as published, and luck belongs to the job."""

from itertools import pairwise
from math import log

import pytest

from gpuloop.twin.config import POOLS, SEGMENTS, JobClass
from gpuloop.twin.demand import choose_pool, job_class, profile, reservation_price
from gpuloop.twin.workload import JobSpec

JOBS = [f"job-{index}" for index in range(20_000)]
REFERENCE = 1_000_000


def accepting(segment: JobClass, quote: int) -> set[str]:
    config = SEGMENTS[segment]
    return {job for job in JOBS if reservation_price(3, job, config, REFERENCE) >= quote}


@pytest.mark.parametrize("segment", sorted(SEGMENTS))
def test_who_accepts_a_price_accepts_every_lower_one(segment: JobClass) -> None:
    quotes = [int(REFERENCE * factor) for factor in (0.5, 0.8, 1.0, 1.3, 2.0, 4.0)]
    groups = [accepting(segment, quote) for quote in quotes]
    for cheap, dear in pairwise(groups):
        assert dear < cheap


@pytest.mark.parametrize("segment", sorted(SEGMENTS))
def test_elasticity_at_the_reference_price_is_in_the_published_range(segment: JobClass) -> None:
    low, high = len(accepting(segment, 950_000)), len(accepting(segment, 1_050_000))
    elasticity = log(high / low) / log(1.05 / 0.95)
    assert -2.0 < elasticity < -0.3


def test_interactive_tenants_mind_the_price_least() -> None:
    shares = {s: len(accepting(s, 2 * REFERENCE)) for s in SEGMENTS}
    assert shares["batch"] < shares["training"] < shares["interactive"]


def spec(gpus: int, hours: float, name: str = "j") -> JobSpec:
    return JobSpec(0, name, gpus, int(hours * 3_600_000_000), "t")


def test_classes_follow_width_and_length() -> None:
    assert job_class(spec(1, 0.1)) == "interactive"
    assert job_class(spec(1, 1.0)) == "batch"
    assert job_class(spec(1, 5.0)) == "training"
    assert job_class(spec(4, 0.1)) == "training"


def test_gangs_never_go_to_the_small_pool_and_most_small_jobs_do() -> None:
    gangs = {choose_pool(0, spec(8, 1.0, job), POOLS).name for job in JOBS[:500]}
    small = [choose_pool(0, spec(1, 1.0, job), POOLS).name for job in JOBS[:500]]
    assert gangs == {"h100", "a100"}
    assert 0.8 < small.count("l4") / len(small) < 1.0


def test_load_of_jobs_has_the_calibrated_mean() -> None:
    loads = [profile(0, job) for job in JOBS[:5000]]
    assert sum(load.utilisation for load in loads) / 5000 == pytest.approx(0.62, abs=0.02)
    assert all(0 <= value <= 1 for load in loads for value in load)
