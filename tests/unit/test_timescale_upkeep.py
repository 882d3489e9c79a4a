"""What upkeep asks of a TimescaleDB, told by its statements; on a real one in `integration`."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg

from gpuloop.loop.shells.timescale_schema import AGGREGATES, Keep
from gpuloop.loop.shells.timescale_upkeep import Chunks
from gpuloop.schemas.units import HOUR_US
from gpuloop.streams.sinks.history import HISTORY
from gpuloop.streams.sinks.tables import moment

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
NOON_US = round(NOON.timestamp() * 1e6)
FIRST = NOON - timedelta(days=3)


class Connection:
    """Notes what it is asked to refresh; its rows begin at `FIRST`, and it has no chunks."""

    def __init__(self) -> None:
        self.refreshed: dict[str, list[tuple[datetime | None, datetime]]] = {}

    def execute(self, statement: object, values: tuple[Any, ...] = ()) -> "Connection":
        if "refresh_continuous_aggregate" in str(statement):
            name, begin, end = values
            self.refreshed.setdefault(name, []).append((begin, end))
        return self

    def fetchone(self) -> tuple[datetime]:
        return (FIRST,)

    def fetchall(self) -> list[tuple[Any, ...]]:
        return []


def test_all_hours_are_looked_at_each_time_and_at_first_no_more_than_a_day_at_once() -> None:
    connection = Connection()
    upkeep = Chunks(cast("psycopg.Connection[Any]", connection), HISTORY, Keep(days=14))
    upkeep.tend(NOON_US)
    first = {name: list(asked) for name, asked in connection.refreshed.items()}
    upkeep.tend(NOON_US + 30 * HOUR_US)
    assert len(first) == len(AGGREGATES)
    for name, asked in first.items():
        (start, _), *days = asked
        assert start is None
        assert [begin for begin, _ in days] == [end for _, end in asked[:-1]]
        assert all(end - begin <= timedelta(days=1) for begin, end in days if begin)
        assert asked[-1][1] == NOON
        later = connection.refreshed[name][len(asked) :]
        assert later == [(None, moment(NOON_US + 30 * HOUR_US))]
