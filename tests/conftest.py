"""What tests of several kinds start: one real Kafka, PostgreSQL and engine per session."""

import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from gpuloop.ops.stack import kafka as kafka_stack
from gpuloop.ops.stack.kafka_jars import cache_folder, fetch
from gpuloop.ops.stack.ports import free_ports
from gpuloop.ops.stack.process import Child
from gpuloop.ops.stack.topics import Admin, wanted
from stores import Engine, Postgres, running_engine, running_postgres

# The components and stages of the contract tests are used by integration tests as well.
sys.path.insert(0, str(Path(__file__).parent / "contract"))


@dataclass
class Kafka:
    """A running single-node Kafka, with the catalogue's topics under any number of prefixes."""

    bootstrap_servers: str
    _prefixes: Iterator[int] = field(default_factory=itertools.count)

    def prefix(self) -> str:
        """Return a topic prefix of its own, with every topic of the catalogue under it."""
        prefix = f"t{next(self._prefixes)}."
        Admin(self.bootstrap_servers).apply(wanted(prefix))
        return prefix


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """Start Kafka once for the whole session and end it with it."""
    folder = tmp_path_factory.mktemp("kafka")
    classpath = fetch(cache_folder(), lambda done, total: None)
    ports = free_ports(Path(f"{folder}-{os.getpid()}"))
    port, controller_port = next(ports), next(ports)
    kafka_stack.configure(folder, classpath, port=port, controller_port=controller_port)
    child = Child(kafka_stack.program(folder, classpath), folder / "kafka.log")
    try:
        admin = Admin(f"127.0.0.1:{port}")
        while not admin.answers(1.0):
            if child.exit_status() is not None:
                pytest.fail((folder / "kafka.log").read_text()[-2000:])
        yield Kafka(f"127.0.0.1:{port}")
    finally:
        child.kill_group()
        child.reap(10.0)
        assert not psutil.pid_exists(child.pid)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """Start PostgreSQL once for the whole session and end it with it."""
    with running_postgres(tmp_path_factory.mktemp("postgres")) as found:
        yield found


@pytest.fixture(scope="session")
def clickhouse_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Start ClickHouse's engine once for the whole session and end it with it."""
    with running_engine(tmp_path_factory.mktemp("clickhouse")) as found:
        yield found


@pytest.fixture
def engine(clickhouse_engine: Engine) -> Engine:
    """Return the engine with nothing in it."""
    clickhouse_engine.empty()
    return clickhouse_engine
