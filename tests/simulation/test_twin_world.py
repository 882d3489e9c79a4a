"""What a fleet does when it is scaled, priced, migrated on and reclaimed from."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TypeVar

import msgspec
import pytest

from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import Record, decode, encode
from gpuloop.schemas.component import Output, save
from gpuloop.schemas.fleet import Fleet, Refused
from gpuloop.schemas.messages import (
    Fault,
    GpuSample,
    JobEvent,
    Offer,
    ResourceSample,
    ServiceSample,
    TenantEvent,
)
from gpuloop.schemas.messages.actions import MigrateTo, PriceTo, RemediateTo, ScaleTo
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.state import RENTED, Job
from gpuloop.twin.world import World, build_world

T = TypeVar("T")
CALM = TwinConfig(seed=11, fault_rate_factor=0.0, gpu_sample_every_us=0)


def build(config: TwinConfig = CALM, workload: str = "generator:steady") -> World:
    return build_world(config, None, workload)


def settled(hours: float = 2.0, config: TwinConfig = CALM) -> World:
    world = build(config)
    world.advance(world.start_us + int(hours * HOUR_US))
    return world


def messages(outputs: Iterable[Output], kind: type[T]) -> list[T]:
    return [output.message for output in outputs if isinstance(output.message, kind)]


def running(world: World, pool: str) -> list[Job]:
    """Return a pool's running jobs with hours of work left, by name."""
    jobs = sorted(world.state.jobs.values(), key=lambda job: job.id)
    left = [job for job in jobs if job.work_us - job.done_us > 6 * HOUR_US]
    return [job for job in left if job.running and job.pool == pool]


def ready(world: World, pool: str) -> Counter[str]:
    nodes = [node for node in world.state.nodes.values() if node.pool == pool]
    return Counter(node.billing for node in nodes if node.phase in RENTED)


def scale(world: World, pool: str, on_demand: int, spot: int) -> None:
    to = ScaleTo(on_demand_nodes=on_demand, spot_nodes=spot)
    world.apply("scaling", pool, to, world.now_us)


def test_world_is_a_fleet_of_512_gpus() -> None:
    world = build()
    fleet: Fleet = world
    assert fleet.name == "local"
    said = messages(world.advance(world.start_us), ResourceSample)
    last = {sample.pool: sample for sample in said}
    assert sum(sample.capacity for sample in last.values()) == 512
    billings = {pool: tuple(t.billing for t in last[pool].tranches) for pool in last}
    assert billings == {"h100": ("on_demand",), "a100": ("on_demand", "spot"), "l4": ("spot",)}


def test_everything_said_follows_the_contracts() -> None:
    config = TwinConfig(seed=2, fault_rate_factor=2000.0, gpu_sample_every_us=MINUTE_US)
    world = build(config, "generator:bursty")
    outputs = world.advance(world.start_us + 3 * HOUR_US)
    kinds = {type(output.message) for output in outputs}
    assert kinds == {
        Fault, GpuSample, JobEvent, Offer, ResourceSample, ServiceSample, TenantEvent,
    }  # fmt: skip
    keys = {"telemetry.gpu": "node", "telemetry.jobs": "job", "telemetry.faults": "node"}
    for output in outputs:
        assert output.message is not None
        assert type(output.message) in CATALOGUE[output.topic].messages
        if output.topic in keys:
            assert output.key == getattr(output.message, keys[output.topic])
        record = encode(
            output.topic, output.key, output.message, event_id=output.event_id, source="twin"
        )
        arrived = Record(
            topic=record.topic, partition=0, offset=0, timestamp_ms=0, key=record.key,
            headers=record.headers, value=record.value,
        )  # fmt: skip
        assert decode(arrived) == output.message
    assert len({output.event_id for output in outputs}) == len(outputs)


def test_prices_are_fresh_all_the_time() -> None:
    world = build()
    offers = messages(world.advance(world.start_us + 5 * HOUR_US), Offer)
    times = sorted({offer.fetched_at_us for offer in offers})
    assert times[0] == world.start_us
    assert max(late - early for early, late in pairwise(times)) <= HOUR_US
    assert all(offer.valid_for_us > HOUR_US for offer in offers)


def test_ordered_nodes_arrive_after_a_cold_start_that_was_announced() -> None:
    world = settled()
    before = ready(world, "h100")["on_demand"]
    now = world.now_us
    done = world.apply("scaling", "h100", ScaleTo(on_demand_nodes=30, spot_nodes=0), now)
    assert (done.pool, done.generation) == ("h100", 1)
    (sample,) = messages(world.drain(), ResourceSample)
    expected = sample.tranches[0].pending_arrival_us
    assert len(expected) == 30 - before == 6
    assert all(60 * SECOND_US <= at_us - now <= 600 * SECOND_US for at_us in expected)
    arrived = []
    count = before
    for sample in messages(world.advance(now + 10 * MINUTE_US), ResourceSample):
        if sample.pool == "h100" and sample.tranches[0].nodes_ready > count:
            arrived += [sample.event_time_us] * (sample.tranches[0].nodes_ready - count)
            count = sample.tranches[0].nodes_ready
    assert tuple(arrived) == expected


def test_idle_nodes_leave_at_once_and_busy_ones_when_their_jobs_end() -> None:
    world = settled()
    scale(world, "h100", 8, 0)
    left = [node for node in world.state.nodes.values() if node.pool == "h100"]
    draining = [node for node in left if node.phase == "draining"]
    assert len(left) - len(draining) == 8
    assert draining
    assert all(node.free < len(node.slots) for node in draining), "an idle node does not linger"
    held = {job.id for job in running(world, "h100")}
    lost = [e for e in messages(world.drain(), JobEvent) if e.kind == "preempted"]
    assert lost == []
    later = messages(world.advance(world.now_us + 24 * HOUR_US), JobEvent)
    assert {e.job for e in later if e.kind == "started" and e.pool == "h100"}.isdisjoint(held)
    still = [node for node in world.state.nodes.values() if node.phase == "draining"]
    assert len(still) < len(draining)


def test_draining_nodes_are_taken_back_before_any_is_ordered() -> None:
    world = settled()
    scale(world, "h100", 8, 0)
    draining = sorted(n.id for n in world.state.nodes.values() if n.phase == "draining")
    scale(world, "h100", 8 + len(draining), 0)
    phases = {world.state.nodes[name].phase for name in draining}
    assert phases == {"ready"}
    assert not [node for node in world.state.nodes.values() if node.phase == "pending"]


@pytest.mark.parametrize(
    ("pool", "to", "reason"),
    [
        ("h100", ScaleTo(on_demand_nodes=41, spot_nodes=0), "out_of_bounds"),
        ("h100", ScaleTo(on_demand_nodes=7, spot_nodes=0), "out_of_bounds"),
        ("h100", ScaleTo(on_demand_nodes=20, spot_nodes=1), "unsupported"),
        ("v100", ScaleTo(on_demand_nodes=20, spot_nodes=0), "unknown_target"),
    ],
)
def test_impossible_scale_is_refused_and_changes_nothing(
    pool: str, to: ScaleTo, reason: str
) -> None:
    world = settled(0.5)
    before = save(world.state)
    with pytest.raises(Refused) as refused:
        world.apply("scaling", pool, to, world.now_us)
    assert refused.value.reason == reason
    assert save(world.state) == before


def test_spot_nodes_are_not_to_be_had_in_an_hour_of_shortage() -> None:
    pools = tuple(msgspec.structs.replace(p, spot_availability=0.0) for p in CALM.pools)
    world = settled(0.5, msgspec.structs.replace(CALM, pools=pools))
    with pytest.raises(Refused) as refused:
        scale(world, "l4", 0, 20)
    assert refused.value.reason == "no_capacity"
    scale(world, "l4", 0, 10)


def test_price_applies_to_new_work_and_is_reported() -> None:
    world = settled()
    old = world.state.pools["l4"].quote
    quoted = {job.id: job.price for job in world.state.jobs.values()}
    new = old * 3 // 2
    done = world.apply("pricing", "l4", PriceTo(usd_micros_per_gpu_hour=new), world.now_us)
    assert (done.state, done.generation) == (PriceTo(usd_micros_per_gpu_hour=new), 1)
    (sample,) = messages(world.drain(), ResourceSample)
    assert sample.quote_usd_micros_per_gpu_hour == new
    assert sample.generations == {"scaling": 0, "pricing": 1}
    said = world.advance(world.now_us + 2 * HOUR_US)
    quotes = {
        e.quote_usd_micros_per_gpu_hour
        for e in messages(said, TenantEvent)
        if e.pool == "l4" and e.kind != "cancelled"
    }
    assert quotes == {new}
    for job in world.state.jobs.values():
        assert job.price == quoted.get(job.id, job.price)


def test_higher_price_is_accepted_by_a_subset() -> None:
    accepted = []
    for factor in (60, 100, 180):
        world = build()
        world.advance(world.start_us)
        for name, pool in world.state.pools.items():
            to = PriceTo(usd_micros_per_gpu_hour=pool.reference * factor // 100)
            world.apply("pricing", name, to, world.now_us)
        said = messages(world.advance(world.start_us + 12 * HOUR_US), TenantEvent)
        accepted.append({event.job for event in said if event.kind == "accepted"})
    cheap, fair, dear = accepted
    assert dear < fair < cheap


def test_price_beyond_its_bounds_is_refused() -> None:
    world = settled(0.1)
    for price in (1, 10**12):
        with pytest.raises(Refused, match="out_of_bounds"):
            world.apply("pricing", "a100", PriceTo(usd_micros_per_gpu_hour=price), world.now_us)


def test_migrated_job_keeps_its_work_and_pays_for_no_pause() -> None:
    world = settled()
    job = next(job for job in running(world, "a100") if job.gpus <= 4)
    old, done_before = tuple(job.nodes), job.done_us
    to = MigrateTo(pool="a100", avoid_nodes=old)
    scale(world, "a100", 20, 12)
    world.advance(world.now_us + 15 * MINUTE_US)
    target = world.apply("migration", job.id, to, world.now_us)
    assert target.generation == 1
    (event,) = [e for e in messages(world.drain(), JobEvent) if e.kind == "migrated"]
    assert set(event.nodes).isdisjoint(old)
    assert event.gpu_us_lost == world.config.migration_pause_us * job.gpus
    assert event.gpu_us_done >= done_before * job.gpus
    moved_at, done_at_move = world.now_us, job.done_us
    world.advance(moved_at + world.config.migration_pause_us)
    assert job.done_us == done_at_move, "nothing is done during the pause"
    world.advance(moved_at + 2 * HOUR_US)
    assert job.done_us > done_at_move


def test_migration_without_room_is_refused_and_changes_nothing() -> None:
    world = settled()
    job = running(world, "a100")[0]
    everywhere = tuple(sorted(n.id for n in world.state.nodes.values() if n.pool == "a100"))
    before = save(world.state)
    to = MigrateTo(pool="a100", avoid_nodes=everywhere)
    with pytest.raises(Refused) as refused:
        world.apply("migration", job.id, to, world.now_us)
    assert refused.value.reason == "no_capacity"
    assert save(world.state) == before


def test_migration_of_what_does_not_run_is_refused() -> None:
    world = settled()
    with pytest.raises(Refused, match="unknown_target"):
        world.apply("migration", "nobody", MigrateTo(pool="a100"), world.now_us)
    world.advance(world.start_us + 4 * HOUR_US)
    scale(world, "l4", 0, 4)
    world.advance(world.start_us + 10 * HOUR_US)
    queued = world.state.pools["l4"].queue[0]
    with pytest.raises(Refused, match="superseded"):
        world.apply("migration", queued, MigrateTo(pool="l4"), world.now_us)


def test_other_actuators_are_unsupported() -> None:
    world = settled(0.1)
    assert world.read("remediation", "a100-d000") is None
    with pytest.raises(Refused, match="unsupported"):
        world.apply("remediation", "a100-d000", RemediateTo(state="cordoned"), world.now_us)


def test_reclaimed_node_is_announced_taken_and_replaced() -> None:
    world = settled()
    name = running(world, "l4")[0].nodes[0]
    boot = world.state.nodes[name].boot
    start = world.now_us + 30 * SECOND_US
    world.inject("reclaim", name, start)
    said = world.advance(start + 121 * SECOND_US)
    (notice,) = messages(said, Fault)
    assert (notice.kind, notice.node) == ("reclaim_notice", name)
    assert notice.deadline_us == start + 120 * SECOND_US
    samples = [s for s in messages(said, ResourceSample) if s.pool == "l4"]
    assert samples[-1].event_time_us == notice.deadline_us
    assert samples[-1].tranches[0].nodes_ready == 15
    assert len(samples[-1].tranches[0].pending_arrival_us) == 1
    preempted = [e for e in messages(said, JobEvent) if e.kind == "preempted"]
    assert preempted, "the node was busy"
    assert {e.reason for e in preempted} == {"spot node reclaimed"}
    world.advance(start + 2 * HOUR_US)
    assert ready(world, "l4")["spot"] == 16
    assert world.state.nodes[name].boot == boot + 1


def test_notice_leaves_time_to_save_a_job_by_migration() -> None:
    world = settled()
    scale(world, "a100", 20, 12)
    world.advance(world.now_us + 15 * MINUTE_US)
    on_spot = [j for j in running(world, "a100") if j.gpus == 1]
    job = next(j for j in on_spot if world.state.nodes[j.nodes[0]].billing == "spot")
    node = job.nodes[0]
    world.inject("reclaim", node, world.now_us)
    world.advance(world.now_us + MINUTE_US)
    to = MigrateTo(pool="a100", avoid_nodes=(node,))
    world.apply("migration", job.id, to, world.now_us)
    said = messages(world.advance(world.now_us + 5 * MINUTE_US), JobEvent)
    assert "preempted" not in {event.kind for event in said if event.job == job.id}


def test_preempted_job_goes_on_from_its_checkpoint() -> None:
    world = settled()
    job = next(j for j in running(world, "a100") if j.gpus == 1)
    world.inject("lost", job.nodes[0], world.now_us + 10 * MINUTE_US)
    said = messages(world.advance(world.now_us + 10 * MINUTE_US), JobEvent)
    mine = [event for event in said if event.job == job.id]
    preempted = next(event for event in mine if event.kind == "preempted")
    assert 0 < preempted.gpu_us_lost <= 30 * MINUTE_US
    assert preempted.gpu_us_done == job.saved_us * job.gpus
    later = messages(world.advance(world.now_us + 6 * HOUR_US), JobEvent)
    restarted = next(e for e in said + later if e.job == job.id and e.kind == "started")
    assert restarted.attempt == 2
    assert restarted.gpu_us_done == preempted.gpu_us_done


def test_job_that_keeps_losing_its_nodes_is_given_up() -> None:
    world = settled()
    job = next(j for j in running(world, "h100") if j.gpus >= 4)
    said: list[JobEvent] = []
    for _ in range(100):
        current = world.state.jobs.get(job.id)
        if current is None:
            break
        if current.running:
            world.inject("lost", current.nodes[0], world.now_us)
        said += messages(world.advance(world.now_us + 20 * MINUTE_US), JobEvent)
    mine = [event.kind for event in said if event.job == job.id]
    assert mine.count("preempted") == 7
    assert mine[-1] == "failed"


def luck(world: World, outputs: list[Output]) -> dict[str, object]:
    """Return what no policy may change: who asks when, and which nodes meet which fate."""
    tenants = messages(outputs, TenantEvent)
    asked = [(e.event_time_us, e.job, e.gpus) for e in tenants if e.kind != "cancelled"]
    faults = messages(outputs, Fault)
    stable = {f"h100-d{index:03d}" for index in range(8)}
    struck = [(e.event_time_us, e.node, e.xid) for e in faults if e.node in stable and e.xid == 79]
    requests = [s.requests_per_second for s in messages(outputs, ServiceSample)]
    return {"asked": asked, "struck": struck, "requests": requests}


def test_two_policies_meet_the_same_luck() -> None:
    config = TwinConfig(seed=5, fault_rate_factor=1500.0, gpu_sample_every_us=0)
    worlds = [build(config, "generator:bursty") for _ in range(2)]
    said: list[list[Output]] = [[], []]
    for hour in range(12):
        for world, outputs in zip(worlds, said, strict=True):
            outputs += world.advance(world.start_us + hour * HOUR_US)
        scale(worlds[1], "h100", 12 + hour, 0)
        price = worlds[1].state.pools["l4"].reference * (60 + 10 * hour) // 100
        worlds[1].apply("pricing", "l4", PriceTo(usd_micros_per_gpu_hour=price), worlds[1].now_us)
    one, two = (luck(world, outputs) for world, outputs in zip(worlds, said, strict=True))
    assert one == two
    assert one["struck"]
    assert worlds[0].books() != worlds[1].books()


def test_state_of_a_busy_fleet_stays_small() -> None:
    world = build(CALM, "generator:bursty")
    sizes = []
    for hour in range(48):
        world.advance(world.start_us + hour * HOUR_US)
        sizes.append(len(save(world.state)))
    assert max(sizes) < 400_000


def test_run_is_a_function_of_its_seed() -> None:
    totals = []
    for seed in (1, 1, 2):
        world = build(TwinConfig(seed=seed, gpu_sample_every_us=0), "generator:bursty")
        world.advance(world.start_us + 6 * HOUR_US)
        totals.append(world.books())
    assert totals[0] == totals[1] != totals[2]
