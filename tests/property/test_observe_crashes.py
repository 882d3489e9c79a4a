"""Agents of the observe stage that crash between any two of their acts lose nothing."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import TypeVar

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuloop.loop.shells.faust_stages import FrameStage, JobStage, PoolStage, SampleStage, Stage
from gpuloop.schemas.component import Output, Received
from gpuloop.schemas.messages import (
    JobEvent,
    Message,
    Partial,
    ResourceSample,
    TenantEvent,
)
from gpuloop.schemas.messages.telemetry import Tranche
from gpuloop.streams import node_rows, tenants
from gpuloop.streams.frames import pack, tick
from gpuloop.streams.observe import ticking_shards
from observed import belief, gpu_sample

MINUTE = 60_000_000
T0 = 25_000_000 * MINUTE
T = TypeVar("T")
SEEDS = st.integers(0, 2**32 - 1)


# Crashes of the live agents between any two acts.


@dataclass
class Topic:
    """A topic's records per partition, and how many of each are acknowledged."""

    records: dict[int, list[Received]] = field(default_factory=dict)
    acknowledged: dict[int, int] = field(default_factory=dict)

    def put(self, topic: str, partition: int, id: str, message: Message) -> None:
        log = self.records.setdefault(partition, [])
        log.append(
            Received(
                topic=topic, partition=partition, offset=len(log), key="k", id=id, message=message
            )
        )


class World:
    """Topics and tables that outlive the agents, which a crash takes away."""

    def __init__(self, crash: Iterator[bool]) -> None:
        self.crash = crash
        self.topics: dict[str, Topic] = {}
        self.tables: dict[str, dict[bytes, bytes]] = {"nodes": {}, "jobs": {}, "pools": {}}
        self.delivered: dict[str, Output] = {}
        self.crashes = 0
        self.start()

    def start(self) -> None:
        def table(name: str):  # type: ignore[no-untyped-def]
            return lambda: dict(self.tables[name])

        job_stage = JobStage(table("jobs"), lambda: None)
        frame_stage = FrameStage("local", table("nodes"), job_stage, lambda: None)
        sample_stage = SampleStage("local", table("pools"), lambda: None)
        ticking = ticking_shards(2)
        self.stages: dict[str, tuple[Stage, str]] = {
            "telemetry.jobs": (job_stage, "jobs"),
            "internal.frames": (frame_stage, "nodes"),
            "telemetry.resources": (sample_stage, "pools"),
            "telemetry.tenants": (sample_stage, "pools"),
            "internal.partials": (PoolStage("local", table("pools"), ticking), "pools"),
        }
        self.at = {
            (name, p): self.topics[name].acknowledged.get(p, 0)
            for name in self.topics
            for p in self.topics[name].records
        }
        self.held: dict[tuple[str, int], deque[tuple[int, int]]] = {}

    def step(self, name: str, partition: int) -> None:
        """Handle one record as an agent does; a crash may fall between any two acts."""
        event = self.topics[name].records[partition][self.at.get((name, partition), 0)]
        stage, table = self.stages[name]
        turn = stage.take(event)
        for output in turn.outputs:
            if self.crashed():
                return
            self.deliver(output)
        for key, row in turn.rows.items():
            if self.crashed():
                return
            if row:
                self.tables[table][key] = row
            else:
                del self.tables[table][key]
        held = self.held.setdefault((name, partition), deque())
        held.append((turn.mark, event.offset))
        self.at[name, partition] = event.offset + 1
        while held and held[0][0] <= turn.settled:
            if self.crashed():
                return
            _, offset = held.popleft()
            self.topics[name].acknowledged[partition] = offset + 1

    def crashed(self) -> bool:
        if not next(self.crash):
            return False
        self.crashes += 1
        self.start()
        return True

    def deliver(self, output: Output) -> None:
        known = self.delivered.setdefault(output.event_id, output)
        assert known == output, "one id, two contents"
        if output.topic == "internal.partials" and output.message is not None:
            self.topics.setdefault(output.topic, Topic()).put(
                output.topic, 0, output.event_id, output.message
            )

    def waiting(self) -> list[tuple[str, int]]:
        return [
            (name, p)
            for name, topic in sorted(self.topics.items())
            for p, log in sorted(topic.records.items())
            if self.at.get((name, p), 0) < len(log)
        ]


def fill(world: World, rng: np.random.Generator) -> None:
    """Put four minutes of telemetry on the topics."""
    topics = world.topics
    for name in ("telemetry.jobs", "internal.frames", "telemetry.resources", "telemetry.tenants"):
        topics[name] = Topic()
    for minute in range(4):
        at = T0 + minute * MINUTE
        for p in (0, 1):
            sent = [
                gpu_sample(f"n{p}-{n}", seq=minute, at=at, utilisation=(rng.random(), rng.random()))
                for n in range(3)
            ]
            topics["internal.frames"].put("internal.frames", p, "f", pack("local", p, sent))
            topics["internal.frames"].put("internal.frames", p, "t", tick("local", p, at))
            kind = ("submitted", "started", "progress", "finished")[minute]
            for n in range(3):
                event = job_event(f"j{p}-{n}", kind, minute, at)
                topics["telemetry.jobs"].put("telemetry.jobs", p, f"{p}-{n}-{minute}", event)
        room = ResourceSample(
            fleet="local",
            resource="h100",
            kind="capacity",
            pool="h100",
            event_time_us=at,
            boot=1,
            seq=minute,
            load=0.0,
            capacity=1.0,
            gpus_per_node=2,
            tranches=(Tranche(billing="spot", nodes_ready=6),),
        )
        topics["telemetry.resources"].put("telemetry.resources", 0, f"r{minute}", room)
        refusal = TenantEvent(
            fleet="local",
            tenant=f"t{minute}",
            segment="s",
            kind="refused",
            job="j",
            pool="h100",
            event_time_us=at,
            boot=1,
            seq=minute,
            gpus=1,
            quote_usd_micros_per_gpu_hour=1,
        )
        topics["telemetry.tenants"].put("telemetry.tenants", 0, f"q{minute}", refusal)


def job_event(job: str, kind: str, seq: int, at: int) -> JobEvent:
    return JobEvent(
        fleet="local",
        job=job,
        kind=kind,  # type: ignore[arg-type]
        pool="h100",
        tenant="t",
        job_class="c",
        event_time_us=at,
        boot=1,
        seq=seq,
        gpus=2,
        submitted_us=T0,
    )


def run_to_the_end(world: World, order: np.random.Generator) -> None:
    """Handle all records in any interleaving of partitions, then one more tick."""
    for last in (False, True):
        if last:
            for p in (0, 1):
                frame = tick("local", p, T0 + 5 * MINUTE)
                world.topics["internal.frames"].put("internal.frames", p, "t", frame)
        while waiting := world.waiting():
            world.step(*waiting[order.integers(len(waiting))])


@settings(max_examples=60)
@given(SEEDS, st.floats(0.002, 0.03))
def test_agents_that_crash_between_any_two_acts_lose_nothing(seed: int, chance: float) -> None:
    rng = np.random.default_rng(seed)

    def sometimes() -> Iterator[bool]:
        while True:
            yield bool(rng.random() < chance)

    calm, rough = World(repeat(False)), World(sometimes())
    for world in (calm, rough):
        fill(world, np.random.default_rng(seed))
        world.start()
        run_to_the_end(world, np.random.default_rng(seed))
    assert normalised(rough.tables) == normalised(calm.tables)
    assert ids(rough, "state.jobs") >= ids(calm, "state.jobs")
    assert ids(rough, "state.nodes") >= ids(calm, "state.nodes")
    assert ids(rough, "state.pools") == ids(calm, "state.pools")


def ids(world: World, topic: str) -> set[str]:
    return {i for i, output in world.delivered.items() if output.topic == topic}


def normalised(tables: dict[str, dict[bytes, bytes]]) -> dict[str, object]:
    """Return what tables say: blocks decoded, pools by their shards' sums."""
    shards = [node_rows.shard_from(tables["nodes"], p) for p in (0, 1)]
    pool_rows = msgspec.msgpack.Decoder(dict[str, Partial])
    return {
        "nodes": [belief(shard) for shard in shards],
        "jobs": tables["jobs"],
        "tenants": msgspec.msgpack.decode(tables["pools"][b"tenants"], type=tenants.TenantShard),
        "pools": {
            key: pool_rows.decode(row)
            for key, row in tables["pools"].items()
            if key.startswith(b"pool/")
        },
    }
