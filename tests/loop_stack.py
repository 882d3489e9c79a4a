"""A whole stack, run as a person would run it, and everything it writes, as it writes it."""

import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TypeVar

import msgspec

from gpuloop.loop.shells.broker import Partition, starts
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.ops.stack.state import StackState, read
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import Record, decode
from gpuloop.schemas.messages import Command, DeadLetter, Message, Outcome

M = TypeVar("M", bound=Message)

PATIENCE_S = 420.0
UNWATCHED = ("telemetry.gpu", "internal.", "state.nodes", "policies.weights", "audit")


@dataclass(frozen=True)
class Seen:
    """One record and its message."""

    record: Record
    message: Message

    @property
    def id(self) -> str:
        return self.record.header("ce_id") or ""


@dataclass
class Watch:
    """Every message on the readable topics since the beginning, in arrival order."""

    broker: KafkaBroker
    seen: dict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))
    changed: threading.Condition = field(default_factory=threading.Condition)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        topics = [name for name in CATALOGUE if not name.startswith(UNWATCHED)]
        consumer = self.broker.consumer(starts(self.broker, topics))
        try:
            while not self.stopped.is_set():
                records = consumer.poll(max_records=2000, timeout_s=0.2)
                with self.changed:
                    for record in records:
                        self.seen[record.topic].append(Seen(record, decode(record)))
                    self.changed.notify_all()
        finally:
            consumer.close()

    def of(self, *topics: str) -> list[Seen]:
        """Return what is there now on topics, or on all whose names begin like that."""
        with self.changed:
            return [s for name, all_ in self.seen.items() if name.startswith(topics) for s in all_]

    def until(
        self, what: str, found: Callable[[], object], patience_s: float = PATIENCE_S
    ) -> object:
        """Wait until `found` returns something true, and return it."""
        deadline = monotonic() + patience_s
        with self.changed:
            while not (result := found()):
                left = deadline - monotonic()
                assert left > 0, f"waited {patience_s:.0f} s for {what}"
                self.changed.wait(min(left, 1.0))
        return result


def messages(watch: Watch, kind: type[M], *topics: str) -> list[M]:
    """Return the messages of a kind on topics."""
    return [s.message for s in watch.of(*topics) if isinstance(s.message, kind)]


def applied(watch: Watch, actuator: str | None = None) -> list[Outcome]:
    """Return what was applied, by one actuator or by any."""
    return [
        outcome
        for outcome in messages(watch, Outcome, "actions.outcomes")
        if outcome.status == "applied" and actuator in (None, outcome.actuator)
    ]


def commands(watch: Watch, *actuators: str) -> dict[str, Command]:
    """Return commands by id, of some actuators or of all."""
    topics = [f"actions.{a}" for a in actuators] if actuators else ["actions."]
    return {c.command_id: c for c in messages(watch, Command, *topics)}


def letters(watch: Watch) -> list[tuple[str, str, int, str, str]]:
    """Return what was refused, by whom and why."""
    return [
        (letter.stage, letter.topic, letter.offset, letter.reason, letter.detail)
        for letter in messages(watch, DeadLetter, "deadletters")
    ]


@dataclass
class LoopStack:
    """A stack in a folder of its own, driven by the command line."""

    folder: Path
    environment: dict[str, str]

    @property
    def state_dir(self) -> Path:
        return self.folder / ".gpuloop"

    @property
    def state(self) -> StackState:
        found = read(self.state_dir / "stack.json")
        assert found is not None, "the stack has not said anything"
        return found

    def command(self, *arguments: str, timeout: float = 300, check: bool = True) -> str:
        """Run `gpuloop` in the stack's folder and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "gpuloop.ops.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{arguments} ended {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def broker(self) -> KafkaBroker:
        return KafkaBroker(self.state.environment["GPULOOP_BOOTSTRAP_SERVERS"])

    def pid(self, name: str) -> int | None:
        return next(p.pid for p in self.state.processes if p.name == name)

    def phase(self, name: str) -> str:
        return next(p.phase for p in self.state.processes if p.name == name)

    def restarts(self, name: str) -> int:
        return next(p.restarts for p in self.state.processes if p.name == name)

    def log(self, name: str) -> str:
        path = self.state_dir / "logs" / f"{name}.log"
        return path.read_text()[-4000:] if path.exists() else ""


OUTPUTS = {
    "twin": "telemetry.resources",
    "framer": "internal.frames",
    "observe": "state.pools",
    "forecaster": "insight.forecasts",
    "causes": "internal.journal",
    "decider": "decisions",
    "evaluator": "rewards",
    "auditor": "audit",
    "learner": "policies",
    "keeper": "controls",
}
"""A topic on which each service says something again and again while it does its work."""


@contextmanager
def listening(broker: KafkaBroker, name: str) -> Iterator[Callable[[], bool]]:
    """Return what says whether a service has written anything from now on.

    What has no output on the stream is believed by its own health alone.
    """
    if name not in OUTPUTS:
        yield lambda: True
        return
    consumer = broker.consumer(positions_of(broker, OUTPUTS[name]))

    def spoke() -> bool:
        sources = (r.header("ce_source") for r in consumer.poll(max_records=500, timeout_s=0.1))
        return any((source or "").rpartition("/")[2] == name for source in sources)

    try:
        yield spoke
    finally:
        consumer.close()


def positions_of(broker: KafkaBroker, topic: str) -> dict[Partition, int]:
    """Return where a topic ends."""
    return broker.ends(broker.partitions(topic))


def as_json(message: Message) -> bytes:
    """Return a message as a person would write it by hand."""
    return msgspec.json.encode(message)
