"""The agents of the Faust stage without Faust: tables, streams and outlet in memory, and deaths.

What outlives a process is what Kafka would hold: topics, tables (their changelogs) and acknowledged
offsets. `live` is one life of the process: its agents go on where the last life's offsets end.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np

from builders import START_US
from faults.loops import FLEET
from faults.storm import Died
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.faust_agent import Agent, Outlet
from gpuloop.loop.shells.faust_app import INPUTS
from gpuloop.loop.shells.faust_consumer import Positions
from gpuloop.loop.shells.faust_stages import FrameStage, JobStage, PoolStage, SampleStage, Stage
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.schemas.codec import Encoded
from gpuloop.schemas.units import HOUR_US
from gpuloop.streams.observe import ticking_shards

Act = Callable[[], None]
"""Called before each act of an agent; a process can die there."""

IGNORING: Final = SimpleNamespace(
    handled=lambda *_: None, known=lambda *_: None, refused=lambda _: None
)


def nothing_happens() -> None:
    """Let the process live."""


class Desk(Outlet):
    """Sends what an agent says to a broker in memory."""

    def __init__(self, broker: MemoryBroker, act: Act) -> None:
        self.fleet, self.source = FLEET, "observe"  # type: ignore[misc]
        self.broker, self.act = broker, act

    async def send(self, batches: object) -> None:
        """Send nothing: rows are in the changelog as soon as they are set."""

    async def deliver(self, records: Sequence[Encoded]) -> None:
        """Send records in order."""
        for record in records:
            self.act()
            self.broker.produce([record])


class Table:
    """Rows that are in the changelog as soon as they are set."""

    def __init__(self, rows: dict[bytes, bytes], act: Act) -> None:
        self.rows, self.act = rows, act

    def __setitem__(self, key: bytes, row: bytes) -> None:
        self.act()
        self.rows[key] = row

    def __delitem__(self, key: bytes) -> None:
        self.act()
        del self.rows[key]

    def changes(self) -> dict[Any, Any]:
        """Return nothing that must be sent."""
        return {}


@dataclass
class Observing:
    """The observe stage of a fleet whose topics all have one partition that is used."""

    broker: MemoryBroker = field(default_factory=lambda: MemoryBroker(wall=lambda: START_US))
    rows: dict[str, dict[bytes, bytes]] = field(
        default_factory=lambda: {name: {} for name in set(INPUTS.values())}
    )
    settled: dict[str, int] = field(default_factory=dict)
    act: Act = nothing_happens
    positions: Positions = field(default_factory=Positions)

    def live(self, topics: Iterable[str], rng: np.random.Generator) -> None:
        """Handle what there is on some topics, in any interleaving, until all of it is handled."""
        asyncio.run(self._live(topics, rng))

    async def _live(self, topics: Iterable[str], rng: np.random.Generator) -> None:
        agents = self._agents(topics)
        try:
            while waiting := [topic for topic in agents if self._unread(topic)]:
                topic = waiting[rng.integers(len(waiting))]
                event = self._event(topic, self.positions.expected((topic, 0)) or 0)
                await agents[topic]._handle(cast(Any, self), event)
        finally:
            self.settled |= {topic: at for (topic, _), at in self.positions.settled.items()}

    async def ack(self, event: Any) -> None:
        """Hear what the library is told; what is committed is what was settled."""
        self.act()

    def _unread(self, topic: str) -> bool:
        log = self.broker.logs[Partition(topic, 0)]
        return (self.positions.expected((topic, 0)) or 0) < len(log)

    def _agents(self, topics: Iterable[str]) -> dict[str, Agent]:
        """Start the process: stages with nothing in memory, positions as they were settled."""
        rows = self.rows

        def now() -> int:
            return START_US + HOUR_US

        jobs = JobStage(lambda: dict(rows["jobs"]), now)
        samples = SampleStage(FLEET, lambda: dict(rows["pools"]), now)
        pools = PoolStage(FLEET, lambda: dict(rows["pools"]), ticking_shards(1))
        stages: dict[str, Stage] = dict.fromkeys(INPUTS, samples) | {
            "telemetry.jobs": jobs,
            "internal.frames": FrameStage(FLEET, lambda: dict(rows["nodes"]), jobs, now),
            "internal.partials": pools,
        }
        self.positions = Positions(begin={(name, 0): self.settled.get(name, 0) for name in INPUTS})
        desk = Desk(self.broker, self.act)
        tables = {name: cast(Any, Table(rows[name], self.act)) for name in rows}
        return {
            topic: Agent(
                topic, stages[topic], tables[INPUTS[topic]], desk, cast(Any, IGNORING),
                self.positions,
            )
            for topic in topics
        }  # fmt: skip

    def _event(self, topic: str, at: int) -> Any:
        record = self.broker.logs[Partition(topic, 0)][at]
        message = SimpleNamespace(
            topic=topic, partition=0, offset=at, timestamp=0.0, key=record.key,
            headers=record.headers, value=record.value,
        )  # fmt: skip
        return SimpleNamespace(message=message)


def survive(observing: Observing, topics: Sequence[str], rng: np.random.Generator) -> int:
    """Let the process live until all is handled, however often it dies; return how often."""
    deaths = 0
    while True:
        try:
            observing.live(topics, rng)
            return deaths
        except Died:
            deaths += 1
            for topic, at in observing.settled.items():  # The last commits never landed.
                observing.settled[topic] = max(0, at - int(rng.integers(0, 3)))
