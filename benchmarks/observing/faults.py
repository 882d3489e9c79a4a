"""From a fault on `telemetry.faults` to the command that follows from it on `actions.*`."""

import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Final

import numpy as np

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import Partition, starts
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.ops.stack.state import read
from gpuloop.schemas.codec import decode, encode
from gpuloop.schemas.messages import Command, Fault, JobState, PoolState
from gpuloop.schemas.messages.actions import MigrateTo

WITHOUT: Final = ("learner", "causes", "forecaster", "clickhouse", "postgres")
ANSWER_SECONDS: Final = 5.0


def fault_to_command(faults: int) -> dict[str, object]:
    """Strike nodes of a running stack; return quantiles of the time to the first command."""
    print(f"{faults} faults on a running stack")
    with tempfile.TemporaryDirectory(prefix="gpuloop-bench-") as name:
        folder = Path(name)
        gpuloop = [sys.executable, "-m", "gpuloop.ops.cli"]
        without = [f"--without={one}" for one in WITHOUT]
        subprocess.run(  # noqa: S603
            [*gpuloop, "up", "--detach", "--speed=60", *without], cwd=folder, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            took = _strike(folder, faults)
        finally:
            subprocess.run(  # noqa: S603
                [*gpuloop, "down"], cwd=folder, check=False, stdout=subprocess.DEVNULL
            )
    if not took:
        print("  no fault led to a command")
        return {"fault_to_command_p50_ms": None, "fault_to_command_p99_ms": None}
    p50, p99 = np.percentile(took, [50, 99]).tolist()
    print(f"  to the command as a subscriber sees it: p50 {p50:.1f} ms, p99 {p99:.1f} ms,"
          f" {len(took)} commands")  # fmt: skip
    return {"fault_to_command_p50_ms": round(p50, 1), "fault_to_command_p99_ms": round(p99, 1)}


def _strike(folder: Path, faults: int) -> list[float]:
    state = read(folder / ".gpuloop" / "stack.json")
    assert state is not None
    broker = KafkaBroker(state.environment["GPULOOP_BOOTSTRAP_SERVERS"])
    part = Partition("actions.migration", 0)
    commands = broker.consumer({part: broker.ends([part])[part]})
    jobs = broker.consumer(starts(broker, ["state.jobs", "state.pools"]))
    running: dict[str, JobState] = {}
    struck: set[str] = set()
    took: list[float] = []
    now_us, boot = 0, clock.wall_us()
    deadline = monotonic() + 60.0 + 2.0 * faults
    while len(struck) < faults and monotonic() < deadline:
        for record in jobs.poll(max_records=5_000, timeout_s=0.5):
            message = decode(record)
            if isinstance(message, JobState):
                running[message.job] = message
                now_us = max(now_us, message.event_time_us)
            elif isinstance(message, PoolState):
                now_us = max(now_us, message.tick_us)
        node = _busy(running, struck)
        if node is None:
            continue
        job, at = node
        struck.add(at)
        fault = Fault(
            fleet=job.fleet, node=at, pool=job.pool, kind="thermal", event_time_us=now_us,
            boot=boot, seq=len(struck),
        )  # fmt: skip
        record = encode("telemetry.faults", at, fault, event_id=f"bench/{at}", source="bench")
        begin = monotonic()
        broker.produce([record])
        while monotonic() - begin < ANSWER_SECONDS:
            found = [decode(r) for r in commands.poll(max_records=50, timeout_s=0.2)]
            if any(_avoids(command, at) for command in found):
                took.append(1000 * (monotonic() - begin))
                break
    broker.close()
    return took


def _busy(running: dict[str, JobState], struck: set[str]) -> tuple[JobState, str] | None:
    """Return a running job on a node that was not struck yet."""
    for job in running.values():
        if job.phase == "running" and len(job.nodes) == 1 and job.nodes[0] not in struck:
            return job, job.nodes[0]
    return None


def _avoids(command: object, node: str) -> bool:
    return (
        isinstance(command, Command)
        and isinstance(command.to, MigrateTo)
        and node in command.to.avoid_nodes
    )
