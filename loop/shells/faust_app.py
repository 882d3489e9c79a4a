"""The observe stage on Faust: one agent per input topic, tables with changelogs.

Every agent handles a record the same way: its stage says what follows, the outputs are delivered,
the rows are written and their changelog records delivered, and only then are the records they
cover acknowledged, oldest first. What the library would do on its own (acknowledge on exceptions,
restart an agent behind a failed record, log a stuck stream) is not relied on: bad input goes to
the dead letters, anything else ends the process.
"""

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import faust
from faust.types import EventT, FutureMessage, StreamT

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.clock import FleetClock
from gpuloop.loop.shells.faust_security import broker_credentials
from gpuloop.loop.shells.faust_stages import (
    FrameStage,
    JobStage,
    PoolStage,
    Rows,
    SampleStage,
    Stage,
    Table,
    Turn,
)
from gpuloop.loop.shells.faust_tables import APP, TABLES, app_id
from gpuloop.loop.shells.fold import encode_dead_letters, encode_outputs, receive, source_of
from gpuloop.loop.shells.journal import message_of
from gpuloop.schemas.catalogue import SHARDS
from gpuloop.schemas.codec import BadInput, Encoded, Record
from gpuloop.schemas.messages import ClockAnchor
from gpuloop.streams.observe import ticking_shards

DELIVERY_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.1
EXIT_FAILED: Final = 70

CLOCK: Final = "telemetry.clock"
INPUTS: Final[dict[str, str]] = {
    "internal.frames": "nodes",
    "telemetry.jobs": "jobs",
    "telemetry.services": "pools",
    "telemetry.resources": "pools",
    "telemetry.tenants": "pools",
    "internal.partials": "pools",
}
"""Input topics and the table that is written during their events."""

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveConfig:
    """Where the application runs. `replica` is stable over restarts: it is the static member."""

    bootstrap_servers: str
    fleet: str
    prefix: str = ""
    replica: str = "main"
    kafka_config: Path | None = None


class Watch(Protocol):
    """Who is told how the agents get on; called from the event loop."""

    def ready(self) -> None:
        """Say that the tables are recovered."""
        ...

    def handled(
        self, part: Partition, offset: int, outputs: int, dropped: Mapping[str, int]
    ) -> None:
        """Say that a record was folded and its outputs delivered."""
        ...

    def refused(self, error: BadInput) -> None:
        """Say that a record went to the dead letters."""
        ...


@dataclass(slots=True)
class Progress:
    """Next offsets per topic and partition: folded, and acknowledged.

    Written by the event loop, read by the watchdog's thread.
    """

    handled: dict[Partition, int] = field(default_factory=dict)
    acknowledged: dict[Partition, int] = field(default_factory=dict)


class FleetTime:
    """The fleet clock as far as this process knows it."""

    def __init__(self, anchor: ClockAnchor | None) -> None:
        self._clock = None if anchor is None else FleetClock(anchor)

    def follow(self, anchor: ClockAnchor) -> None:
        """Go on from a newer anchor."""
        self._clock = FleetClock(anchor) if self._clock is None else self._clock.follow(anchor)

    def now_us(self) -> int | None:
        """Return fleet time, or None before the first anchor."""
        return None if self._clock is None else self._clock.now_us(clock.wall_us())


class TrackedTable(faust.Table):  # type: ignore[misc]
    """A table whose changelog records can be awaited; the library only logs one that failed."""

    def send_changelog(self, *args: Any, **kwargs: Any) -> FutureMessage:
        """Send a change to the changelog and remember it until `delivered`."""
        sent = super().send_changelog(*args, **kwargs)
        vars(self).setdefault("unconfirmed", []).append(sent)
        return sent

    def unconfirmed_changes(self) -> list[FutureMessage]:
        """Return what was sent since the last call."""
        pending: list[FutureMessage] = vars(self).pop("unconfirmed", [])
        return pending


@dataclass(slots=True)
class _Held:
    """A partition's unacknowledged records with their marks, and the mark settled so far."""

    events: deque[tuple[int, EventT]] = field(default_factory=deque)
    settled: int = 0


class Agent:
    """Runs one stage over one topic, see the module's own words."""

    def __init__(
        self,
        topic: str,
        stage: Stage,
        table: TrackedTable,
        outlet: "Outlet",
        watch: Watch,
        progress: Progress,
    ) -> None:
        self._topic: Final = topic
        self._stage: Final = stage
        self._table: Final = table
        self._outlet: Final = outlet
        self._watch: Final = watch
        self._progress: Final = progress
        self._held: dict[int, _Held] = {}
        self._generation = 0

    def forget(self) -> None:
        """Drop what is in memory: partitions were revoked, and unacknowledged records return."""
        self._generation += 1
        self._held.clear()
        self._stage.forget()

    async def run(self, stream: StreamT[bytes]) -> None:
        """Handle the records of a stream; anything unexpected ends the process."""
        unacknowledged = stream.noack()
        try:
            async for event in unacknowledged.events():
                await self._handle(unacknowledged, event)
        except asyncio.CancelledError:
            raise
        except Exception:
            # The library would go on behind the failed record. A restart reads it again.
            log.exception("agent failed", extra={"topic": self._topic})
            os._exit(EXIT_FAILED)

    async def _handle(self, stream: StreamT[bytes], event: EventT) -> None:
        generation = self._generation
        record = record_of(event, self._topic)
        place = Partition(record.topic, record.partition)
        held = self._held.setdefault(record.partition, _Held())
        try:
            turn = self._stage.take(receive(record, self._outlet.fleet))
        except BadInput as error:
            await self._outlet.refuse(record, error)
            self._watch.refused(error)
            turn = Turn(settled=held.settled)
        else:
            await self._outlet.deliver(encode_outputs(turn.outputs, self._outlet.source))
            self._watch.handled(place, record.offset, len(turn.outputs), turn.dropped)
        if generation != self._generation:
            return
        await self._write(turn.rows)
        if generation != self._generation:
            return
        self._progress.handled[place] = record.offset + 1
        held.events.append((turn.mark, event))
        held.settled = turn.settled
        while held.events and held.events[0][0] <= held.settled:
            _, oldest = held.events.popleft()
            await stream.ack(oldest)
            self._progress.acknowledged[place] = oldest.message.offset + 1

    async def _write(self, rows: Mapping[bytes, bytes]) -> None:
        """Write table rows and wait until the changelog has them."""
        for key, row in rows.items():
            if row:
                self._table[key] = row
            else:
                del self._table[key]
        await delivered(self._table.unconfirmed_changes())


class Outlet:
    """Sends records and waits until the broker has them."""

    def __init__(self, app: faust.App, config: ObserveConfig) -> None:
        self.fleet: Final = config.fleet
        self.source: Final = source_of(config.fleet, APP)
        self._app: Final = app
        self._prefix: Final = config.prefix
        self._topics: Final[dict[str, Any]] = {}

    async def deliver(self, records: Sequence[Encoded]) -> None:
        """Send records in order; raise when not all are acknowledged in time."""
        sent = [
            await self._of(record.topic).send(
                key=record.key,
                value=record.value,
                partition=record.partition,
                headers=list(record.headers),
            )
            for record in records
        ]
        await delivered(sent)

    async def refuse(self, record: Record, error: BadInput) -> None:
        """Put a refused record whole on the dead letters."""
        log.warning("record refused", extra={"topic": record.topic, "why": str(error)})
        await self.deliver(encode_dead_letters([(record, error)], stage=APP, fleet=self.fleet))

    def _of(self, topic: str) -> Any:
        if topic not in self._topics:
            self._topics[topic] = raw_topic(self._app, self._prefix + topic)
        return self._topics[topic]


async def delivered(sent: Iterable[FutureMessage]) -> None:
    """Wait until every message is acknowledged by the broker."""
    pending = list(sent)
    if pending:
        await asyncio.wait_for(asyncio.gather(*pending), DELIVERY_SECONDS)


def raw_topic(app: faust.App, name: str) -> Any:
    """Return a topic of bytes; an empty value reaches us, so that it can be refused by us."""
    return app.topic(
        name,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        allow_empty=True,
        internal=False,
    )


def record_of(event: EventT, topic: str) -> Record:
    """Return the record behind an event, under its topic's name in the catalogue."""
    message = event.message
    headers = message.headers or ()
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return Record(
        topic=topic,
        partition=message.partition,
        offset=message.offset,
        timestamp_ms=int((message.timestamp or 0.0) * 1000),
        key=message.key,
        headers=tuple((name, value or b"") for name, value in pairs),
        value=message.value,
    )


@dataclass(frozen=True, slots=True)
class Observing:
    """The application with what a process watches of it."""

    app: faust.App
    progress: Progress


def build(config: ObserveConfig, watch: Watch, anchor: ClockAnchor | None = None) -> Observing:
    """Return the application; `anchor` is the newest on the clock's topic when it starts."""
    app = faust.App(
        app_id(config.prefix),
        version=1,
        broker=[f"kafka://{address}" for address in config.bootstrap_servers.split(",")],
        broker_credentials=broker_credentials(config.kafka_config),
        store="memory://",
        Table=TrackedTable,
        web_enabled=False,
        autodiscover=False,
        processing_guarantee="at_least_once",
        key_serializer="raw",
        value_serializer="raw",
        broker_commit_every=500,
        broker_commit_interval=1.0,
        broker_max_poll_records=500,
        broker_session_timeout=10.0,
        broker_heartbeat_interval=3.0,
        broker_request_timeout=30.0,
        broker_rebalance_timeout=30.0,
        broker_max_poll_interval=300.0,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=f"{app_id(config.prefix)}-{config.replica}",
        stream_buffer_maxsize=512,
        stream_wait_empty=False,
        producer_compression_type="zstd",
        table_standby_replicas=0,
        topic_allow_declare=False,
        topic_disable_leader=True,
    )
    outlet, progress, now = Outlet(app, config), Progress(), FleetTime(anchor)
    tables = {
        name: app.Table(
            name,
            partitions=partitions,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )
        for name, partitions in TABLES.items()
    }
    agents = {
        topic: Agent(topic, stage, tables[INPUTS[topic]], outlet, watch, progress)
        for topic, stage in _stages(config.fleet, tables, now).items()
    }
    for topic, agent in agents.items():
        source = raw_topic(app, config.prefix + topic)
        app.agent(source, name=f"observe.{topic}", concurrency=1)(agent.run)
    _follow_clock(app, config, now)

    async def forget(*_: object, **__: object) -> None:
        for agent in agents.values():
            agent.forget()

    app.on_partitions_revoked.connect(forget, weak=False)
    return Observing(app, progress)


def _stages(fleet: str, tables: Mapping[str, TrackedTable], now: FleetTime) -> dict[str, Stage]:
    def rows(name: str) -> Table:
        def read() -> Rows:
            return dict(tables[name].items())

        return read

    job_stage = JobStage(rows("jobs"), now.now_us)
    sample_stage = SampleStage(fleet, rows("pools"), now.now_us)
    return {
        "telemetry.jobs": job_stage,
        "internal.frames": FrameStage(fleet, rows("nodes"), job_stage),
        "telemetry.services": sample_stage,
        "telemetry.resources": sample_stage,
        "telemetry.tenants": sample_stage,
        "internal.partials": PoolStage(fleet, rows("pools"), ticking_shards(SHARDS)),
    }


def _follow_clock(app: faust.App, config: ObserveConfig, now: FleetTime) -> None:
    async def follow(stream: StreamT[bytes]) -> None:
        async for event in stream.events():
            anchor = message_of(record_of(event, CLOCK), ClockAnchor, fleet=config.fleet)
            if anchor is not None:
                now.follow(anchor)

    app.agent(raw_topic(app, config.prefix + CLOCK), name="observe.clock", concurrency=1)(follow)


def run(observing: Observing, watch: Watch, stop: threading.Event) -> None:
    """Run the application until `stop`; raise what crashed it."""
    asyncio.run(_run(observing.app, watch, stop))


async def _run(app: faust.App, watch: Watch, stop: threading.Event) -> None:
    app.in_worker = True
    app.finalize()
    await app.start()
    recovered = False
    while not stop.is_set() and not app.crashed:
        if not recovered and app.tables.recovery.completed.is_set():
            recovered = True
            watch.ready()
        await asyncio.sleep(POLL_SECONDS)
    await app.stop()
    if app.crash_reason is not None:
        raise app.crash_reason
