"""Each class of fault shows in telemetry by its own mechanism, and is over some time later."""

from collections.abc import Callable
from statistics import mean
from typing import TypeVar

import msgspec
import pytest

from gpuloop.schemas.component import Output
from gpuloop.schemas.messages import Fault, GpuSample, JobEvent, ResourceSample
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.config import FaultClass, Injection, TwinConfig
from gpuloop.twin.state import Job
from gpuloop.twin.world import World, build_world

T = TypeVar("T")
CONFIG = TwinConfig(
    seed=3, fault_rate_factor=0.0, gpu_sample_every_us=MINUTE_US, blank_share=0.0,
    job_failure_share=0.0,
)  # fmt: skip


def messages(outputs: list[Output], kind: type[T]) -> list[T]:
    return [output.message for output in outputs if isinstance(output.message, kind)]


def world_with_job(wanted: Callable[[Job], bool]) -> tuple[World, Job]:
    """Return a settled world and a long job in it."""
    for seed in range(3, 30):
        world = build_world(msgspec.structs.replace(CONFIG, seed=seed), None, "generator:steady")
        world.advance(world.start_us + 2 * HOUR_US)
        for job in sorted(world.state.jobs.values(), key=lambda job: job.id):
            if job.running and job.work_us - job.done_us > 6 * HOUR_US and wanted(job):
                return world, job
    pytest.fail("no seed below 30 has such a job")


def on_h100(gpus: int) -> Callable[[Job], bool]:
    return lambda job: job.pool == "h100" and job.gpus == gpus


def samples(outputs: list[Output], node: str, field: str) -> list[float]:
    """Return per minute the mean of a field over the GPUs of a node."""
    series = [sample for sample in messages(outputs, GpuSample) if sample.node == node]
    return [mean(getattr(sample, field)) for sample in series]


def speed(world: World, job: Job, span_us: int) -> float:
    """Return the share of full speed at which a job goes for a while from now on."""
    said = messages(world.advance(world.now_us + span_us), JobEvent)
    steps = [e for e in said if e.job == job.id and e.kind == "progress"]
    first, last = steps[0], steps[-1]
    elapsed = (last.event_time_us - first.event_time_us) * job.gpus
    return (last.gpu_us_done - first.gpu_us_done) / elapsed


def strike(fault: FaultClass, wanted: Callable[[Job], bool]) -> tuple[World, Job, str]:
    world, job = world_with_job(wanted)
    assert speed(world, job, 20 * MINUTE_US) == pytest.approx(1.0)
    node = job.nodes[0]
    world.inject(fault, node, world.now_us)
    return world, job, node


def test_failed_cooler_heats_then_throttles_then_slows_the_job() -> None:
    world, job, node = strike("thermal", on_h100(8))
    before = world.state.nodes[node].celsius[0]
    out = world.advance(world.now_us + 20 * MINUTE_US)
    edges = [f for f in messages(out, Fault) if f.node == node]
    assert [edge.kind for edge in edges] == ["thermal"]
    celsius = samples(out, node, "temperature_celsius")
    assert celsius[0] < celsius[2] < celsius[4]
    assert max(celsius) > before + 15
    assert max(celsius) < 90, "the driver holds the limit"
    clocks = samples(out, node, "sm_clock_mhz")
    assert clocks[0] == 1980
    assert clocks[-1] < 1600
    bits = [s.throttle_reasons for s in messages(out, GpuSample) if s.node == node]
    assert not any(bit and bit & 0x20 for bit in bits[0])
    assert all(bit and bit & 0x20 for bit in bits[-1])
    activity = samples(out, node, "tensor_active")
    assert activity[-1] < 0.85 * activity[0]
    assert speed(world, job, 10 * MINUTE_US) < 0.85


def test_throttled_node_recovers_with_its_cooler() -> None:
    world, job, node = strike("thermal", on_h100(8))
    out = world.advance(world.now_us + 3 * HOUR_US)
    kinds = [f.kind for f in messages(out, Fault) if f.node == node]
    assert kinds == ["thermal", "recovered"]
    assert samples(out, node, "temperature_celsius")[-1] < 70
    assert speed(world, job, 20 * MINUTE_US) == pytest.approx(1.0)


def test_degraded_link_slows_a_gang_and_shows_where_it_is() -> None:
    world, job, node = strike("link", on_h100(16))
    other = next(name for name in job.nodes if name != node)
    out = world.advance(world.now_us + 5 * MINUTE_US)
    (edge,) = messages(out, Fault)
    assert (edge.node, edge.kind, edge.xid) == (node, "xid", 74)
    here, there = (samples(out, name, "nvlink_bytes_per_second")[-1] for name in (node, other))
    assert here < 0.5 * there
    assert speed(world, job, 10 * MINUTE_US) < 0.8
    world.advance(world.now_us + 3 * HOUR_US)
    assert speed(world, job, 20 * MINUTE_US) == pytest.approx(1.0)


def test_degraded_link_does_not_slow_a_job_on_one_gpu() -> None:
    world, job, _ = strike("link", lambda job: job.pool == "a100" and job.gpus == 1)
    assert speed(world, job, 15 * MINUTE_US) == pytest.approx(1.0)


def test_degraded_rack_is_felt_on_all_its_nodes() -> None:
    world, job = world_with_job(on_h100(8))
    rack = world.state.nodes[job.nodes[0]].rack
    world.inject("link", rack, world.now_us)
    struck = {fault.node for fault in messages(world.advance(world.now_us), Fault)}
    assert struck == {node.id for node in world.state.nodes.values() if node.rack == rack}
    assert len(struck) == 8


def test_failing_memory_counts_errors_and_slows_or_kills_its_job() -> None:
    world, job, node = strike("ecc", on_h100(8))
    out = world.advance(world.now_us + 25 * MINUTE_US)
    edges = [f for f in messages(out, Fault) if f.node == node]
    assert (edges[0].kind, edges[0].xid, edges[0].recovery_action) == ("ecc", 48, 4)
    assert {edge.xid for edge in edges[1:]} <= {94, 95}
    series = [s for s in messages(out, GpuSample) if s.node == node]
    gpu = edges[0].gpu_index
    assert gpu is not None
    for counts in ("ecc_uncorrected", "ecc_corrected"):
        counted = [getattr(sample, counts)[gpu] for sample in series]
        assert counted == sorted(counted)
        assert counted[-1] > counted[0]
    progress = [e for e in messages(out, JobEvent) if e.job == job.id]
    killed = any(e.kind == "preempted" for e in progress)
    assert killed == any(edge.xid == 95 for edge in edges)
    if not killed:
        assert speed(world, job, 10 * MINUTE_US) < 0.6


def test_uncontained_memory_error_sends_the_job_elsewhere() -> None:
    for seed in range(40):
        config = msgspec.structs.replace(CONFIG, seed=seed, gpu_sample_every_us=0)
        world = build_world(config, None, "generator:steady")
        world.advance(world.start_us + HOUR_US)
        long = [j for j in world.state.jobs.values() if j.running and j.gpus == 1]
        job = max(long, key=lambda j: j.work_us - j.done_us)
        node = job.nodes[0]
        world.inject("ecc", node, world.now_us)
        out = world.advance(world.now_us + HOUR_US)
        killed = [e for e in messages(out, JobEvent) if e.reason == "uncontained memory error"]
        if not killed:
            continue
        later = [e for e in messages(out, JobEvent) if e.job == killed[0].job]
        restarted = [e for e in later if e.kind == "started" and e.attempt > killed[0].attempt]
        assert all(node not in e.nodes for e in restarted)
        if restarted:
            return
    pytest.fail("no seed below 40 shows an uncontained error with a restart")


def test_lost_node_goes_silent_costs_nothing_and_comes_back_as_a_new_boot() -> None:
    world, _, node = strike("lost", on_h100(8))
    lost_at, boot = world.now_us, world.state.nodes[node].boot
    out = world.advance(lost_at + 2 * MINUTE_US)
    (edge,) = messages(out, Fault)
    assert (edge.kind, edge.xid, edge.recovery_action) == ("lost", 79, 2)
    assert not [s for s in messages(out, GpuSample) if s.node == node and s.event_time_us > lost_at]
    sample = next(s for s in messages(out, ResourceSample) if s.pool == "h100")
    assert sample.tranches[0].nodes_ready == 23
    later = world.advance(lost_at + HOUR_US)
    assert "recovered" in [f.kind for f in messages(later, Fault) if f.node == node]
    back = [s for s in messages(later, GpuSample) if s.node == node]
    assert (back[0].boot, back[0].seq) == (boot + 1, 1)


def test_faults_of_a_schedule_happen_when_they_are_said_to() -> None:
    injections = (
        Injection(fault="lost", subject="a100-d001", after_us=5 * MINUTE_US),
        Injection(fault="ecc", subject="h100-d002", after_us=7 * MINUTE_US),
    )
    config = msgspec.structs.replace(CONFIG, injections=injections, gpu_sample_every_us=0)
    world = build_world(config, None, "generator:steady")
    faults = messages(world.advance(world.start_us + 7 * MINUTE_US), Fault)
    seen = [(f.node, f.kind, f.event_time_us - world.start_us) for f in faults]
    assert seen == [
        ("a100-d001", "lost", 5 * MINUTE_US),
        ("h100-d002", "ecc", 7 * MINUTE_US),
    ]


def test_unknown_fault_or_past_time_is_refused() -> None:
    world = build_world(CONFIG, None, "generator:steady")
    world.advance(world.start_us + MINUTE_US)
    with pytest.raises(ValueError, match="known are thermal"):
        world.inject("flood", "h100-d000", world.now_us)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="before"):
        world.inject("ecc", "h100-d000", world.start_us)


def test_default_rates_show_a_few_faults_in_five_hours() -> None:
    counts = []
    for seed in range(12):
        world = build_world(TwinConfig(seed=seed, gpu_sample_every_us=0), None, "generator:steady")
        world.advance(world.start_us + 5 * HOUR_US)
        counts.append(world.state.counters.faults)
    assert 2 <= mean(counts) <= 8


def test_missing_readings_are_null_and_rare() -> None:
    config = TwinConfig(seed=1, gpu_sample_every_us=MINUTE_US, blank_share=0.01)
    world = build_world(config, None, "generator:steady")
    said = messages(world.advance(world.start_us + HOUR_US), GpuSample)
    values = [value for sample in said for value in sample.utilisation]
    missing = sum(value is None for value in values) / len(values)
    assert 0.003 < missing < 0.03
