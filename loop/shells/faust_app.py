"""The observe stage on Faust: one agent per input topic, three tables with changelogs.

It owns the wiring and the settings that keep the library's known hazards away: one actor per
agent, static membership, topics declared elsewhere, no web server, nothing but bytes through its
serializers. What a record leads to is the stages' business, how it is handled the agents'.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import faust
from faust.tables.manager import TableManager
from faust.types import StreamT

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.faust_agent import (
    EXIT_FAILED,
    Agent,
    Watch,
    raw_topic,
    record_of,
)
from gpuloop.loop.shells.faust_consumer import Positions, SettledConsumer, SettledTransport
from gpuloop.loop.shells.faust_outlet import BATCH_BYTES, NotedTable, Outlet
from gpuloop.loop.shells.faust_records import tolerate_any_header
from gpuloop.loop.shells.faust_security import broker_credentials
from gpuloop.loop.shells.faust_stages import (
    FrameStage,
    JobStage,
    PoolStage,
    Rows,
    SampleStage,
    Stage,
    Table,
)
from gpuloop.loop.shells.faust_tables import TABLES, app_id
from gpuloop.loop.shells.journal import message_of
from gpuloop.loop.shells.timekeeping import CLOCK, Timekeeper
from gpuloop.schemas.catalogue import SHARDS
from gpuloop.schemas.messages import ClockAnchor
from gpuloop.streams.observe import ticking_shards

POLL_SECONDS: Final = 0.1

log: Final = logging.getLogger(__name__)

INPUTS: Final[dict[str, str]] = {
    "internal.frames": "nodes",
    "telemetry.jobs": "jobs",
    "telemetry.services": "pools",
    "telemetry.resources": "pools",
    "telemetry.tenants": "pools",
    "internal.partials": "pools",
}
"""Input topics and the table that is written during their events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveConfig:
    """Where the application runs. `replica` is stable over restarts: it is the static member."""

    bootstrap_servers: str
    fleet: str
    prefix: str = ""
    replica: str = "main"
    kafka_config: Path | None = None


class FleetTime:
    """The fleet clock as far as this process knows it, from the anchors there were at its start."""

    def __init__(self, anchors: Sequence[ClockAnchor]) -> None:
        self._time: Final = Timekeeper()
        self._time.open(anchors, clock.wall_us())

    def hear(self, anchor: ClockAnchor) -> bool:
        """Heed an anchor and say whether it is followed."""
        return self._time.hear(anchor, clock.wall_us())

    def now_us(self) -> int | None:
        """Return fleet time, or None before the first anchor."""
        known = self._time.clock
        return None if known is None else known.now_us(clock.wall_us())


@dataclass(frozen=True, slots=True)
class Observing:
    """The application with what a process watches of it."""

    app: faust.App
    positions: Positions


def build(
    config: ObserveConfig,
    watch: Watch,
    anchors: Sequence[ClockAnchor] = (),
    *,
    clock_from: int = 0,
) -> Observing:
    """Return the application; `anchors` are the newest before offset `clock_from` of the clock."""
    addresses = [f"kafka://{address}" for address in config.bootstrap_servers.split(",")]
    app = faust.App(
        app_id(config.prefix),
        version=1,
        broker=addresses,
        broker_credentials=broker_credentials(config.kafka_config),
        store="memory://",
        Table=NotedTable,
        # A static member is given its old assignment with the address that it had, and the library
        # takes an address that changed, as a container's does, for a broken invariant.
        canonical_url=f"http://{config.replica}",
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
        producer_max_batch_size=BATCH_BYTES,
        table_standby_replicas=0,
        topic_allow_declare=False,
        topic_disable_leader=True,
    )
    tolerate_any_header()
    positions = Positions()
    app.transport = SettledTransport(app, addresses, positions)
    outlet = Outlet(app, fleet=config.fleet, prefix=config.prefix)
    now = FleetTime(anchors)
    tables = {
        name: cast(
            NotedTable,
            app.Table(name, partitions=partitions, key_type=bytes, value_type=bytes),
        )
        for name, partitions in TABLES.items()
    }
    agents = {
        topic: Agent(topic, stage, tables[INPUTS[topic]], outlet, watch, positions)
        for topic, stage in _stages(config.fleet, tables, now).items()
    }
    for topic, agent in agents.items():
        source = raw_topic(app, config.prefix + topic)
        app.agent(source, name=f"observe.{topic}", concurrency=1)(agent.run)
    _follow_clock(app, config, now, watch, clock_from)

    async def forget(*_: object, **__: object) -> None:
        positions.forget()
        for agent in agents.values():
            agent.forget()

    app.on_partitions_revoked.connect(forget, weak=False)
    return Observing(app, positions)


def _stages(fleet: str, tables: Mapping[str, NotedTable], now: FleetTime) -> dict[str, Stage]:
    def rows(name: str) -> Table:
        def read() -> Rows:
            return dict(tables[name].items())

        return read

    job_stage = JobStage(rows("jobs"), now.now_us)
    sample_stage = SampleStage(fleet, rows("pools"), now.now_us)
    return {
        "telemetry.jobs": job_stage,
        "internal.frames": FrameStage(fleet, rows("nodes"), job_stage, now.now_us),
        "telemetry.services": sample_stage,
        "telemetry.resources": sample_stage,
        "telemetry.tenants": sample_stage,
        "internal.partials": PoolStage(fleet, rows("pools"), ticking_shards(SHARDS)),
    }


def _follow_clock(
    app: faust.App, config: ObserveConfig, now: FleetTime, watch: Watch, clock_from: int
) -> None:
    async def follow(stream: StreamT[bytes]) -> None:
        async for event in stream.events():
            record = record_of(event, CLOCK.topic)
            if record.offset < clock_from:
                continue  # The application began with what was said until there.
            anchor = message_of(record, ClockAnchor, fleet=config.fleet)
            if anchor is not None and not now.hear(anchor):
                watch.passed_over("clock anchors")

    app.agent(raw_topic(app, config.prefix + CLOCK.topic), name="observe.clock", concurrency=1)(
        follow
    )


def run(observing: Observing, watch: Watch, stop: threading.Event) -> None:
    """Run the application until `stop`; raise what crashed it."""
    asyncio.run(_run(observing, watch, stop))


async def _run(observing: Observing, watch: Watch, stop: threading.Event) -> None:
    app, positions = observing.app, observing.positions
    app.in_worker = True
    app.finalize()
    await app.start()
    while not stop.is_set() and not app.crashed:
        if not positions.ready:
            recovery = cast(TableManager, app.tables).recovery
            positions.restored = sum(recovery.active_offsets.values())
            if recovery.completed.is_set():
                positions.ready = True
                watch.ready()
        if app.consumer is not None:
            error = cast(SettledConsumer, app.consumer).coordination_error()
            if error is not None:
                # Nothing is fetched or committed any more, and a clean stop would wait for both.
                log.error("lost the consumer group", exc_info=error)
                os._exit(EXIT_FAILED)
        await asyncio.sleep(POLL_SECONDS)
    await app.stop()
    if app.crash_reason is not None:
        raise app.crash_reason
