"""PostgreSQL as a store of history: rows and positions of a batch in one transaction.

A batch is copied into temporary tables and from there inserted, so that a fact that comes again
replaces itself. The positions move only from where the batch begins; where they are elsewhere,
another process moved them, and this one ends. What the tables look like is for `timescale_schema`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.sink_store import Batch, Fenced, Standing, StoreDown, StoreRefused
from gpuloop.loop.shells.timescale_schema import SCHEMA, History, Keep, staged
from gpuloop.loop.shells.timescale_session import connect
from gpuloop.loop.shells.timescale_upkeep import MOST_CHUNKS, Chunks, Partitions, Upkeep
from gpuloop.streams.sinks.tables import Catalogue, Row, Table

READ_ONLY: Final = "25006"
TOO_LARGE: Final = "54000"
"""Of a key that no index takes; the client files it under what passes by itself."""

T = TypeVar("T")


class TimescaleStore:
    """The store of one sink; `reader` names the sink among those that share the database."""

    def __init__(
        self,
        dsn: str,
        catalogue: Catalogue,
        *,
        reader: str,
        keep: Keep,
        password_file: Path | None = None,
    ) -> None:
        self._dsn: Final = dsn
        self._catalogue: Final = catalogue
        self._reader: Final = reader
        self._keep: Final = keep
        self._password_file: Final = password_file
        self._connection: psycopg.Connection[Any] | None = None
        self._upkeep: Upkeep | None = None
        self._hypertables = False

    def open(self, parts: Mapping[Partition, int]) -> dict[Partition, Standing]:
        """Connect anew, bring the tables to their present form, and return the positions."""
        self.close()
        return _told(lambda: self._open(parts))

    def write(self, batch: Batch) -> None:
        """Write rows and positions in one transaction."""
        _told(lambda: self._write(batch))

    def tend(self, fleet_us: int) -> None:
        """Make room ahead of fleet time, compress and drop what is old, refresh aggregates."""
        upkeep = self._upkeep
        assert upkeep is not None
        _told(lambda: upkeep.tend(fleet_us))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self, parts: Mapping[Partition, int]) -> dict[Partition, Standing]:
        dsn = self._dsn
        if self._password_file is not None and "password" not in conninfo_to_dict(dsn):
            try:
                dsn = make_conninfo(dsn, password=self._password_file.read_text().strip())
            except OSError as error:
                raise StoreDown(f"{self._password_file}: {error.strerror}") from None
        connection = self._connection = connect(dsn, name=self._reader)
        history = History(connection, self._catalogue)
        history.prepare()
        kind = Chunks if history.hypertables else Partitions
        self._upkeep = kind(connection, self._catalogue, self._keep)
        self._hypertables = history.hypertables
        if self._hypertables:
            # Late rows unpack what is compressed; where there were many, none would ever get in.
            connection.execute("set timescaledb.max_tuples_decompressed_per_dml_transaction = 0")
        for table in self._catalogue.tables:
            connection.execute(staged(table))
        return self._standing(connection, parts)

    def _standing(
        self, connection: psycopg.Connection[Any], parts: Mapping[Partition, int]
    ) -> dict[Partition, Standing]:
        with connection.cursor() as cursor:
            cursor.executemany(
                f"insert into {SCHEMA}.sink_offsets (reader, topic, partition, next)"  # noqa: S608
                " values (%s, %s, %s, %s) on conflict do nothing",
                [(self._reader, part.topic, part.number, at) for part, at in parts.items()],
            )
            found = cursor.execute(
                f"select topic, partition, next from {SCHEMA}.sink_offsets"  # noqa: S608
                " where reader = %s",
                (self._reader,),
            ).fetchall()
        known = {Partition(topic, number): Standing(at) for topic, number, at in found}
        return {part: known[part] for part in parts}

    def _write(self, batch: Batch) -> None:
        connection = self._connection
        if connection is None:
            raise StoreDown("there is no connection")
        rows: dict[str, list[Row]] = {}
        for found in batch.rows.values():
            for name, some in found.items():
                rows.setdefault(name, []).extend(some)
        self._refuse_too_many_days(rows)
        with connection.transaction(), connection.cursor() as cursor:
            for name, some in rows.items():
                _insert(cursor, self._catalogue[name], some)
            self._move(cursor, batch)

    def _refuse_too_many_days(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Have a batch halved that would need too many chunks at once."""
        for name, some in rows.items() if self._hypertables else ():
            at = self._catalogue[name].names.index("time")
            days = {moment.date() for row in some if isinstance(moment := row[at], datetime)}
            if len(days) > MOST_CHUNKS:
                raise StoreRefused(f"{name}: rows of {len(days)} days at once")

    def _move(self, cursor: psycopg.Cursor[Any], batch: Batch) -> None:
        spans = sorted(batch.spans.items())
        cursor.execute(
            f"update {SCHEMA}.sink_offsets o"  # noqa: S608
            " set next = v.next, written_at = now()"
            " from unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[])"
            " as v (topic, partition, first, next)"
            " where o.reader = %s and o.topic = v.topic and o.partition = v.partition"
            " and o.next = v.first",
            (
                [part.topic for part, _ in spans],
                [part.number for part, _ in spans],
                [span.first for _, span in spans],
                [span.next for _, span in spans],
                self._reader,
            ),
        )
        if cursor.rowcount != len(spans):
            raise Fenced(f"another process writes as {self._reader}: its positions have moved")


def _insert(cursor: psycopg.Cursor[Any], table: Table, rows: Sequence[Row]) -> None:
    """Copy rows into a table's stage and insert the last of each key."""
    stage = sql.Identifier(f"stage_{table.name}")
    columns = sql.SQL(", ").join(map(sql.Identifier, table.names))
    copy = sql.SQL("copy {} ({}, nth) from stdin").format(stage, columns)
    with cursor.copy(copy) as stream:
        for nth, row in enumerate(rows):
            stream.write_row((*row, nth))
    key = sql.SQL(", ").join(map(sql.Identifier, table.key))
    values = [sql.Identifier(name) for name in table.names if name not in table.key]
    cursor.execute(
        sql.SQL(
            "insert into {schema}.{table} as t ({columns})"
            " select distinct on ({key}) {columns} from {stage} order by {key}, nth desc"
            " on conflict ({key}) do update set {changes}"
            " where ({old}) is distinct from ({new})"
        ).format(
            schema=sql.Identifier(SCHEMA),
            table=sql.Identifier(table.name),
            stage=stage,
            columns=columns,
            key=key,
            changes=sql.SQL(", ").join(
                sql.SQL("{0} = excluded.{0}").format(value) for value in values
            ),
            old=sql.SQL(", ").join(sql.SQL("t.{}").format(value) for value in values),
            new=sql.SQL(", ").join(sql.SQL("excluded.{}").format(value) for value in values),
        )
    )


def _told(act: Callable[[], T]) -> T:
    """Return what `act` returns, and say in a sink's words what PostgreSQL says."""
    try:
        return act()
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        if error.sqlstate == TOO_LARGE:
            raise StoreRefused(_words(error)) from None
        raise StoreDown(_words(error)) from None
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        raise StoreRefused(_words(error)) from None
    except psycopg.Error as error:
        if error.sqlstate == READ_ONLY:
            raise StoreDown(_words(error)) from None
        raise


def _words(error: psycopg.Error) -> str:
    """Return an error's first line; the rest may hold what was written."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
