"""A world that is saved and loaded goes on as if nothing had happened, whatever befell it."""

import contextlib

import msgspec
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gpuloop.schemas.component import Output, load, save
from gpuloop.schemas.fleet import Refused
from gpuloop.schemas.messages.actions import MigrateTo, PriceTo, ScaleTo
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.config import FacilityConfig, SharesConfig, TenantConfig, TwinConfig
from gpuloop.twin.sharing import SHARED
from gpuloop.twin.state import RENTED, WorldState
from gpuloop.twin.world import World, build_world

HORIZON_MINUTES = 300
ACTIONS = st.lists(
    st.tuples(
        st.integers(1, HORIZON_MINUTES - 20),
        st.sampled_from(["scale", "price", "migrate", "thermal", "link", "ecc", "lost", "reclaim"]),
        st.integers(0, 1_000_000),
    ),
    max_size=12,
)
NO_SHRINKING = (Phase.explicit, Phase.generate)
"""A smaller example says little more here, and finding it takes minutes."""
POOLS = ("h100", "a100", "l4")


USUAL = TwinConfig(gpu_sample_every_us=5 * MINUTE_US, fault_rate_factor=300.0)
RICH = replace(
    USUAL,
    shares=SharesConfig(of_single_gpu_jobs=0.8),
    service_parts={"chat": 300},
    tenants=(
        TenantConfig(name="6214e9", gpus={"h100": 24, "a100": 12, "l4": 6}, usd_per_day=2_000.0),
        TenantConfig(name="11cb48", gpus={"l4": 3}, priority=1),
    ),
    facilities=(
        FacilityConfig(name="disks", kind="storage", capacity=2e9, per_gpu=1e7),
        FacilityConfig(name="spine", kind="network", pools=("a100",), capacity=1e9, per_gpu=1e9),
    ),
)
"""Everything that a world may have beyond the usual."""


def build(seed: int, state: WorldState | None = None, *, of: TwinConfig = USUAL) -> World:
    return build_world(replace(of, seed=seed), None, "generator:bursty", state)


def act(world: World, kind: str, choice: int) -> None:
    """Do something to a world; what it does depends on `choice` and the world's state only."""
    name = POOLS[choice % 3]
    nodes = sorted(world.state.nodes)
    jobs = sorted(world.state.jobs)
    now = world.now_us
    with contextlib.suppress(Refused):
        if kind == "scale":
            spot = 0 if name == "h100" else choice % 17
            to = ScaleTo(on_demand_nodes=0 if name == "l4" else 4 + choice % 23, spot_nodes=spot)
            world.apply("scaling", name, to, now)
        elif kind == "price":
            quote = world.state.pools[name].reference * (50 + choice % 150) // 100
            world.apply("pricing", name, PriceTo(usd_micros_per_gpu_hour=quote), now)
        elif kind == "migrate" and jobs:
            job = world.state.jobs[jobs[choice % len(jobs)]]
            avoid = tuple(job.nodes) if choice % 2 else ()
            to_pool = name if choice % 5 == 0 else job.pool
            world.apply("migration", job.id, MigrateTo(pool=to_pool, avoid_nodes=avoid), now)
        elif nodes and kind in ("thermal", "link", "ecc", "lost", "reclaim"):
            world.inject(kind, nodes[choice % len(nodes)], now + choice)  # type: ignore[arg-type]


def check(world: World) -> None:
    """Hold a world to what must always be true."""
    state = world.state
    slots: dict[str, list[str]] = {}
    for node in state.nodes.values():
        assert node.free == node.slots.count("")
        assert 0 < len(node.slots) == len(node.ecc_corrected)
        for device, slot in enumerate(node.slots):
            parts = node.shares.get(device, {})
            assert (slot == SHARED) == bool(parts)
            assert sum(parts.values()) <= 1000, "no device holds more than all of it"
            for name, milli in parts.items():
                part = 300 if name in state.services else state.jobs[name].gpu_milli
                assert milli == part * (milli // part)
                slots.setdefault(name, []).extend([node.id] * (milli // part))
            if slot and slot != SHARED:
                assert node.phase in RENTED, "only a working node runs something"
                slots.setdefault(slot, []).append(node.id)
    queued = [name for pool in state.pools.values() for name in (*pool.queue, *pool.held_back)]
    for tenant in world.config.tenants:
        for pool, quota in tenant.gpus.items():
            mine = [j for j in state.jobs.values() if (j.tenant, j.pool) == (tenant.name, pool)]
            assert sum(j.gpus * j.gpu_milli for j in mine if j.running) <= quota * 1000
    assert len(queued) == len(set(queued)), "a job waits in one queue, once"
    for name, job in state.jobs.items():
        assert job.running != (name in queued), "a job either runs or waits"
        held = slots.pop(name, [])
        assert len(held) == (job.gpus if job.running else 0), "a gang holds all its GPUs or none"
        assert sorted(set(held)) == (job.nodes if job.running else [])
        assert 0 <= job.saved_us <= job.done_us <= job.work_us
    for name, service in state.services.items():
        assert len(slots.pop(name, [])) == service.gpus
    assert not slots, "no GPU is held by what no longer exists"
    for node in state.nodes.values():
        if node.phase in RENTED:
            assert all(15 < celsius < 150 for celsius in node.celsius)


def encoded(outputs: list[Output]) -> bytes:
    rows = [(o.topic, o.key, o.event_id, o.time_us, o.message) for o in outputs]
    return msgspec.json.encode(rows)


@settings(max_examples=14, derandomize=True, phases=NO_SHRINKING)
@given(
    seed=st.integers(0, 50),
    cut_minutes=st.integers(0, HORIZON_MINUTES - 60),
    actions=ACTIONS,
    of=st.sampled_from([USUAL, RICH]),
)
def test_loaded_world_continues_to_identical_outputs(
    seed: int, cut_minutes: int, actions: list[tuple[int, str, int]], of: TwinConfig
) -> None:
    world, twin = build(seed, of=of), None
    begin = world.start_us
    script = sorted([*actions, (cut_minutes, "cut", 0)], key=lambda item: item[0])
    for minute, kind, choice in [*script, (HORIZON_MINUTES, "end", 0)]:
        at_us = begin + minute * MINUTE_US
        said = world.advance(at_us)
        if twin is not None:
            assert encoded(twin.advance(at_us)) == encoded(said)
        check(world)
        if kind == "cut":
            twin = build(seed, load(WorldState, save(world.state)), of=of)
        for one in (world, twin):
            if one is not None:
                act(one, kind, choice)
        check(world)
    assert twin is not None
    assert encoded(twin.drain()) == encoded(world.drain())
    assert save(twin.state) == save(world.state)
    assert twin.books() == world.books()


def test_restored_world_forgets_what_it_was() -> None:
    world = build(4)
    world.advance(world.start_us + HOUR_US)
    saved = save(world.state)
    after = encoded(world.advance(world.start_us + 2 * HOUR_US))
    world.restore(load(WorldState, saved))
    assert world.now_us == world.start_us + HOUR_US
    assert encoded(world.advance(world.start_us + 2 * HOUR_US)) == after


@settings(max_examples=6, derandomize=True, phases=NO_SHRINKING)
@given(steps=st.lists(st.integers(1, 3_600_000_000), min_size=1, max_size=20))
def test_outputs_do_not_depend_on_how_time_is_cut(steps: list[int]) -> None:
    whole, pieces = build(9), build(9)
    end = pieces.start_us + sum(steps)
    said: list[Output] = []
    at_us = pieces.start_us
    for step in steps:
        at_us += step
        said += pieces.advance(at_us)
    assert encoded(whole.advance(end)) == encoded(said)
    assert [o.time_us for o in said] == sorted(o.time_us for o in said)
