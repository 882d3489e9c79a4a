"""What tests of several kinds start: one real Kafka, PostgreSQL and engine per session."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from own_kafka import OwnKafka
from shares import share_of
from stores import Engine, Postgres, running_engine, running_postgres

# The components and stages of the contract tests are used by integration tests as well.
sys.path.insert(0, str(Path(__file__).parent / "contract"))

# Hypothesis judges examples by what they show, never by how long a busy machine took.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Let several processes share the tests as `shares` says."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)  # type: ignore[arg-type]
    scheduler._split_scope = share_of  # type: ignore[method-assign]
    return scheduler


@dataclass
class Kafka:
    """A running single-node Kafka, with the catalogue's topics under any number of prefixes."""

    broker: OwnKafka
    _prefixes: Iterator[int] = field(default_factory=itertools.count)

    @property
    def bootstrap_servers(self) -> str:
        """Return where it listens."""
        return self.broker.bootstrap_servers

    def prefix(self) -> str:
        """Return a topic prefix of its own, with every topic of the catalogue under it."""
        prefix = f"t{next(self._prefixes)}."
        self.broker.topics(prefix)
        return prefix


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """Start Kafka once for the whole session and end it with it."""
    broker = OwnKafka(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield Kafka(broker)
    broker.kill()


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[OwnKafka]:
    """Start a broker that this test may kill."""
    broker = OwnKafka(tmp_path / "kafka")
    broker.start()
    broker.topics()
    yield broker
    broker.kill()


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
