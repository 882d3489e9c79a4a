"""A table as a store-neutral declaration: its columns, their kinds, and how a message fills them.

A row is a function of its message alone, so a table can be recomputed from its topics at any time:
rows of one key are one fact, and of several the one read last holds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.messages import Message
from gpuloop.schemas.units import calendar_time

Kind = Literal[
    "text", "word", "int", "float", "bool", "time", "texts", "ints", "floats", "measures"
]
"""`word` is text of few different values, which a store may keep as a dictionary; `measures` are
numbers of which any may be missing."""

Value = (
    str
    | int
    | float
    | bool
    | datetime
    | list[str]
    | list[int]
    | list[float]
    | list[float | None]
    | None
)
Row = tuple[Value, ...]

LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)
"""No row is dated later: stores' calendars end at different times, and all hold this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A message, the part of it that one row is about, and the id under which it arrived."""

    message: Any
    part: Any
    event_id: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column and where its value comes from; `nullable` where a message may not say."""

    name: str
    kind: Kind
    of: Callable[[Source], Value]
    nullable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table, the messages it is made of and the columns that name one fact.

    `parts` returns what each row is about, where a message makes other than one row. Every table
    has a column `time` and counts it among its `key`.
    """

    name: str
    message: type[Message]
    topics: tuple[str, ...]
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    about: str
    parts: Callable[[Any], Iterable[Any]] = lambda message: (message,)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the columns, in the order of a row."""
        return tuple(column.name for column in self.columns)

    def rows(self, message: Message, event_id: str) -> list[Row]:
        """Return the rows that a message makes, which may be none.

        Raises:
            BadInput: it is dated where no store's calendar reaches.

        """
        sources = (
            Source(message=message, part=part, event_id=event_id) for part in self.parts(message)
        )
        return [tuple(column.of(source) for column in self.columns) for source in sources]


Rows = dict[str, list[Row]]
"""Rows by the name of their table."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The tables of one sink."""

    tables: tuple[Table, ...]

    @property
    def topics(self) -> tuple[str, ...]:
        """Return the topics that the tables are made of, each once."""
        return tuple(dict.fromkeys(topic for table in self.tables for topic in table.topics))

    def __getitem__(self, name: str) -> Table:
        """Return a table by its name."""
        return next(table for table in self.tables if table.name == name)

    def rows(self, topic: str, message: Message, event_id: str) -> Rows:
        """Return everything that a message on a topic puts into the tables."""
        found: Rows = {}
        for table in self.tables:
            if topic in table.topics and isinstance(message, table.message):
                rows = table.rows(message, event_id)
                if rows:
                    found[table.name] = rows
        return found


# What most columns are: a field of the message, or of the part.


def field(name: str, kind: Kind, *, at: str = "", nullable: bool = False) -> Column:
    """Return the column of a message's field, named like it unless `at` says where it is."""
    place = at or name
    return Column(name, kind, lambda source: getattr(source.message, place), nullable)


def fields(kind: Kind, *names: str) -> tuple[Column, ...]:
    """Return one column for each field named."""
    return tuple(field(name, kind) for name in names)


def time_of(at: str) -> Column:
    """Return the column `time`, from a field in microseconds."""
    return Column("time", "time", lambda source: moment(getattr(source.message, at)))


def event_id() -> Column:
    """Return the column that names the event."""
    return Column("event_id", "text", lambda source: source.event_id)


def moment(time_us: int) -> datetime:
    """Return a time as stores hold it; raises `BadInput` after `LATEST`."""
    found = calendar_time(time_us)
    if found is None or found >= LATEST:
        raise BadInput("out_of_range", f"dated {time_us} us, later than {LATEST:%Y}")
    return found
