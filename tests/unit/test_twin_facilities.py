"""Storage, network and database: who gets how much of them, and what that does to jobs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from asked_world import START, job, world_of
from gpuloop.loop.evaluate.ledger import Ledger
from gpuloop.schemas.component import Received
from gpuloop.schemas.messages import JobEvent, ResourceSample
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import FacilityConfig, TwinConfig
from gpuloop.twin.facilities import max_min
from gpuloop.twin.workload import JobSpec
from gpuloop.twin.world import World, build_world

DISKS = FacilityConfig(name="disks", kind="storage", capacity=1e12, per_gpu=1e8)


def wish(which: FacilityConfig, *jobs: JobSpec, **changes: Any) -> float:
    """Return what some jobs would take of a facility that has enough of it."""
    world = world_of(*jobs, facilities=(replace(which, capacity=1e15),), **changes)
    world.advance(START + MINUTE_US)
    return sum(asked for _, asked in world._facilities._asked(which))


def ends(world: World, hours: float = 30.0) -> dict[str, float]:
    """Return how many seconds each job ran, from its first microsecond of work to its end."""
    began: dict[str, int] = {}
    found = {}
    for minute in range(round(hours * 60)):
        for output in world.advance(START + minute * MINUTE_US):
            if isinstance(output.message, JobEvent) and output.message.kind == "started":
                began[output.message.job] = world.state.jobs[output.message.job].mark_us
            elif isinstance(output.message, JobEvent) and output.message.kind == "finished":
                at_us = output.message.event_time_us
                found[output.message.job] = (at_us - began[output.message.job]) / SECOND_US
    return found


@pytest.mark.parametrize(
    ("wishes", "capacity", "given"),
    [
        ([2.0, 8.0, 4.0], 10.0, [2.0, 4.0, 4.0]),
        ([2.0, 2.6, 4.0, 5.0], 10.0, [2.0, 2.6, 2.7, 2.7]),
        ([5.0, 5.0, 5.0], 9.0, [3.0, 3.0, 3.0]),
        ([1.0, 2.0], 5.0, [1.0, 2.0]),
        ([1.0, 9.0], 4.0, [1.0, 3.0]),
        ([], 4.0, []),
    ],
)
def test_division_is_that_of_a_hand_computed_case(
    wishes: list[float], capacity: float, given: list[float]
) -> None:
    assert max_min(wishes, capacity) == pytest.approx(given)


@given(
    st.lists(st.floats(0.01, 1e6), max_size=40),
    st.floats(0.01, 1e7),
)
def test_division_gives_all_there_is_and_nobody_could_have_more_but_from_one_with_less(
    wishes: list[float], capacity: float
) -> None:
    found = max_min(wishes, capacity)
    assert sum(found) == pytest.approx(min(capacity, sum(wishes)))
    assert all(got <= asked for got, asked in zip(found, wishes, strict=True))
    level = max(found, default=0.0)
    short = [got for got, asked in zip(found, wishes, strict=True) if got < asked]
    assert short == pytest.approx([level] * len(short))


def test_a_job_slowed_by_half_takes_twice_as_long() -> None:
    alone = job("a", seconds=3_600)
    half = replace(DISKS, capacity=wish(DISKS, alone) / 2)
    assert ends(world_of(alone), 3)["a"] == pytest.approx(3_600, abs=0.001)
    assert ends(world_of(alone, facilities=(half,)), 4)["a"] == pytest.approx(7_200, abs=0.001)


def test_work_is_done_at_the_pace_of_each_stretch() -> None:
    """Two alike share; when the short one has gone the long one has all it wishes."""
    one, two = job("a", seconds=1_200), job("b", seconds=3_600)
    low = min(wish(DISKS, one), wish(DISKS, two))
    tight = replace(DISKS, capacity=low)
    silent = {"progress_every_us": 0, "checkpoint_every_us": 0}
    found = ends(world_of(one, two, facilities=(tight,), **silent), 10)
    a, b = low / 2 / wish(DISKS, one), low / 2 / wish(DISKS, two)
    assert found["a"] == pytest.approx(1_200 / a, rel=0.03)
    alone = min(1.0, low / wish(DISKS, two))
    rest = 3_600 - found["a"] * b
    assert found["b"] == pytest.approx(found["a"] + rest / alone, rel=0.03)


@pytest.mark.parametrize("tight_first", [True, False])
def test_the_scarcest_facility_sets_the_pace(tight_first: bool) -> None:
    alone = job("a", seconds=3_600)
    ops = FacilityConfig(name="meta", kind="database", capacity=1.0, per_gpu=10.0)
    tight = replace(ops, capacity=wish(ops, alone) / 3)
    loose = replace(DISKS, capacity=wish(DISKS, alone) * 0.9)
    both = (tight, loose) if tight_first else (loose, tight)
    found = ends(world_of(alone, facilities=both), 5)
    assert found["a"] == pytest.approx(3 * 3_600, abs=0.001)


def test_only_gangs_over_racks_need_the_network_between_them() -> None:
    """Racks have two nodes of eight: sixteen GPUs fit one, twenty-four do not."""
    pools = tuple(replace(pool, nodes_per_rack=2) for pool in world_of().config.pools)
    spine = FacilityConfig(name="spine", kind="network", capacity=1e15, per_gpu=1e9)
    assert wish(spine, job("a", gpus=16), pools=pools) == 0.0
    assert wish(spine, job("a", gpus=24), pools=pools) == pytest.approx(24e9, rel=0.5)


def test_jobs_of_other_pools_do_not_need_a_facility() -> None:
    elsewhere = replace(DISKS, pools=("a100",))
    pools = (*world_of().config.pools, replace(TwinConfig().pools[1], weights={}))
    assert wish(elsewhere, job("a"), pools=pools) == 0.0


def test_facility_of_an_unknown_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="disks serves v100, which are no pools"):
        world_of(facilities=(replace(DISKS, pools=("v100",)),))


def samples(world: World) -> list[ResourceSample]:
    said = world.advance(START + 2 * MINUTE_US)
    found = [output.message for output in said if isinstance(output.message, ResourceSample)]
    return [sample for sample in found if sample.kind != "capacity"]


def test_telemetry_tells_load_capacity_latency_and_cost() -> None:
    alone = job("a")
    asked = wish(DISKS, alone)
    double = replace(DISKS, capacity=2 * asked, latency_us=500, usd_micros_per_hour=7_000_000)
    tight = replace(DISKS, name="tight", capacity=asked / 2, pools=("l4",))
    *_, easy, full = samples(world_of(alone, facilities=(double, tight)))
    # The second slows the job, but what it wishes of the first is what its nodes would allow.
    assert (easy.resource, easy.kind, easy.pool) == ("disks", "storage", "*")
    assert (easy.load, easy.capacity, easy.usd_micros_per_hour) == (0.5, 2 * asked, 7_000_000)
    assert easy.latency_us == 1_000
    assert (full.load, full.pool) == (1.0, "l4")
    assert full.latency_us > 20 * 1_000


def test_ledger_passes_facilities_over() -> None:
    (*_, sample) = samples(world_of(job("a"), facilities=(DISKS,)))
    ledger = Ledger()
    ledger.observe(
        Received(topic="telemetry.resources", partition=0, offset=0, key="", id="1", message=sample)
    )
    assert ledger.counts.implausible == 0
    assert not ledger.waiting


def test_state_stays_small_however_often_jobs_change_their_pace() -> None:
    config = TwinConfig(
        seed=11, gpu_sample_every_us=0, facilities=(replace(DISKS, capacity=2e10),)
    )  # fmt: skip
    world = build_world(config, None, "generator:bursty")
    world.advance(world.start_us + 24 * HOUR_US)
    assert any(one.granted < 1.0 for one in world.state.jobs.values())
    limit = 1_000 + 10 * (len(world.state.jobs) + len(world.state.nodes))
    assert len(world.state.timers) < limit
