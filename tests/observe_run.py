"""Framer and Faust application as processes on a real Kafka, and the fold over what they read."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from confluent_kafka.admin import AdminClient

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import Partition, read_between, starts
from gpuloop.loop.shells.fold import receive
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.schemas.codec import BadInput, Encoded, Record, decode, encode
from gpuloop.schemas.component import Context, Tick
from gpuloop.schemas.identity import source_event_id
from gpuloop.schemas.messages import (
    ClockAnchor,
    GpuSample,
    JobEvent,
    JobState,
    Message,
    NodeState,
    PoolState,
    ResourceSample,
    ServiceSample,
    TenantEvent,
)
from gpuloop.schemas.messages.telemetry import Tranche
from gpuloop.streams.observe import Observe

FLEET = "local"
START = 1_508_112_000_000_000
MINUTE = 60_000_000
NODES, MINUTES, JOBS = 30, 40, 60
SPEED = 20
POOLS = ("a100", "h100")


def gpu_samples(rng: np.random.Generator, minute: int) -> Iterator[tuple[str, str, GpuSample]]:
    for n in range(NODES):
        values = rng.random(8).round(3).tolist()
        message = GpuSample(
            fleet=FLEET,
            node=f"n{n}",
            pool=POOLS[n % 2],
            rack=f"r{n // 8}",
            gpu_model="H100",
            billing="on_demand",
            event_time_us=START + minute * MINUTE + n,
            boot=1,
            seq=minute,
            gpu_ids=tuple(f"gpu-{n}-{i}" for i in range(8)),
            utilisation=tuple(values),
            power_watts=(*(700 * v for v in values[:7]), None),
            throttle_reasons=(0x40 if rng.random() < 0.1 else 0x4,) * 8,
        )
        yield "telemetry.gpu", message.node, message


def job_events(rng: np.random.Generator, minute: int) -> Iterator[tuple[str, str, JobEvent]]:
    for n in range(minute % 2, JOBS, 2):
        step = (minute - n % 5) // 2
        if not 0 <= step < 4 + n % 9:
            continue
        last = step == 3 + n % 9
        kind = ("submitted", "started")[step] if step < 2 else "finished" if last else "progress"
        message = JobEvent(
            fleet=FLEET,
            job=f"job-{n}",
            kind=kind,
            pool=POOLS[n % 2],
            tenant=f"tenant-{n % 7}",
            job_class=f"class-{n % 3}",
            event_time_us=START + minute * MINUTE + n,
            boot=1,
            seq=minute * JOBS + n,
            gpus=8,
            nodes=(f"n{n % NODES}",) if step else (),
            submitted_us=START + (n % 5) * MINUTE,
            gpu_us_done=step * MINUTE,
        )
        yield "telemetry.jobs", message.job, message


def other_events(minute: int) -> Iterator[tuple[str, str, Message]]:
    at = START + minute * MINUTE
    for pool in POOLS:
        yield (
            "telemetry.resources",
            pool,
            ResourceSample(
                fleet=FLEET,
                resource=pool,
                kind="capacity",
                pool=pool,
                event_time_us=at,
                boot=1,
                seq=minute,
                load=0.5,
                capacity=120.0,
                gpu_model="H100",
                gpus_per_node=8,
                nodes_min=1,
                nodes_max=40,
                tranches=(Tranche(billing="on_demand", nodes_ready=15 + minute % 2),),
            ),
        )
        yield (
            "telemetry.tenants",
            f"tenant-{minute}",
            TenantEvent(
                fleet=FLEET,
                tenant=f"tenant-{minute}",
                segment="batch",
                kind="refused" if minute % 3 else "accepted",
                job=f"quote-{minute}",
                pool=pool,
                event_time_us=at,
                boot=1,
                seq=2 * minute + POOLS.index(pool),
                gpus=8,
                quote_usd_micros_per_gpu_hour=2_000_000,
            ),
        )
    yield (
        "telemetry.services",
        "chat",
        ServiceSample(
            fleet=FLEET,
            service="chat",
            pool="a100",
            event_time_us=at,
            window_us=MINUTE,
            boot=1,
            seq=minute,
            gpus=16,
            requests_per_second=float(minute),
            queue_depth=0.0,
            utilisation=0.4,
            first_token_p50_us=100_000,
            first_token_p95_us=300_000,
            error_ratio=0.0,
            violated=False,
            revenue_usd_micros=5_000_000,
        ),
    )


def telemetry(rng: np.random.Generator, minutes: range) -> list[Encoded]:
    records = []
    for minute in minutes:
        events = [*gpu_samples(rng, minute), *job_events(rng, minute), *other_events(minute)]
        for topic, key, message in events:
            event_id = source_event_id(FLEET, key, message.boot, message.seq)  # type: ignore[attr-defined]
            record = encode(topic, key, message, event_id=event_id, source="test")
            records += [record] * (2 if rng.random() < 0.05 else 1)
    return records


class Run:
    """Services as processes of this test, on one prefix."""

    def __init__(self, servers: str, prefix: str, folder: Path) -> None:
        self.servers, self.prefix, self.folder = servers, prefix, folder
        self.broker = KafkaBroker(servers, prefix=prefix)
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, replica: str = "main") -> None:
        env = os.environ | {
            "GPULOOP_REPLICA": replica,
            "GPULOOP_BOOTSTRAP_SERVERS": self.servers,
            "GPULOOP_TOPIC_PREFIX": self.prefix,
            "GPULOOP_FLEET": FLEET,
            "GPULOOP_STATE_DIR": str(self.folder),
        }
        with (self.folder / f"{name}-{replica}.log").open("ab") as out:
            self.children[f"{name}-{replica}"] = subprocess.Popen(
                [sys.executable, "-m", "gpuloop.loop.services", name], env=env, stderr=out
            )

    def kill(self, name: str, replica: str = "main") -> None:
        child = self.children.pop(f"{name}-{replica}")
        child.kill()
        child.wait()

    def alive(self) -> None:
        dead = [name for name, child in self.children.items() if child.poll() is not None]
        assert not dead, f"{dead} ended:\n{self.log()}"

    def revive(self) -> None:
        """Start again what ended, as the supervisor does."""
        for name, child in list(self.children.items()):
            if child.poll() is not None:
                self.start(*name.split("-"))

    def close(self) -> None:
        for name in list(self.children):
            self.kill(*name.split("-"))
        self.broker.close()

    def log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))

    def records(self, topic: str) -> list[Record]:
        parts = self.broker.partitions(topic)
        begins, ends = self.broker.beginnings(parts), self.broker.ends(parts)
        return [r for p in parts for r in read_between(self.broker, p, begins[p], ends[p])]

    def pools_after(self, tick_us: int, *, patience_s: float = 60.0) -> dict[str, PoolState]:
        """Return all pools' states of the first whole tick after `tick_us`."""
        part = Partition("state.pools", 0)
        reader = self.broker.consumer(starts(self.broker, ["state.pools"]))
        found: dict[int, dict[str, PoolState]] = {}
        deadline = time.monotonic() + patience_s
        try:
            while time.monotonic() < deadline:
                self.alive()
                for record in reader.poll(max_records=500, timeout_s=0.5):
                    assert record.partition == part.number
                    state = decode(record)
                    assert isinstance(state, PoolState)
                    found.setdefault(state.tick_us, {})[state.pool] = state
                whole = [t for t, pools in found.items() if t > tick_us and len(pools) == 2]
                if whole:
                    return found[min(whole)]
        finally:
            reader.close()
        pytest.fail(f"no state of the pools after {tick_us}:\n{self.log()}")

    def shared(self, workers: int, *, patience_s: float = 60.0) -> None:
        """Wait until so many workers have partitions of frames."""
        admin = AdminClient({"bootstrap.servers": self.servers})
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            self.alive()
            group = f"{self.prefix}observe"
            members = admin.describe_consumer_groups([group])[group].result(10).members
            sharing = [
                member.group_instance_id
                for member in members
                if any(
                    p.topic == f"{self.prefix}internal.frames"
                    for p in member.assignment.topic_partitions
                )
            ]
            if len(sharing) == workers:
                return
            time.sleep(0.2)
        pytest.fail(f"only {sharing} have partitions:\n{self.log()}")

    def settle(self, *, patience_s: float = 60.0, revive: bool = False) -> None:
        """Wait until every telemetry record is committed by the observe stage."""
        topics = ("telemetry.jobs", "telemetry.services", "telemetry.resources")
        parts = [
            p for topic in (*topics, "telemetry.tenants") for p in self.broker.partitions(topic)
        ]
        samples = self.broker.partitions("telemetry.gpu")
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            self.revive() if revive else self.alive()
            ends = self.broker.ends(parts)
            done = self.broker.committed(f"{self.prefix}observe", parts)
            framed = self.broker.committed("gpuloop-framer", samples)
            if all(done.get(p, 0) >= end for p, end in ends.items()) and all(
                framed.get(p, 0) >= end for p, end in self.broker.ends(samples).items()
            ):
                return
            time.sleep(0.2)
        pytest.fail(f"not settled:\n{self.log()}")


def begin(run: Run) -> None:
    """Start the fleet's clock."""
    anchor = ClockAnchor(
        fleet=FLEET, world="w", anchor_us=START, anchor_wall_us=clock.wall_us(), speed=SPEED
    )
    run.broker.produce([encode("telemetry.clock", FLEET, anchor, event_id="c", source="test")])


class Expected:
    """The fold over the same records, with the partitions that Kafka gave them."""

    def __init__(self) -> None:
        self.fold = Observe(FLEET)
        self.state = self.fold.initial()
        self.jobs: dict[str, JobState] = {}
        self.nodes: dict[str, NodeState] = {}

    def fold_in(self, records: list[Record]) -> None:
        context = Context(now_us=START, wall_us=0, seed=0)
        for record in records:
            try:
                event = receive(record, FLEET)
            except BadInput:
                continue
            self.state, outputs = self.fold.step(self.state, event, context)
            for output in outputs:
                assert isinstance(output.message, JobState)
                self.jobs[output.key] = output.message

    def at(self, tick_us: int) -> dict[str, PoolState]:
        context = Context(now_us=tick_us, wall_us=0, seed=0)
        self.state, outputs = self.fold.step(self.state, Tick(tick_us=tick_us), context)
        self.nodes |= {o.key: o.message for o in outputs if isinstance(o.message, NodeState)}
        return {o.key: o.message for o in outputs if isinstance(o.message, PoolState)}


def said(state: NodeState) -> tuple[object, ...]:
    """What a node state says, whichever tick it was written at."""
    return state.boot, state.seq, state.pool, {k: f.value for k, f in state.features.items()}


TELEMETRY = (
    "telemetry.gpu",
    "telemetry.jobs",
    "telemetry.services",
    "telemetry.resources",
    "telemetry.tenants",
)


def equals_the_fold(run: Run) -> tuple[Expected, dict[str, PoolState]]:
    """See that pools are what the fold computes of the same records; return both."""
    expected = Expected()
    for topic in TELEMETRY:
        expected.fold_in(run.records(topic))
    live = run.pools_after(START + (clock.wall_us() - run_anchor(run)) * SPEED)
    assert builtins(expected.at(live["a100"].tick_us)) == builtins(live)
    assert live["a100"].features["utilisation"].value is not None
    assert live["a100"].shards_reported == live["a100"].shards_expected == 8
    return expected, live


def said_as_the_fold(run: Run, expected: Expected) -> None:
    """See that the newest states of jobs and nodes are the fold's."""
    jobs = {r.key.decode(): decode(r) for r in run.records("state.jobs") if r.key}
    assert jobs == expected.jobs
    nodes = {r.key.decode(): decode(r) for r in run.records("state.nodes") if r.key}
    assert {k: said(v) for k, v in nodes.items() if isinstance(v, NodeState)} == {
        k: said(v) for k, v in expected.nodes.items()
    }


def builtins(states: dict[str, PoolState]) -> object:
    return msgspec.to_builtins(states)


def run_anchor(run: Run) -> int:
    (record,) = run.records("telemetry.clock")
    anchor = decode(record)
    assert isinstance(anchor, ClockAnchor)
    return anchor.anchor_wall_us
