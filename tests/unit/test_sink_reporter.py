"""What a sink says of itself is what its supervisor hears."""

from collections.abc import Iterator

import pytest

from gpuloop.loop.services.health import Health, HealthServer
from gpuloop.loop.services.sinks import Reporter
from gpuloop.ops.stack import local, ports
from gpuloop.ops.stack.unit import Answer


@pytest.fixture
def served() -> Iterator[tuple[Reporter, int]]:
    health = Health("sink-timescale")
    server = HealthServer(health, host=ports.LOOPBACK, port=0)
    yield Reporter("sink-timescale", health), server.port
    server.close()


def test_sink_whose_store_is_away_runs_and_awaits_what_is_outside(
    served: tuple[Reporter, int],
) -> None:
    reporter, port = served
    reporter.outage("connection refused", 3, None)
    away = "the store is away, attempt 3, GPULOOP_POSTGRES_DSN: connection refused"
    assert local.ask(port) == Answer(False, away, outside=True)


def test_sink_whose_store_is_back_awaits_nothing(served: tuple[Reporter, int]) -> None:
    reporter, port = served
    reporter.outage("connection refused", 3, None)
    reporter.turn({}, lambda: 0)
    assert local.ask(port) == Answer(True, "0 rows written, 0 records behind")
