"""What the twin shows when nobody touches it, read from what it says.

The fleet stands still: nobody scales, prices or migrates. All but the share of GPUs that jobs hold
is taken from telemetry, as a reader of a real fleet would take it.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from msgspec.structs import replace

from gpuloop.schemas.messages import Fault, GpuSample, JobEvent, ResourceSample
from gpuloop.schemas.units import HOUR_US, SECOND_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.fit import Floats
from gpuloop.twin.state import RENTED
from gpuloop.twin.workload import Generator
from gpuloop.twin.world import World, build_world

SENSORS: Final = (
    "utilisation", "sm_active", "tensor_active", "memory_used", "temperature_celsius", "power_watts"
)  # fmt: skip
FAULT_XIDS: Final = {79: "lost", 48: "ecc", 74: "link"}


@dataclass(slots=True)
class Played:
    """A world's telemetry in sums: one entry per job that started or ended, per GPU and hour."""

    config: TwinConfig
    waits: list[float] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    gpu_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    sensors: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    node_watts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    node_hours: int = 0
    held: int = 0
    gpus: int = 0

    def sensor(self, name: str, *pools: str) -> Floats:
        """Return every reading of a sensor, of some pools or of all."""
        wanted = pools or tuple(pool.name for pool in self.config.pools)
        return np.array([value for pool in wanted for value in self.sensors[pool, name]])

    def share_ended(self, kind: str) -> float:
        """Return which share of the jobs that ended did so in this way."""
        return self.ended[kind] / sum(self.ended.values())

    def faults_per_node_hour(self, *kinds: str) -> float:
        """Return how often nodes of eight GPUs break, without the factor of the demonstration."""
        count = sum(self.faults[kind] for kind in kinds)
        return count / self.node_hours / self.config.fault_rate_factor


def play(seed: int, traces: Path, hours: int) -> Played:
    """Let a fleet of the usual configuration live on the trace, with a sample an hour."""
    config = replace(TwinConfig(), seed=seed, gpu_sample_every_us=HOUR_US, progress_every_us=0)
    world = build_world(config, traces, "philly")
    played, submitted = Played(config), dict[str, int]()
    for hour in range(hours + 1):
        for output in world.advance(world.start_us + hour * HOUR_US):
            match output.message:
                case JobEvent():
                    _job(played, output.message, submitted)
                case GpuSample():
                    _gpus(played, output.message)
                case ResourceSample():
                    nodes = sum(one.nodes_ready for one in output.message.tranches)
                    if nodes and output.message.power_watts:
                        found = output.message.power_watts / nodes
                        played.node_watts[output.message.pool].append(found)
                case Fault():
                    _fault(played, output.message)
        _look(played, world)
    return played


def generated(seeds: range, days: int) -> tuple[list[Floats], list[Floats]]:
    """Return the GPUs and seconds of the generator's jobs by seed."""
    gpus, seconds = [], []
    for seed in seeds:
        start = TwinConfig().start_us
        source = Generator("bursty", seed, start)
        first = start // HOUR_US
        jobs = [job for hour in range(first, first + 24 * days) for job in source.arrivals(hour)]
        gpus.append(np.array([float(job.gpus) for job in jobs]))
        seconds.append(np.array([job.work_us / SECOND_US for job in jobs]))
    return gpus, seconds


def _job(played: Played, event: JobEvent, submitted: dict[str, int]) -> None:
    match event.kind:
        case "submitted":
            submitted[event.job] = event.event_time_us
        case "started" if event.attempt == 1 and event.job in submitted:
            wait = event.event_time_us - submitted[event.job]
            played.waits.append(wait / SECOND_US)
        case "finished" | "failed" | "cancelled":
            played.ended[event.kind] += 1
            played.gpu_seconds[event.kind] += event.gpu_us_done / SECOND_US


def _gpus(played: Played, sample: GpuSample) -> None:
    for name in SENSORS:
        readings = [value for value in getattr(sample, name) if value is not None]
        played.sensors[sample.pool, name] += readings


def _fault(played: Played, fault: Fault) -> None:
    if fault.kind == "reclaim_notice":
        played.faults["reclaim"] += 1
    elif fault.kind == "thermal":
        played.faults["thermal"] += 1
    elif fault.xid in FAULT_XIDS:
        played.faults[FAULT_XIDS[fault.xid]] += 1


def _look(played: Played, world: World) -> None:
    for node in world.state.nodes.values():
        if node.phase in RENTED:
            played.node_hours += 1
            played.held += len(node.slots) - node.free
            played.gpus += len(node.slots)
