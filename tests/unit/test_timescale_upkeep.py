"""What upkeep asks of a TimescaleDB, told by its statements: none is installed where tests run."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg

from gpuloop.loop.shells.timescale_schema import AGGREGATES, History, Keep
from gpuloop.schemas.units import HOUR_US
from gpuloop.streams.sinks.history import HISTORY
from gpuloop.streams.sinks.tables import moment

NOON_US = round(datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp() * 1e6)


class Connection:
    """Notes what it is asked to refresh."""

    def __init__(self) -> None:
        self.refreshed: list[tuple[Any, ...]] = []

    def execute(self, statement: object, values: tuple[Any, ...] | None = None) -> None:
        if "refresh_continuous_aggregate" in str(statement):
            self.refreshed.append(values or ())


def test_no_hour_stays_uncomputed_however_far_a_sink_came_between_two_refreshes() -> None:
    connection, keep = Connection(), Keep(days=14)
    history = History(cast("psycopg.Connection[Any]", connection), HISTORY, keep)
    history.hypertables = True
    for hours in (0, 30):
        history.tend(NOON_US + hours * HOUR_US)
    first, second = connection.refreshed[0], connection.refreshed[len(AGGREGATES)]
    assert first[2] == moment(NOON_US)
    assert second[1] <= first[2]
    assert second[2] == moment(NOON_US + 30 * HOUR_US)
    assert second[1] == second[2] - timedelta(days=14)
