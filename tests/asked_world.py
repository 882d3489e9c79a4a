"""Worlds of jobs of one's own, whose tenants accept any price, on one pool where nothing breaks."""

from typing import Any

from msgspec.structs import replace

from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import SegmentConfig, TwinConfig
from gpuloop.twin.workload import JobSpec
from gpuloop.twin.world import World, build_world

START = TwinConfig().start_us
ANY_PRICE = SegmentConfig(median=1_000.0, sigma=0.1, patience_us=10_000 * HOUR_US)
"""Tenants that pay whatever is asked and wait for ever."""

CALM = TwinConfig(
    fault_rate_factor=0.0,
    gpu_sample_every_us=10 * MINUTE_US,
    services=(),
    pools=tuple(
        replace(pool, spot_reclaims_per_node_hour=0.0)
        for pool in TwinConfig().pools
        if pool.name == "l4"
    ),
    segments=dict.fromkeys(TwinConfig().segments, ANY_PRICE),
    arrival_share=1.0,
    job_failure_share=0.0,
)


class Asked:
    """Jobs of one's own, at their times."""

    name = "asked"
    start_us = START

    def __init__(self, *jobs: JobSpec) -> None:
        self._jobs = sorted(jobs)

    def arrivals(self, hour: int) -> tuple[JobSpec, ...]:
        return tuple(job for job in self._jobs if job.submitted_us // HOUR_US == hour)

    def running_at(self, at_us: int) -> tuple[JobSpec, ...]:
        return ()


def job(
    name: str,
    milli: int = 1000,
    seconds: int = 3_000,
    *,
    gpus: int = 1,
    tenant: str = "ann",
    after_s: int = 0,
) -> JobSpec:
    """Return a job that asks for thousandths of each of its GPUs some seconds after the start."""
    return JobSpec(START + after_s * SECOND_US, name, gpus, seconds * SECOND_US, tenant, milli)


def world_of(*jobs: JobSpec, **changes: Any) -> World:
    """Return a world of some jobs, 16 nodes of pool l4 and whatever else is asked."""
    return build_world(replace(CALM, **changes), None, Asked(*jobs))
