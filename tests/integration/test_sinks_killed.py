"""The sinks' own processes on a real Kafka: killed at any moment, and left without their store."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
import pytest

from faults.loops import FLEET
from faults.sinks import differences, in_clickhouse, in_postgres, recomputed, topics
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.clickhouse_schema import DATABASE
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.timescale_schema import SCHEMA
from gpuloop.ops.stack.local import health
from gpuloop.ops.stack.ports import free_ports
from gpuloop.schemas.codec import Encoded
from gpuloop.streams.sinks.analysis import ANALYSIS
from gpuloop.streams.sinks.history import HISTORY
from gpuloop.streams.sinks.tables import Catalogue, Row
from processes import until
from stores import Engine, Postgres

pytestmark = [pytest.mark.kafka, pytest.mark.stores]

KILLS = 5
MEMORY_BYTES = 192 * 2**20
"""What a container of a sink is allowed."""


@dataclass
class Subject:
    """One sink's process, its topics and its store."""

    name: str
    catalogue: Catalogue
    broker: KafkaBroker
    environment: dict[str, str]
    port: int
    stored: Callable[[], dict[str, list[Row]]]
    positions: Callable[[], dict[Partition, int]]
    break_store: Callable[[], None]
    mend_store: Callable[[], None]
    longest_wait_s: float
    """A sink lives for up to four of these: for some of its batches."""

    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPULOOP_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpuloop.loop.services", self.name],
            env=kept | self.environment | {"GPULOOP_HTTP_PORT": str(self.port)},
            stderr=subprocess.DEVNULL,
        )

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20.0)

    def is_drained(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the sink ended by itself"
        parts = [part for topic in self.catalogue.topics for part in self.broker.partitions(topic)]
        ends = self.broker.ends(parts)
        return all(self.positions().get(part, 0) >= ends[part] for part in parts)

    def says(self) -> str:
        report = health(self.port)
        return report.detail if report is not None else ""

    def wrong(self) -> list[str]:
        return differences(self.stored(), recomputed(self.broker, self.catalogue))


@pytest.fixture(params=["sink-timescale", "sink-clickhouse"])
def subject(
    request: pytest.FixtureRequest, kafka: Any, tmp_path: Path,
    postgres_server: Postgres, engine: Engine,
) -> Iterator[Subject]:  # fmt: skip
    prefix = kafka.prefix()
    common = {
        "GPULOOP_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "GPULOOP_TOPIC_PREFIX": prefix,
        "GPULOOP_FLEET": FLEET,
        "GPULOOP_STATE_DIR": str(tmp_path),
    }
    broker = KafkaBroker(kafka.bootstrap_servers, prefix=prefix)
    port = next(free_ports(tmp_path))
    if request.param == "sink-timescale":
        dsn = postgres_server.database()
        found = Subject(
            request.param, HISTORY, broker, common | {"GPULOOP_POSTGRES_DSN": dsn}, port,
            lambda: in_postgres(dsn), lambda: _positions(_asked(dsn)),
            postgres_server.kill, postgres_server.start, 0.8,
        )  # fmt: skip
    else:
        own = {
            "GPULOOP_CLICKHOUSE_URL": engine.url,
            "GPULOOP_CLICKHOUSE_PASSWORD_FILE": str(engine.password_file),
        }
        found = Subject(
            request.param, ANALYSIS, broker, common | own, port,
            lambda: in_clickhouse(engine), lambda: _positions(_answered(engine)),
            engine.kill, engine.start, 3.0,
        )  # fmt: skip
    try:
        yield found
    finally:
        if found.process is not None and found.process.poll() is None:
            found.end(signal.SIGKILL)
        broker.close()


def _asked(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        if connection.execute(f"select to_regclass('{SCHEMA}.sink_offsets')").fetchone() == (None,):
            return []
        return connection.execute(
            f"select topic, partition, next from {SCHEMA}.sink_offsets"
        ).fetchall()


def _answered(engine: Engine) -> list[tuple[Any, ...]]:
    if engine.query(f"exists {DATABASE}.sink_offsets") == [(0,)]:
        return []
    return engine.query(
        f"select topic, partition, next from {DATABASE}.sink_offsets final where kind = 1"
    )


def _positions(rows: list[tuple[Any, ...]]) -> dict[Partition, int]:
    return {Partition(topic, number): at for topic, number, at in rows}


def chunks(seed: int, number: int) -> list[list[Encoded]]:
    """Return what there is to say, duplicates and poison included, in so many parts."""
    logs = topics(seed, minutes=20).logs
    said = [
        Encoded(topic=r.topic, key=r.key or b"", headers=r.headers, value=r.value or b"")
        for log in logs.values()
        for r in log
        if len(r.key or b"") + len(r.value or b"") < 900_000
    ]
    order = np.random.default_rng(seed).permutation(len(said))
    mixed = [said[i] for i in order]
    size = -(-len(mixed) // number)
    return [mixed[at : at + size] for at in range(0, len(mixed), size)]


@pytest.mark.parametrize("seed", [1, 2])
def test_sigkill_at_random_moments_neither_loses_nor_doubles_a_row(
    subject: Subject, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    for part in chunks(seed, KILLS):
        subject.start()
        for some in np.array_split(np.arange(len(part)), 4):
            subject.broker.produce([part[i] for i in some])
            assert subject.process is not None
            with pytest.raises(subprocess.TimeoutExpired):
                subject.process.wait(float(rng.uniform(0.0, subject.longest_wait_s)))
        subject.end(signal.SIGKILL)
    subject.start()
    until(subject.is_drained, seconds=60.0)
    assert subject.end(signal.SIGTERM) == 0
    assert subject.wrong() == []
    assert sum(map(len, subject.stored().values())) > 150


def test_what_is_said_while_the_store_is_away_is_written_when_it_is_back(subject: Subject) -> None:
    before, during = chunks(3, 2)
    subject.start()
    subject.broker.produce(before)
    until(subject.is_drained, seconds=60.0)
    subject.break_store()
    try:
        subject.broker.produce(during)
        until(lambda: "the store is away" in subject.says(), seconds=60.0)
        assert subject.process is not None
        assert psutil.Process(subject.process.pid).memory_info().rss < MEMORY_BYTES
    finally:
        subject.mend_store()
    until(subject.is_drained, seconds=60.0)
    until(lambda: "rows written" in subject.says(), seconds=60.0)
    assert subject.end(signal.SIGTERM) == 0
    assert subject.wrong() == []


def test_a_sink_starts_before_its_store_and_waits_for_it(subject: Subject) -> None:
    subject.break_store()
    try:
        subject.start()
        until(lambda: "attempt 2" in subject.says(), seconds=60.0)
    finally:
        subject.mend_store()
    subject.broker.produce(chunks(4, 4)[0])
    until(subject.is_drained, seconds=60.0)
    assert subject.end(signal.SIGTERM) == 0
    assert subject.wrong() == []
