"""Where the live fleet's jobs go under each strategy; binpack is the rule it always had."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuloop.loop.services.twin_fleet import origin_of
from gpuloop.schemas.identity import sha256_of
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import PlacementStrategy, TwinConfig
from gpuloop.twin.placement import Manner, Room, place
from gpuloop.twin.world import build_world

ROOMS = [
    Room("a", "r0", "spot", 8, 8),
    Room("b", "r0", "spot", 3, 8, "ann"),
    Room("c", "r0", "spot", 5, 8, "bob"),
]


def chosen(gpus: int, strategy: PlacementStrategy, **rest) -> str:
    placed = place(ROOMS, gpus, Manner("spot", strategy, **rest))
    assert placed is not None
    return placed[0][0]


def test_strategies_differ_in_the_node_they_take() -> None:
    assert chosen(2, "binpack") == "b"
    assert chosen(2, "spread") == "a"
    assert chosen(2, "affinity", tenant="bob") == "c"


def test_affinity_takes_an_unused_node_before_another_tenants() -> None:
    assert chosen(2, "affinity", tenant="eve") == "a"


def test_fragmentation_keeps_room_for_the_jobs_that_are_expected() -> None:
    """3 free of a node are no use to jobs of 4 or 8 GPUs; 5 free still hold one of 4."""
    assert chosen(1, "fragmentation", expected=(4, 8)) == "b"
    rooms = [Room("a", "r0", "spot", 5, 8), Room("b", "r0", "spot", 6, 8)]
    four = Manner("spot", "fragmentation", expected=(4, 4, 4))
    assert place(rooms, 2, four) == (("b", 2),)
    assert place(rooms, 2, Manner("spot")) == (("a", 2),)


@pytest.mark.parametrize("strategy", ["binpack", "spread", "affinity", "fragmentation"])
def test_preferred_billing_comes_before_any_score(strategy: PlacementStrategy) -> None:
    rooms = [*ROOMS, Room("d", "r0", "on_demand", 4, 8, "eve")]
    assert place(rooms, 2, Manner("on_demand", strategy, "ann")) == (("d", 2),)


@pytest.mark.parametrize("strategy", ["binpack", "spread", "affinity", "fragmentation"])
def test_job_that_no_node_holds_waits(strategy: PlacementStrategy) -> None:
    rooms = [Room("a", "r0", "spot", 3, 8), Room("b", "r0", "spot", 3, 8)]
    assert place(rooms, 4, Manner("spot", strategy)) is None


def test_gang_that_would_need_more_nodes_than_have_anything_free_waits() -> None:
    """Its whole nodes use up every one, and nothing is left where the rest could go."""
    rooms = [Room("a", "r0", "spot", 8, 8)]
    assert place(rooms, 12, Manner("spot")) is None


rooms_of_a_pool = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from(["spot", "on_demand"])), min_size=1, max_size=12
)


@given(rooms_of_a_pool, st.integers(1, 7))
def test_binpack_takes_the_fullest_node_that_holds_a_job(
    found: list[tuple[int, str]], gpus: int
) -> None:
    rooms = [Room(f"n{i:02}", "r", billing, free, 8) for i, (free, billing) in enumerate(found)]  # type: ignore[arg-type]
    fitting = [room for room in rooms if room.free >= gpus]
    fitting.sort(key=lambda room: (room.billing != "spot", room.free, room.node))
    expected = ((fitting[0].node, gpus),) if fitting else None
    assert place(rooms, gpus, Manner("spot")) == expected


@pytest.mark.parametrize("strategy", ["spread", "affinity", "fragmentation"])
def test_world_runs_by_any_strategy_and_meets_the_same_jobs(strategy: PlacementStrategy) -> None:
    worlds = []
    for placement in ("binpack", strategy):
        config = TwinConfig(placement=placement, gpu_sample_every_us=0)  # type: ignore[arg-type]
        world = build_world(config, None, "generator")
        world.advance(world.start_us + 6 * HOUR_US)
        worlds.append(world.state)
    packed, other = worlds
    assert packed.counters.arrived == other.counters.arrived > 0
    assert other.counters.started > 0
    assert [node.slots for node in packed.nodes.values()] != [
        node.slots for node in other.nodes.values()
    ]
    for node in other.nodes.values():
        assert node.free == node.slots.count("")


def test_world_from_before_placement_could_be_chosen_goes_on() -> None:
    told = msgspec.json.encode(TwinConfig(), order="deterministic")
    earlier = told
    for later in (
        b'"placement":"binpack",',
        b',"shares":null',
        b',"service_parts":{}',
        b',"tenants":[]',
        b',"facilities":[]',
        b',"carbon":{"grams_per_kwh":null,"swing":0.15,"usd_per_tonne":0.0}',
    ):
        earlier = earlier.replace(later, b"")
    assert earlier != told
    assert origin_of(TwinConfig(), "philly", 5) == sha256_of(earlier, "philly", "5")
    assert origin_of(TwinConfig(placement="spread"), "philly", 5) != origin_of(
        TwinConfig(), "philly", 5
    )
