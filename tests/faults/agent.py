"""An agent of the Faust stage without Faust: a stream, a table and an outlet in memory."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from builders import START_US
from faults.loops import FLEET
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.faust_agent import Agent, Outlet, record_of
from gpuloop.loop.shells.faust_consumer import Positions
from gpuloop.loop.shells.faust_stages import JobStage
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.schemas.codec import Encoded, Record
from gpuloop.schemas.units import HOUR_US

JOBS = Partition("telemetry.jobs", 0)


class Desk(Outlet):
    """Sends what an agent says to a broker in memory."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.fleet, self.source = FLEET, "observe"  # type: ignore[misc]
        self.broker = broker

    async def deliver(self, records: Sequence[Encoded]) -> None:
        """Send records in order."""
        self.broker.produce(records)


class Rows(dict[bytes, bytes]):
    """A table whose changelog never fails."""

    def unconfirmed_changes(self) -> list[Any]:
        """Return nothing to wait for."""
        return []


class Stream:
    """Events of a topic's one partition, which an agent acknowledges."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    async def ack(self, event: Any) -> None:
        """Remember that an event is done."""
        self.acknowledged.append(event.message.offset)


async def handle_jobs(
    told: Sequence[Encoded], broker: MemoryBroker, rows: Rows
) -> tuple[list[Record], list[str]]:
    """Give the jobs' agent records of one partition; return them, and what stopped it."""
    place = (JOBS.topic, JOBS.number)
    stream, watch = Stream(), SimpleNamespace(handled=lambda *_: None, refused=lambda _: None)
    stage = JobStage(lambda: dict(rows), lambda: START_US + HOUR_US)
    positions = Positions(begin={place: 0})
    agent = Agent(JOBS.topic, stage, cast(Any, rows), Desk(broker), cast(Any, watch), positions)
    seen: list[Record] = []
    for offset, one in enumerate(told):
        message = SimpleNamespace(
            topic=JOBS.topic, partition=0, offset=offset, timestamp=0.0, key=one.key,
            headers=one.headers, value=one.value,
        )  # fmt: skip
        event = cast(Any, SimpleNamespace(message=message))
        seen.append(record_of(event, JOBS.topic))
        try:
            await agent._handle(cast(Any, stream), event)
        except Exception as error:
            return seen, [f"the agent stopped: {type(error).__name__} {error}"]
    if stream.acknowledged != list(range(len(told))):
        return seen, [f"{len(told) - len(stream.acknowledged)} records are never acknowledged"]
    return seen, []
