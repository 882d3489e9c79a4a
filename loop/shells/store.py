"""One SQLite file in which a state, its input positions and its outbox change together.

Owns durability and nothing else: what is committed survives SIGKILL and power loss
(`synchronous=FULL`), and the file is locked, so that two processes cannot both be the same world.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gpuloop.loop.shells.broker import Partition
from gpuloop.schemas.codec import Encoded

_SCHEMA: Final = """
create table if not exists state (
    one integer primary key check (one = 1),
    version integer not null,
    world text not null,
    now_us integer not null,
    data blob not null
) strict;
create table if not exists positions (
    topic text not null, number integer not null, next integer not null,
    primary key (topic, number)
) strict, without rowid;
create table if not exists outbox (
    id integer primary key autoincrement,
    topic text not null,
    number integer,
    key blob not null,
    headers blob not null,
    value blob not null
) strict;
"""


class StoreError(RuntimeError):
    """The file is in use by another process or is not one of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the last transaction left."""

    version: int
    world: str
    now_us: int
    data: bytes
    positions: dict[Partition, int]


class Store:
    """The file. One thread uses it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection: Final = sqlite3.connect(path, isolation_level=None, timeout=2.0)
        try:
            self._connection.execute("pragma locking_mode = exclusive")
            self._connection.execute("pragma journal_mode = wal")
            self._connection.execute("pragma synchronous = full")
            self._connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise StoreError(f"{path}: {error}") from None

    def load(self) -> Stored | None:
        """Return what was last committed, or None in a new file."""
        row = self._connection.execute("select version, world, now_us, data from state").fetchone()
        if row is None:
            return None
        version, world, now_us, data = row
        positions = self._connection.execute("select topic, number, next from positions")
        return Stored(
            version=version,
            world=world,
            now_us=now_us,
            data=data,
            positions={Partition(topic, number): at for topic, number, at in positions},
        )

    def commit(
        self, stored: Stored, outputs: Sequence[Encoded], *, sent_through: int
    ) -> list[tuple[int, Encoded]]:
        """Replace what is stored, drop the outbox up to `sent_through` and append `outputs`.

        Returns:
            The appended outputs with their numbers in the outbox.

        """
        execute = self._connection.execute
        execute("begin immediate")
        try:
            execute(
                "insert or replace into state values (1, ?, ?, ?, ?)",
                (stored.version, stored.world, stored.now_us, stored.data),
            )
            self._connection.executemany(
                "insert or replace into positions values (?, ?, ?)",
                [(part.topic, part.number, at) for part, at in stored.positions.items()],
            )
            execute("delete from outbox where id <= ?", (sent_through,))
            appended = [(self._append(output), output) for output in outputs]
        except BaseException:
            execute("rollback")
            raise
        execute("commit")
        return appended

    def _append(self, output: Encoded) -> int:
        cursor = self._connection.execute(
            "insert into outbox (topic, number, key, headers, value) values (?, ?, ?, ?, ?)",
            (
                output.topic,
                output.partition,
                output.key,
                msgspec.msgpack.encode(output.headers),
                output.value,
            ),
        )
        return cursor.lastrowid or 0

    def outbox(self) -> list[tuple[int, Encoded]]:
        """Return what was committed to be sent and is not known to have been."""
        rows = self._connection.execute(
            "select id, topic, number, key, headers, value from outbox order by id"
        )
        return [
            (
                id_,
                Encoded(
                    topic=topic,
                    key=key,
                    headers=msgspec.msgpack.decode(headers, type=_HEADERS),
                    value=value,
                    partition=number,
                ),
            )
            for id_, topic, number, key, headers, value in rows
        ]

    def note_sent(self, through: int) -> None:
        """Drop the outbox up to a number without changing the state."""
        self._connection.execute("delete from outbox where id <= ?", (through,))

    def close(self) -> None:
        """Close the file and let another process have it."""
        self._connection.close()


_HEADERS: Final = tuple[tuple[str, bytes], ...]
