"""Upkeep of the tables of history by fleet time: room ahead, retention, compression, aggregates.

The extension's own policies go by the wall clock, by which a twin's year 2017 is old at birth, so
a sink does what they would do. Each statement is short work and stands for itself: what was done
stays done when a later one is put off, however much there was to do.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import sql

from gpuloop.loop.shells.timescale_schema import AGGREGATES, LOCK, SCHEMA, Keep
from gpuloop.streams.sinks.tables import Catalogue, Table, moment

AHEAD_DAYS: Final = 2
MOST_DAYS: Final = 400
"""Older days get no partition of their own; there would be too many."""

MOST_CHUNKS: Final = 64
"""So many days one transaction touches: each chunk takes locks, of which a server has so many.
Absurdly dated rows reach it, and prices of years."""

DAY: Final = timedelta(days=1)


@dataclass(eq=False)
class Upkeep(ABC):
    """Keeps the tables of a catalogue in order, whatever they are made of."""

    connection: psycopg.Connection[Any]
    catalogue: Catalogue
    keep: Keep

    @abstractmethod
    def tend(self, fleet_us: int) -> None:
        """Make room ahead of fleet time; compress, refresh and drop what is old by it."""


@dataclass(eq=False)
class Partitions(Upkeep):
    """Upkeep of native partitions, one for each day; the aggregates are views and need none."""

    _days: dict[str, set[datetime]] = field(default_factory=dict, init=False)

    def tend(self, fleet_us: int) -> None:
        """Have the partitions of the days around `fleet_us`, and none that is too old."""
        now = moment(fleet_us)
        for table in self.catalogue.tables:
            self._tend(table, now, now - timedelta(days=self.keep.days))

    def _tend(self, table: Table, now: datetime, cutoff: datetime) -> None:
        """Have a partition for each day from yesterday on, and for older days that have rows."""
        known = self._days.get(table.name)
        if known is None:
            known = self._days[table.name] = self._partitions(table)
        today = _day(now)
        wanted = {today + n * DAY for n in range(-1, AHEAD_DAYS + 1)}
        wanted |= self._unplaced(table, max(_day(cutoff), _day(now) - MOST_DAYS * DAY), max(wanted))
        for day in sorted(wanted - known):
            self._locked(partial(self._add, table, day))
            known.add(day)
        for day in sorted(day for day in known if day + DAY <= cutoff):
            self._locked(partial(self._drop, table, day))
            known.discard(day)
        self.connection.execute(
            f"delete from {SCHEMA}.{table.name}_rest where time < %s",  # noqa: S608
            (cutoff,),
        )

    def _unplaced(self, table: Table, first: datetime, last: datetime) -> set[datetime]:
        """Return the days of [first, last) that have rows without a partition of their own."""
        found = self.connection.execute(
            f"select distinct date_trunc('day', time, 'UTC') from {SCHEMA}.{table.name}_rest"  # noqa: S608
            " where time >= %s and time < %s",
            (first, last),
        ).fetchall()
        return {day.astimezone(UTC) for (day,) in found}

    def _partitions(self, table: Table) -> set[datetime]:
        found = self.connection.execute(
            "select child.relname from pg_inherits i join pg_class child on child.oid = i.inhrelid"
            " where i.inhparent = %s::regclass",
            (f"{SCHEMA}.{table.name}",),
        ).fetchall()
        days = (name.rpartition("_")[2] for (name,) in found)
        return {datetime.strptime(d, "%Y%m%d").replace(tzinfo=UTC) for d in days if d.isdecimal()}

    def _add(self, table: Table, day: datetime) -> None:
        """Add a day's partition; rows of it that came before it move over from the rest."""
        name = f"{table.name}_{day:%Y%m%d}"
        place = {
            "schema": sql.Identifier(SCHEMA),
            "table": sql.Identifier(table.name),
            "rest": sql.Identifier(f"{table.name}_rest"),
            "part": sql.Identifier(name),
            "first": sql.Literal(day),
            "next": sql.Literal(day + DAY),
        }
        known = self.connection.execute("select to_regclass(%s)", (f"{SCHEMA}.{name}",)).fetchone()
        if known and known[0]:
            return
        for statement in (
            "create table {schema}.{part} (like {schema}.{table} including defaults"
            " including constraints)",
            "with moved as (delete from {schema}.{rest} where time >= {first} and time < {next}"
            " returning *) insert into {schema}.{part} select * from moved",
            "alter table {schema}.{table} attach partition {schema}.{part}"
            " for values from ({first}) to ({next})",
        ):
            self.connection.execute(sql.SQL(statement).format(**place))

    def _drop(self, table: Table, day: datetime) -> None:
        self.connection.execute(
            sql.SQL("drop table if exists {}.{}").format(
                sql.Identifier(SCHEMA), sql.Identifier(f"{table.name}_{day:%Y%m%d}")
            )
        )

    def _locked(self, act: Callable[[], None]) -> None:
        with self.connection.transaction():
            self.connection.execute("select pg_advisory_xact_lock(%s)", (LOCK,))
            act()


@dataclass(eq=False)
class Chunks(Upkeep):
    """Upkeep of hypertables, whose chunks of a day come by themselves."""

    _computed: set[str] = field(default_factory=set, init=False)
    """The aggregates that this process has seen complete up to some hour."""

    def tend(self, fleet_us: int) -> None:
        """Drop chunks and hours that are too old, compute the hours that changed, compress."""
        now = moment(fleet_us)
        cutoff = now - timedelta(days=self.keep.days)
        hour = now.replace(minute=0, second=0, microsecond=0)
        for table in self.catalogue.tables:
            self._drop(table.name, cutoff)
        for name, (table_name, _, _) in AGGREGATES.items():
            self._compute(name, table_name, hour)
            self._drop(name, cutoff)
        for table in self.catalogue.tables:
            self._compress(table, now - timedelta(days=self.keep.compress_after_days))

    def _drop(self, name: str, cutoff: datetime) -> None:
        """Drop the chunks that lie wholly before `cutoff`, so many at once as locks allow."""
        found = self.connection.execute(
            "select range_end from timescaledb_information.chunks"
            " join show_chunks(%s::regclass, older_than => %s::timestamptz) c"
            " on c = format('%%I.%%I', chunk_schema, chunk_name)::regclass order by 1",
            (f"{SCHEMA}.{name}", cutoff),
        ).fetchall()
        for at in range(0, len(found), MOST_CHUNKS):
            (end,) = found[min(at + MOST_CHUNKS, len(found)) - 1]
            self.connection.execute(
                "select drop_chunks(%s::regclass, older_than => %s::timestamptz)",
                (f"{SCHEMA}.{name}", end),
            )

    def _compute(self, name: str, table: str, hour: datetime) -> None:
        """Compute an aggregate's hours before `hour`: those that changed, as the server knows.

        From the beginning of time, since late rows change old hours, dropping a chunk clears its
        hours, and none below the last that was computed is ever shown as its rows have it. Day by
        day at first: all that is kept may be too much for one statement.
        """
        days: list[datetime] = []
        if name not in self._computed:
            found = self.connection.execute(
                f"select min(time) from {SCHEMA}.{table} where time < %s",  # noqa: S608
                (hour,),
            ).fetchone()
            if found and found[0] is not None:
                first = _day(found[0].astimezone(UTC))
                days = [first + n * DAY for n in range((hour - first).days + 1)]
        for begin, end in zip([None, *days], [*days, hour], strict=True):
            if begin != end:
                self.connection.execute(
                    "call refresh_continuous_aggregate("
                    "%s::regclass, %s::timestamptz, %s::timestamptz)",
                    (f"{SCHEMA}.{name}", begin, end),
                )
        self._computed.add(name)

    def _compress(self, table: Table, before: datetime) -> None:
        """Compress what is older and has not been, or has taken late rows since."""
        found = self.connection.execute(
            "select c::text from show_chunks(%s::regclass, older_than => %s::timestamptz) c",
            (f"{SCHEMA}.{table.name}", before),
        ).fetchall()
        for (chunk,) in found:
            self.connection.execute(
                "select compress_chunk(%s::regclass, if_not_compressed => true)", (chunk,)
            )


def _day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
