"""The evaluator, from telemetry alone, reaches the sums in the books that the twin keeps itself."""

from functools import cache
from itertools import pairwise

import pytest
from msgspec.structs import replace

from gpuloop.loop.learn.simulate import FleetSimulation
from gpuloop.loop.services.twin_fleet import TwinFleet
from gpuloop.schemas.component import Received
from gpuloop.schemas.messages import ResourceSample, Reward
from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.config import (
    FacilityConfig,
    FaultRates,
    Injection,
    ServiceConfig,
    SharesConfig,
    TenantConfig,
    TwinConfig,
)

Books = dict[str, dict[str, int]]
Run = tuple[list[Reward], dict[int, Books], dict[int, dict[str, int]]]

ROUGH = TwinConfig(
    seed=5,
    fault_rates=FaultRates(lost=2e-3, ecc=1e-3, thermal=1e-3, link=1e-3),
    services=(ServiceConfig(name="chat", pool="l4", requests_per_second=60.0, burst_share=0.2),),
    injections=(Injection(fault="lost", subject="a100-0003", after_us=47 * MINUTE_US),),
)
RICH = replace(
    ROUGH,
    shares=SharesConfig(of_single_gpu_jobs=0.8),
    service_parts={"chat": 300},
    tenants=(TenantConfig(name="6214e9", gpus={"a100": 16, "l4": 16}, usd_per_day=5_000.0),),
    facilities=(FacilityConfig(name="disks", kind="storage", capacity=1e9, per_gpu=1e7),),
)
"""The same with what a world may have beyond the usual."""
WORLDS = {"rough": ROUGH, "rich": RICH}
HOURS = 6


@pytest.fixture(params=sorted(WORLDS))
def run(request: pytest.FixtureRequest) -> Run:
    return played(request.param)


@cache
def played(name: str) -> Run:
    """Return the rewards of a busy, breaking fleet, and the twin's books at every tick."""
    fleet = FleetSimulation(WORLDS[name], traces=None, workload="generator:bursty")
    (twin,) = (one for one in fleet.simulation.components if isinstance(one, TwinFleet))
    books: dict[int, Books] = {}
    carbon: dict[int, dict[str, int]] = {}

    def look(event: Received) -> None:
        assert isinstance(event.message, ResourceSample)
        books.setdefault(event.message.event_time_us, twin.world.books())
        carbon.setdefault(event.message.event_time_us, twin.world.carbon())

    fleet.simulation.watch("telemetry.resources", look)
    rewards = fleet.simulation.collect("rewards")
    fleet.run(fleet.start_us + HOURS * HOUR_US)
    return [r.message for r in rewards if isinstance(r.message, Reward)], books, carbon


def pools(run: Run) -> list[str]:
    return sorted({reward.pool for reward in run[0]})


def test_every_component_moves_in_this_world(run: Run) -> None:
    rewards, *_ = run
    sums = {name: sum(reward.components[name] for reward in rewards) for name in COMPONENTS}
    assert sums["revenue"] > 0
    assert all(sums[name] < 0 for name in COMPONENTS if name != "revenue"), sums


@pytest.mark.parametrize("name", COMPONENTS)
def test_rewards_of_each_pool_add_up_to_the_twins_own_books(name: str, run: Run) -> None:
    rewards, books, _ = run
    for pool in pools(run):
        mine = [reward for reward in rewards if reward.pool == pool]
        first, last = mine[0].start_us, mine[-1].end_us
        earned = sum(reward.components[name] for reward in mine)
        assert earned == books[last][pool][name] - books[first][pool][name], pool


def test_carbon_of_the_rewards_is_that_of_the_twins_own_books(run: Run) -> None:
    rewards, _, carbon = run
    for pool in pools(run):
        mine = [reward for reward in rewards if reward.pool == pool]
        emitted = sum(reward.carbon_milligrams for reward in mine)
        assert emitted == carbon[mine[-1].end_us][pool] - carbon[mine[0].start_us][pool] > 0


def test_every_single_window_agrees_with_the_books(run: Run) -> None:
    rewards, books, _ = run
    assert len(rewards) > HOURS * 55 * len(pools(run))
    for reward in rewards:
        before, after = books[reward.start_us][reward.pool], books[reward.end_us][reward.pool]
        for name in COMPONENTS:
            # Work lost at the very microsecond of a tick is the next window's, and the old books'.
            if name != "disruption_penalty":
                assert reward.components[name] == after[name] - before[name], (reward, name)


def test_windows_of_a_pool_lie_end_to_end_and_are_whole(run: Run) -> None:
    rewards, *_ = run
    for pool in pools(run):
        mine = [reward for reward in rewards if reward.pool == pool]
        assert all(a.end_us == b.start_us for a, b in pairwise(mine))
        assert not any(reward.censored for reward in mine)
        assert all(r.total_usd_micros == sum(r.components.values()) for r in mine)
