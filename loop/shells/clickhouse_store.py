"""ClickHouse as a store of what was decided, done and earned.

It has no transactions, so a batch is made repeatable instead. Its span on each partition is written
down before its rows (`begun`) and again after them (`done`); a batch that was begun and not done is
read from the topic again, in the same span, and inserted under the same tokens, which the server
recognises. Should it have forgotten them, rows of one event still replace each other, and the
hourly aggregates are computed anew for the hours that a batch touched: they replace, never add.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import clickhouse_connect
import msgspec
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, Error

from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.clickhouse_schema import (
    AGGREGATES,
    DATABASE,
    column,
    creations,
    refresh,
)
from gpuloop.loop.shells.sink_store import Batch, Fenced, Span, Standing, StoreDown, StoreRefused
from gpuloop.streams.sinks.tables import Catalogue, Row, Rows, Table, Value, moment

CONNECT_SECONDS: Final = 5
ANSWER_SECONDS: Final = 60
BEGUN, DONE = 0, 1

_CONTENT: Final = frozenset({6, 26, 27, 33, 38, 41, 53, 69, 70, 72, 117, 130, 131, 321, 349, 407})
"""Codes by which the server says that it cannot read a value."""
_BROKEN: Final = frozenset({16, 36, 43, 46, 47, 48, 57, 62, 80, 115, 164, 192, 193, 194, 497, 516})
"""Codes that no waiting mends: unknown columns or settings, syntax, rights, passwords."""

_INSERT: Final = {
    "insert_deduplicate": 1,
    "input_format_parallel_parsing": 0,  # One block, so that one token names all of it.
    "date_time_input_format": "best_effort",
    "async_insert": 0,
}

_encoder: Final = msgspec.json.Encoder()


class _Position(msgspec.Struct, frozen=True):
    topic: str
    partition: int
    kind: int
    first: int
    next: int
    change: int


class ClickHouseStore:
    """The store of one sink; `reader` names the sink among those that share the database."""

    def __init__(
        self,
        url: str,
        catalogue: Catalogue,
        *,
        reader: str,
        keep_days: float,
        user: str = "default",
        password_file: Path | None = None,
    ) -> None:
        self._url: Final = url
        self._catalogue: Final = catalogue
        self._reader: Final = reader
        self._keep: Final = timedelta(days=keep_days)
        self._user: Final = user
        self._password_file: Final = password_file
        self._lazy_client: Client | None = None
        self._change = 0
        self._next: dict[Partition, int] = {}

    def open(self, parts: Mapping[Partition, int]) -> dict[Partition, Standing]:
        """Connect anew, make what is missing, and return the positions."""
        self.close()
        try:
            self._lazy_client = self._connected()
        except ClickHouseError as error:
            told = _told(error)
            if isinstance(told, StoreDown):
                told = StoreDown(f"{urlsplit(self._url).netloc.rpartition('@')[2]}: {told}")
            raise told from None
        self._make()
        return self._standing(parts)

    def write(self, batch: Batch) -> None:
        """Write down the spans, insert the rows, bring the aggregates up to date, and say so."""
        for part, span in batch.spans.items():
            if self._next.get(part) != span.first:
                raise Fenced(f"{part} stands at {self._next.get(part)}, not at {span.first}")
        self._note(BEGUN, batch.spans)
        for part, rows in batch.rows.items():
            for name, some in rows.items():
                self._insert(self._catalogue[name], some, part, batch.spans[part])
        self._aggregate(batch.rows.values())
        self._note(DONE, batch.spans)
        self._next |= {part: span.next for part, span in batch.spans.items()}

    def tend(self, fleet_us: int) -> None:
        """Drop the months that lie wholly before what is kept."""
        oldest = int(f"{moment(fleet_us) - self._keep:%Y%m}")
        for name in (*(table.name for table in self._catalogue.tables), *AGGREGATES):
            found = self._ask(
                "select distinct partition from system.parts where active"  # noqa: S608
                f" and database = '{DATABASE}' and table = '{name}' format TSV"
            ).split()
            for month in found:
                if month.isdecimal() and int(month) < oldest:
                    self._ask(f"alter table {DATABASE}.{name} drop partition {int(month)}")

    def close(self) -> None:
        """Close the connections."""
        if self._lazy_client is not None:
            self._lazy_client.close()
            self._lazy_client = None

    # Connecting.

    def _connected(self) -> Client:
        at = urlsplit(self._url)
        secret = at.password or ""
        if self._password_file is not None and at.password is None:
            try:
                secret = self._password_file.read_text().strip()
            except OSError as error:
                raise StoreDown(f"{self._password_file}: {error.strerror}") from None
        return clickhouse_connect.get_client(
            interface=at.scheme,
            host=at.hostname or "localhost",
            port=at.port or 8123,
            username=at.username or self._user,
            password=secret,
            compress=False,
            connect_timeout=CONNECT_SECONDS,
            send_receive_timeout=ANSWER_SECONDS,
            query_retries=0,
            autogenerate_session_id=False,
        )

    def _ask(self, statement: str) -> str:
        """Return what a statement returns."""
        if self._lazy_client is None:
            raise StoreDown("there is no connection")
        try:
            return self._lazy_client.raw_query(statement).decode()
        except ClickHouseError as error:
            raise _told(error) from None

    def _make(self) -> None:
        """Create the tables that are missing, and add columns that older ones lack."""
        found = self._ask(
            "select table || '.' || name from system.columns"  # noqa: S608
            f" where database = '{DATABASE}' format TSV"
        ).split()
        tables = {name.partition(".")[0] for name in found}
        for name, statement in creations(self._catalogue):
            if name not in tables:
                self._ask(statement)
        for table in self._catalogue.tables:
            for one in table.columns if table.name in tables else ():
                if f"{table.name}.{one.name}" not in found:
                    self._ask(
                        f"alter table {DATABASE}.{table.name}"
                        f" add column if not exists {column(one)}"
                    )

    # Positions.

    def _standing(self, parts: Mapping[Partition, int]) -> dict[Partition, Standing]:
        lines = self._ask(
            f"select topic, partition, kind, first, next, change from {DATABASE}.sink_offsets final"  # noqa: S608
            f" where reader = {_quoted(self._reader)} format JSONEachRow"
            " settings output_format_json_quote_64bit_integers = 0"
        ).splitlines()
        found = [msgspec.json.decode(line, type=_Position) for line in lines]
        self._change = max((one.change for one in found), default=0)
        known = {(Partition(one.topic, one.partition), one.kind): one for one in found}
        standing: dict[Partition, Standing] = {}
        for part, begin in parts.items():
            done, begun = known.get((part, DONE)), known.get((part, BEGUN))
            at = done.next if done else begun.first if begun else begin
            goes_on = begun is not None and begun.first == at and begun.next > at
            standing[part] = Standing(at, begun.next if begun and goes_on else None)
        self._next = {part: stands.next for part, stands in standing.items()}
        return standing

    def _note(self, kind: int, spans: Mapping[Partition, Span]) -> None:
        self._change += 1
        rows = [
            {
                "reader": self._reader, "topic": part.topic, "partition": part.number,
                "kind": kind, "first": span.first, "next": span.next, "change": self._change,
            }
            for part, span in sorted(spans.items())
        ]  # fmt: skip
        self._send("sink_offsets", tuple(rows[0]), _encoder.encode_lines(rows), {})

    # Rows.

    def _insert(self, table: Table, rows: Sequence[Row], part: Partition, span: Span) -> None:
        """Insert the rows that a span of a partition makes, under a token that names them."""
        names = (*table.names, "topic", "partition", "written_through")
        lines = _encoder.encode_lines(
            [dict(zip(names, (*map(_plain, row), *part, span.next), strict=True)) for row in rows]
        )
        token = f"{self._reader}:{part.topic}:{part.number}:{span.first}-{span.next - 1}"
        self._send(table.name, names, lines, {"insert_deduplication_token": token})

    def _send(
        self, table: str, names: Sequence[str], lines: bytes, settings: dict[str, Any]
    ) -> None:
        if self._lazy_client is None:
            raise StoreDown("there is no connection")
        try:
            self._lazy_client.raw_insert(
                f"{DATABASE}.{table}",
                column_names=list(names),
                insert_block=lines,
                settings=_INSERT | settings,
                fmt="JSONEachRow",
            )
        except ClickHouseError as error:
            raise _told(error) from None

    def _aggregate(self, written: Iterable[Rows]) -> None:
        hours: dict[str, set[datetime]] = {}
        for rows in written:
            for name, some in rows.items():
                at = self._catalogue[name].names.index("time")
                hours.setdefault(name, set()).update(_hour(row[at]) for row in some)
        for name, aggregate in AGGREGATES.items():
            touched = hours.get(aggregate.table)
            if touched:
                self._ask(refresh(name, sorted(touched)))


def _plain(value: Value) -> object:
    """Return a value as the server reads it from JSON."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    return value


def _hour(value: Value) -> datetime:
    assert isinstance(value, datetime)
    return value.replace(minute=0, second=0, microsecond=0)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _cause(error: BaseException) -> BaseException:
    """Return the error that led to this one."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return error


def _told(error: ClickHouseError) -> Exception:
    """Return what a sink makes of an error: wait, look for the record, or end."""
    code = error.code if isinstance(error, Error) else None
    # What the client says of a server that it did not reach is mostly the address it asked for.
    words = str(_cause(error)).strip().partition("\n")[0][:500]
    if code in _CONTENT:
        return StoreRefused(words)
    return error if code in _BROKEN else StoreDown(words)
