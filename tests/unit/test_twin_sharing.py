"""Jobs that ask for thousandths of a GPU: what they ask, where they go, what they show and pay."""

from pathlib import Path

import pytest

from asked_world import START, job, world_of
from gpuloop.schemas.messages import GpuSample, JobEvent, ResourceSample, ServiceSample
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import ServiceConfig, SharesConfig
from gpuloop.twin.placement import Manner, Room, place, place_part
from gpuloop.twin.sharing import SHARED, asked_milli, free_milli, hourly, take_part
from gpuloop.twin.state import Node
from gpuloop.twin.workload import OPENB_ZERO_US, PODS, JobSpec, build_workload
from gpuloop.twin.world import World

BINPACK = Manner("spot")


def shared(world: World) -> list[Node]:
    return [node for node in world.state.nodes.values() if node.shares]


def test_two_halves_share_one_device_and_a_third_opens_another() -> None:
    world = world_of(job("a", 500), job("b", 500), job("c", 500))
    world.advance(START + MINUTE_US)
    (node,) = shared(world)
    assert [sorted(parts) for parts in node.shares.values()] == [["a", "b"], ["c"]]
    assert node.free == 6
    assert sorted(free_milli(node), reverse=True) == [1000] * 6 + [500, 0]


def test_a_part_goes_beside_whole_jobs_and_never_onto_their_devices() -> None:
    world = world_of(job("a", 1000), job("b", 500))
    world.advance(START + MINUTE_US)
    (node,) = shared(world)
    assert node.slots[:2] == ["a", SHARED]
    assert node.shares == {1: {"b": 500}}


def test_shared_devices_are_free_again_when_their_jobs_end() -> None:
    world = world_of(job("a", 500, 600), job("b", 500, 1_200))
    world.advance(START + HOUR_US)
    assert not shared(world)
    assert all(node.free == 8 and SHARED not in node.slots for node in world.state.nodes.values())


def test_capacity_counts_thousandths_as_load() -> None:
    world = world_of(job("a", 500), job("b", 250))
    said = world.advance(START + 2 * MINUTE_US)
    last = [o.message for o in said if isinstance(o.message, ResourceSample)][-1]
    assert last.load == round(0.75 / 128, 4)


def test_a_part_pays_its_part_and_does_its_own_work_at_full_pace() -> None:
    world = world_of(job("a", 333, 1_800))
    price = 0
    for output in world.advance(START + HOUR_US):
        if isinstance(output.message, JobEvent):
            event = output.message
            assert event.gpu_milli == 333
            price = event.price_usd_micros_per_gpu_hour
    ended = event
    assert ended.kind == "finished"
    assert ended.gpu_us_done == 1_800 * SECOND_US * 333 // 1000
    held_us = ended.event_time_us - START
    assert world.books()["l4"]["revenue"] == (price * 333 // 1000) * held_us // HOUR_US


def test_a_shared_device_shows_the_parts_of_what_its_jobs_would_show() -> None:
    alone = world_of(job("a", 1000))
    half = world_of(job("a", 500))
    both = world_of(job("a", 500), job("b", 500))

    def seen(world: World, name: str) -> tuple[float, float]:
        last = {}
        for output in world.advance(START + 20 * MINUTE_US):
            if isinstance(output.message, GpuSample):
                last[output.message.node] = output.message
        node = next(
            node for node in world.state.nodes.values()
            if name in node.slots or any(name in parts for parts in node.shares.values())
        )  # fmt: skip
        row = last[node.id]
        return max(row.utilisation), max(row.power_watts)  # type: ignore[type-var, return-value]

    whole, part, full = seen(alone, "a"), seen(half, "a"), seen(both, "a")
    assert part[0] == pytest.approx(whole[0] / 2, rel=0.15)
    assert part[0] < full[0] <= 1.0
    assert part[1] < full[1]


def test_failing_memory_of_a_shared_device_slows_everyone_on_it() -> None:
    world = world_of(job("a", 500, 36_000), job("b", 500, 36_000), job("c", 900, 36_000))
    world.advance(START + MINUTE_US)
    (node,) = shared(world)
    device = next(d for d, parts in node.shares.items() if "a" in parts)
    node.ecc_gpu = device
    world._pacing.health_changed(node)
    speeds = {name: world.state.jobs[name].health for name in "abc"}
    assert speeds["a"] == speeds["b"] < speeds["c"] == 1.0


def test_no_device_is_promised_beyond_all_of_it() -> None:
    world = world_of(job("a", 600, 36_000))
    world.advance(START + MINUTE_US)
    (node,) = shared(world)
    with pytest.raises(ValueError, match="has no 500 thousandths free"):
        take_part(node, 0, "b", 500)
    assert node.shares == {0: {"a": 600}}


def test_a_part_overtakes_whole_gpus_that_do_not_fit() -> None:
    """The head of the queue fits nowhere; what asks for less than it may still start."""
    world = world_of(
        *(job(f"w{i:03d}", 1000, 36_000) for i in range(127)), job("x", 600, 36_000),
        job("y", 1000, 60), job("z", 400, 60),
    )  # fmt: skip
    world.advance(START + 30 * SECOND_US)
    assert world.state.pools["l4"].queue == ["y"]


def test_reclaimed_node_sends_everyone_who_shares_it_back_to_the_queue() -> None:
    world = world_of(job("a", 500, 36_000), job("b", 500, 36_000))
    world.advance(START + MINUTE_US)
    (node,) = shared(world)
    world.inject("reclaim", node.id, world.now_us)
    said = world.advance(world.now_us + 3 * MINUTE_US)
    kinds = [(o.message.job, o.message.kind) for o in said if isinstance(o.message, JobEvent)]
    assert ("a", "preempted") in kinds
    assert ("b", "preempted") in kinds


def test_whole_gpus_never_go_to_a_device_that_is_shared() -> None:
    rooms = [Room("a", "r", "spot", 1, 2, devices=(400, 1000))]
    assert place(rooms, 1, BINPACK) == (("a", 1),)
    assert place(rooms, 2, BINPACK) is None


def test_a_part_goes_where_least_is_left_beside_it() -> None:
    rooms = [
        Room("a", "r", "spot", 1, 2, devices=(700, 1000)),
        Room("b", "r", "spot", 0, 2, devices=(600, 300)),
    ]
    assert place_part(rooms, 300, BINPACK) == ("b", 1)
    assert place_part(rooms, 650, BINPACK) == ("a", 0)
    assert place_part(rooms, 800, BINPACK) == ("a", 1)


def test_fragmentation_keeps_devices_for_the_parts_that_are_expected() -> None:
    rooms = [Room("a", "r", "spot", 0, 2, devices=(500, 800))]
    expects = Manner("spot", "fragmentation", expected_parts=(500, 500, 500))
    assert place_part(rooms, 300, expects) == ("a", 1), "500 are still of use there"
    assert place_part(rooms, 300, BINPACK) == ("a", 0)


def test_what_the_trace_asks_stands_and_else_is_drawn_as_often_as_configured() -> None:
    shares = SharesConfig(of_single_gpu_jobs=0.5, sizes=((250, 1.0), (750, 3.0)))
    asked = [asked_milli(0, job(f"j{i}", 1000), shares) for i in range(4_000)]
    assert asked.count(1000) == pytest.approx(2_000, rel=0.08)
    assert asked.count(250) == pytest.approx(500, rel=0.15)
    assert asked.count(750) == pytest.approx(1_500, rel=0.1)
    assert asked_milli(0, job("j", 123), shares) == 123
    assert asked_milli(0, JobSpec(0, "wide", 4, 1, "t"), shares) == 1000
    assert asked_milli(0, job("j", 1000), None) == 1000


def test_price_of_a_part_is_rounded_down_to_whole_micros() -> None:
    world = world_of(job("a", 333))
    world.advance(START)
    held = world.state.jobs["a"]
    assert hourly(held) == held.price * 333 // 1000


def test_openb_pods_become_jobs_that_ask_for_their_thousandths(tmp_path: Path) -> None:
    rows = """\
name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time
part,6000,1,1,460,,LS,Running,10022400,10026000,10022460
cpu,6000,1,0,0,,LS,Running,10022400,10026000,10022460
never,6000,1,1,1000,,BE,Pending,10022400,10026000,
wide,6000,1,8,1000,,BE,Succeeded,10022500,10026000,10022500
"""
    path = tmp_path / PODS
    path.parent.mkdir(parents=True)
    path.write_text(rows)
    found = build_workload(tmp_path, "openb", start_us=0, seed=0, shape="bursty")
    assert found.name == "openb"
    assert found.start_us == OPENB_ZERO_US + 116 * 24 * HOUR_US
    jobs = found.arrivals(found.start_us // HOUR_US)
    assert [(j.job, j.gpus, j.gpu_milli, j.work_us // SECOND_US, j.tenant) for j in jobs] == [
        ("part", 1, 460, 3_540, "LS"),
        ("wide", 8, 1000, 3_500, "BE"),
    ]


def test_openb_without_its_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="openb needs"):
        build_workload(tmp_path, "openb", start_us=0, seed=0, shape="bursty")


def served(**changes: object) -> World:
    """Return a world whose service has servers of three tenths of a GPU, beside one small job."""
    chat = ServiceConfig(name="chat", pool="l4", requests_per_second=20.0, diurnal=0.0)
    parts = {"service_parts": {"chat": 300}} | changes
    world = world_of(job("a", 100, 36_000), services=(chat,), **parts)
    world.advance(START + 10 * MINUTE_US)
    return world


def test_servers_share_devices_with_each_other_and_with_jobs() -> None:
    world = served()
    (node,) = shared(world)
    servers = world.state.services["chat"].gpus
    held = [parts for parts in node.shares.values() if "chat" in parts]
    assert servers == sum(parts["chat"] for parts in held) // 300 > 9
    assert any(set(parts) == {"a", "chat"} for parts in held)
    assert all(sum(parts.values()) <= 1000 for parts in node.shares.values())
    assert len(node.shares) == -(-servers // 3), "three on each, and the job beside some"


def test_parts_of_an_unknown_service_are_refused() -> None:
    with pytest.raises(ValueError, match="no service is called talk"):
        served(service_parts={"talk": 300})


def test_telemetry_tells_the_gpus_that_all_servers_hold() -> None:
    world = served()
    said = world.advance(world.now_us + MINUTE_US)
    (sample,) = [o.message for o in said if isinstance(o.message, ServiceSample)]
    assert sample.gpus == -(-world.state.services["chat"].gpus * 300 // 1000)


def test_a_service_gives_parts_back_one_at_a_time() -> None:
    world = served()
    service = world.state.services["chat"]
    before = service.gpus
    service.wanted = before - 1
    world._inference._shrink("chat")
    assert service.gpus == before - 1
    (node,) = shared(world)
    assert sum(parts.get("chat", 0) for parts in node.shares.values()) == 300 * service.gpus


def test_evicted_servers_leave_their_parts_and_start_elsewhere() -> None:
    world = served()
    (node,) = shared(world)
    world.inject("lost", node.id, world.now_us)
    world.advance(world.now_us + 2 * MINUTE_US)
    assert not node.shares
    (other,) = shared(world)
    assert other.id != node.id
    held = sum(parts.get("chat", 0) for parts in other.shares.values())
    assert held == 300 * world.state.services["chat"].gpus > 0
