"""What worlds are built of; what this level does not know is refused, never left out."""

import numpy as np
import pytest
from msgspec.structs import replace

from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import (
    CarbonConfig,
    FacilityConfig,
    Injection,
    SharesConfig,
    TenantConfig,
    TwinConfig,
)
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.workload import JobSpec

USUAL = TwinConfig(gpu_sample_every_us=0, progress_every_us=0)
LOSS = Injection(fault="lost", subject="h100-o000", after_us=0)
DISKS = FacilityConfig(name="disks", kind="storage", capacity=1.0, per_gpu=1.0)
TWICE = (USUAL.services[0], replace(USUAL.services[0], name="code"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(USUAL, placement="affinity"), "placed by affinity; this level knows binpack only"),
        (replace(USUAL, shares=SharesConfig()), "GPUs are shared; this level knows whole GPUs"),
        (replace(USUAL, service_parts={"chat": 250}), "GPUs are shared; this level knows whole"),
        (replace(USUAL, tenants=(TenantConfig(name="t"),)), "limits or priorities"),
        (replace(USUAL, facilities=(DISKS,)), "jobs depend on disks; this level knows no"),
        (
            replace(USUAL, carbon=CarbonConfig(usd_per_tonne=90.0)),
            "carbon costs money hour by hour",
        ),
        (replace(USUAL, injections=(LOSS,)), "none that is called for: lost of h100-o000"),
        (replace(USUAL, services=TWICE), "l4 serves more than one service; this level knows one"),
    ],
)
def test_what_this_level_does_not_know_is_refused_by_name(config: TwinConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_pool_worlds([USUAL, config], hours=1, traces=None, workload="generator")


def test_requests_from_outside_come_to_the_pool_that_serves_for_as_long_as_they_are_known() -> None:
    def rates(requests: np.ndarray | None) -> np.ndarray:
        worlds = build_pool_worlds(
            [USUAL], hours=1, traces=None, workload="generator", copies=2, requests=requests
        )
        return worlds.rules.service_rate

    usual, given = rates(None), rates(np.array([np.nan, 7.0, 0.0]))
    serving = [2, 5]
    assert given[serving, 1].tolist() == [7.0, 7.0]
    assert given[serving, 2].tolist() == [0.0, 0.0]
    others = np.delete(given, [1, 2], axis=1)
    np.testing.assert_array_equal(others, np.delete(usual, [1, 2], axis=1))
    assert not given[[0, 1, 3, 4]].any(), "pools that serve nothing get no requests"


def test_requests_for_longer_than_worlds_live_are_refused() -> None:
    with pytest.raises(ValueError, match="62 minutes of requests for 61"):
        build_pool_worlds([USUAL], hours=1, traces=None, workload="generator", requests=np.ones(62))


class Part:
    """A workload of one job that asks for a part of a GPU."""

    name = "part"
    start_us = USUAL.start_us

    def arrivals(self, hour: int) -> tuple[JobSpec, ...]:
        spec = JobSpec(self.start_us, "j", 1, HOUR_US, "t", 500)
        return (spec,) if hour == self.start_us // HOUR_US else ()

    def running_at(self, at_us: int) -> tuple[JobSpec, ...]:
        return ()


def test_trace_whose_jobs_share_gpus_is_refused() -> None:
    config = replace(USUAL, arrival_share=1.0)
    with pytest.raises(ValueError, match="j asks for a part of a GPU"):
        build_pool_worlds([config], hours=1, traces=None, workload=Part())
