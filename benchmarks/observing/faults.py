"""From a fault on `telemetry.faults` to the command that follows from it on `actions.migration`.

How many jobs may be moved within an hour is bounded, and a decider that has spent that moves none:
nodes are struck where something is left of it, one at a time, at any moment between two control
ticks, and each recovers once it is answered. A fault is answered when its own reflex sends a
command. Where a guard refuses that, the guard's words are counted instead; that a later tick moves
the job after all is no answer.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final

import numpy as np

from gpuloop.actuators.envelope import EnvelopeConfig, migration_budget
from gpuloop.loop.decide.answers import NOT_DONE
from gpuloop.loop.decide.release import MOVE_AGAIN_US
from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import starts
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.ops.stack.state import read
from gpuloop.schemas.codec import Record, decode, encode
from gpuloop.schemas.messages import (
    Command,
    Decision,
    Fault,
    JobState,
    Message,
    Outcome,
    PoolState,
)
from gpuloop.schemas.messages.actions import MigrateTo
from gpuloop.schemas.messages.telemetry import FaultKind
from gpuloop.schemas.policy import CONTROL_TICK_US, DIMENSIONS, MIGRATION

FLEET: Final = "local"
WITHOUT: Final = ("learner", "causes", "forecaster", "clickhouse", "postgres")
START_SECONDS: Final = 60.0
EACH_SECONDS: Final = 6.0
"""There is something left of some pool's budget every three seconds or so."""
ANSWER_SECONDS: Final = 5.0
SAID: Final = ("decisions", "actions.migration", "actions.outcomes")
APART_SECONDS: Final = (0.3, 1.3)
"""Apart by any part of a control tick, which is a second of wall time here."""
WINDOW_US: Final = EnvelopeConfig().window_us + 2 * CONTROL_TICK_US
"""For how long a move counts, as seen from outside: it is forgotten at a tick."""


def fault_to_command(faults: int) -> dict[str, object]:
    """Strike nodes of a running stack; return quantiles of the time to the first command."""
    print(f"{faults} faults on a running stack")
    with _stack() as broker:
        found = Strikes(broker).run(faults)
    refused = sum(found.refused.values())
    print(f"  {refused + len(found.seen_ms)} struck: {len(found.seen_ms)} led to a command,"
          f" {refused} to none")  # fmt: skip
    for why, count in found.refused.most_common():
        print(f"    {count} x {why}")
    result: dict[str, object] = {"fault_to_command_p50_ms": None, "fault_to_command_p99_ms": None}
    if found.seen_ms:
        for what, took in (
            ("acknowledged on its topic", found.placed_ms),
            ("command left the decider", found.left_ms),
            ("command seen by a subscriber", found.seen_ms),
        ):
            p50, p99, most = np.percentile(took, [50, 99, 100]).tolist()
            print(f"  {what:<29} p50 {p50:5.1f} ms, p99 {p99:5.1f} ms, at most {most:5.1f} ms")
        result = {
            "fault_to_command_p50_ms": round(p50, 1),
            "fault_to_command_p99_ms": round(p99, 1),
        }
    return result | {
        "fault_to_command_commands": len(found.seen_ms),
        "fault_to_command_refused": dict(found.refused),
    }


@contextmanager
def _stack() -> Iterator[KafkaBroker]:
    with tempfile.TemporaryDirectory(prefix="gpuloop-bench-") as name:
        folder = Path(name)
        gpuloop = [sys.executable, "-m", "gpuloop.ops.cli"]
        without = [f"--without={one}" for one in WITHOUT]
        subprocess.run(  # noqa: S603
            [*gpuloop, "up", "--detach", "--speed=60", *without], cwd=folder, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            state = read(folder / ".gpuloop" / "stack.json")
            assert state is not None
            broker = KafkaBroker(state.environment["GPULOOP_BOOTSTRAP_SERVERS"])
            yield broker
            broker.close()
        finally:
            subprocess.run(  # noqa: S603
                [*gpuloop, "down"], cwd=folder, check=False, stdout=subprocess.DEVNULL
            )


@dataclass(frozen=True)
class Found:
    """Milliseconds from a fault on, by answered fault, and why the others were not answered."""

    placed_ms: list[float] = field(default_factory=list)
    left_ms: list[float] = field(default_factory=list)
    seen_ms: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


class Strikes:
    """A source of faults that knows what any subscriber of the stack can know."""

    def __init__(self, broker: KafkaBroker) -> None:
        """Listen to what is said from now on, and to the last word about jobs and pools."""
        said = [p for t in SAID for p in broker.partitions(t)]
        self._broker: Final = broker
        self._said: Final = broker.consumer(broker.ends(said))
        self._states: Final = broker.consumer(starts(broker, ["state.jobs", "state.pools"]))
        self._rng: Final = np.random.default_rng(7)
        self._boot: Final = clock.wall_us()
        self._seq = 0
        self._now_us = 0
        self._running: dict[str, JobState] = {}
        self._pools: dict[str, PoolState] = {}
        self._moves: list[Command] = []

    def run(self, faults: int) -> Found:
        """Strike so many nodes, or as many as there is time for."""
        found = Found()
        deadline = monotonic() + START_SECONDS + EACH_SECONDS * faults
        for _ in range(faults):
            node = self._next(deadline)
            if node is None:
                break
            self._strike(*node, found)
        self._said.close()
        self._states.close()
        return found

    def _next(self, deadline: float) -> tuple[str, str] | None:
        """Wait a while, and then for a pool with budget; return a node of it that has work."""
        due = monotonic() + self._rng.uniform(*APART_SECONDS)
        while monotonic() < deadline:
            self._look()
            if monotonic() >= due and (nodes := self._candidates()):
                return nodes[int(self._rng.integers(len(nodes)))]
        return None

    def _look(self) -> None:
        """Take in what has been said meanwhile."""
        for record in self._states.poll(max_records=5_000, timeout_s=0.05, linger_s=0.0):
            match decode(record):
                case JobState() as job:
                    if job.phase == "running":
                        self._running[job.job] = job
                    else:
                        self._running.pop(job.job, None)
                case PoolState() as pool:
                    self._pools[pool.pool] = pool
                    self._now_us = max(self._now_us, pool.tick_us)
        for record in self._said.poll(max_records=5_000, timeout_s=0.0, linger_s=0.0):
            self._hear(record)
        oldest_us = self._now_us - WINDOW_US
        self._moves = [move for move in self._moves if move.issued_at_us > oldest_us]

    def _hear(self, record: Record) -> Message:
        message = decode(record)
        if isinstance(message, Command):
            self._moves.append(message)
        elif isinstance(message, Outcome) and message.status in NOT_DONE:  # The budget has it back.
            undone = message.command_id
            self._moves = [move for move in self._moves if move.command_id != undone]
        return message

    def _candidates(self) -> list[tuple[str, str]]:
        """Return nodes whose jobs can all be moved, those with the fewest, and their pools."""
        lately_us = self._now_us - MOVE_AGAIN_US - CONTROL_TICK_US
        moved = {move.target for move in self._moves if move.issued_at_us > lately_us}
        spent = Counter(move.pool for move in self._moves)
        jobs: dict[tuple[str, str], list[str]] = {}
        for job in self._running.values():
            for node in job.nodes:
                jobs.setdefault((node, job.pool), []).append(job.job)
        able = [
            (len(names), at)
            for at, names in jobs.items()
            if moved.isdisjoint(names) and len(names) <= self._budget(at[1]) - spent[at[1]]
        ]
        fewest = min((count for count, _ in able), default=0)
        return sorted(at for count, at in able if count == fewest)

    def _budget(self, pool: str) -> int:
        state = self._pools.get(pool)
        if state is None:
            return 0
        return int(migration_budget(np.array([float(state.running_jobs)]), EnvelopeConfig())[0])

    def _strike(self, node: str, pool: str, found: Found) -> None:
        self._say("recovered", node, pool)  # Changes nothing, and connects the first time.
        begin, begin_ms = monotonic(), clock.wall_us() / 1000
        self._say("thermal", node, pool)
        placed = monotonic()
        answer = self._answer(node, pool, begin + ANSWER_SECONDS)
        seen = monotonic()
        if isinstance(answer, str):
            found.refused[answer] += 1
        else:
            found.placed_ms.append(1000 * (placed - begin))
            found.left_ms.append(answer.timestamp_ms - begin_ms)
            found.seen_ms.append(1000 * (seen - begin))
        self._say("recovered", node, pool)

    def _answer(self, node: str, pool: str, deadline: float) -> Record | str:
        """Return the record of the first command that relieves a node, or why none came."""
        while (left := deadline - monotonic()) > 0:
            records = self._said.poll(max_records=100, timeout_s=left, linger_s=0.0)
            for record, message in [(record, self._hear(record)) for record in records]:
                match message:
                    case Command(to=MigrateTo(avoid_nodes=avoided)) if node in avoided:
                        return record
                    case Decision(level="node", command_ids=()) if message.pool == pool:
                        return _why_not(message)
        return f"no command within {ANSWER_SECONDS:.0f} s"

    def _say(self, kind: FaultKind, node: str, pool: str) -> None:
        self._seq += 1
        fault = Fault(
            fleet=FLEET, node=node, pool=pool, kind=kind, event_time_us=self._now_us,
            boot=self._boot, seq=self._seq,
        )  # fmt: skip
        name = f"bench/{self._boot}/{self._seq}"
        record = encode("telemetry.faults", node, fault, event_id=name, source="bench")
        self._broker.produce([record])


def _why_not(decision: Decision) -> str:
    """Return what a decision says about not moving anything."""
    moves = DIMENSIONS[MIGRATION]
    words = [f"{one.stage}: {one.reason}" for one in decision.adjustments if one.dimension == moves]
    return words[-1] if words else "nothing left to move"
