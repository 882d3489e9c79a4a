"""One SQLite file in which a state, its input positions and its outbox change together.

Owns durability and nothing else: what is committed survives SIGKILL and power loss
(`synchronous=FULL`), and the file is locked, so that two processes cannot both be the same world.
A file that is damaged is refused with a line that says so and what can be done; the state is under
a digest, because SQLite would hand out changed bytes.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gpuloop.loop.shells.broker import Partition
from gpuloop.schemas.codec import Encoded
from gpuloop.schemas.errors import Explained
from gpuloop.schemas.identity import sha256_of

_SCHEMA: Final = """
create table if not exists state (
    one integer primary key check (one = 1),
    version integer not null,
    world text not null,
    now_us integer not null,
    data blob not null
) strict;
create table if not exists digest (
    one integer primary key check (one = 1),
    sha256 text not null
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


SMALLEST_BYTES: Final = 512
"""A page of SQLite, and so its file, is no smaller."""


class StoreError(Explained):
    """The file cannot be used: held by another process, damaged, not one of ours, or out of room.

    A full disk passes, so who is started again goes on at the last transaction.
    """


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
        self._path: Final = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size < SMALLEST_BYTES:
            raise self._damaged("it was cut")  # SQLite would call it new.
        self._connection: Final = sqlite3.connect(path, isolation_level=None, timeout=2.0)
        try:
            with self._explained():
                self._connection.execute("pragma locking_mode = exclusive")
                self._connection.execute("pragma journal_mode = wal")
                self._connection.execute("pragma synchronous = full")
                self._connection.executescript(_SCHEMA)
                found = self._connection.execute("pragma quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise self._damaged(found.replace("\n", " "))
        except StoreError:
            self._connection.close()
            raise

    def load(self) -> Stored | None:
        """Return what was last committed, or None in a new file.

        Raises:
            StoreError: it is not what was committed.

        """
        execute = self._connection.execute
        with self._explained():
            row = execute("select version, world, now_us, data from state").fetchone()
            if row is None:
                return None
            version, world, now_us, data = row
            positions = execute("select topic, number, next from positions")
            stored = Stored(
                version=version,
                world=world,
                now_us=now_us,
                data=data,
                positions={Partition(topic, number): at for topic, number, at in positions},
            )
            digest = execute("select sha256 from digest").fetchone()
        if digest is not None and digest[0] != _digest(stored):
            raise self._damaged("the state is not what was written")
        return stored

    def commit(
        self, stored: Stored, outputs: Sequence[Encoded], *, sent_through: int
    ) -> list[tuple[int, Encoded]]:
        """Replace what is stored, drop the outbox up to `sent_through` and append `outputs`.

        Returns:
            The appended outputs with their numbers in the outbox.

        """
        with self._explained():
            return self._commit(stored, outputs, sent_through)

    def _commit(
        self, stored: Stored, outputs: Sequence[Encoded], sent_through: int
    ) -> list[tuple[int, Encoded]]:
        execute = self._connection.execute
        execute("begin immediate")
        try:
            execute(
                "insert or replace into state values (1, ?, ?, ?, ?)",
                (stored.version, stored.world, stored.now_us, stored.data),
            )
            execute("insert or replace into digest values (1, ?)", (_digest(stored),))
            self._connection.executemany(
                "insert or replace into positions values (?, ?, ?)",
                [(part.topic, part.number, at) for part, at in stored.positions.items()],
            )
            execute("delete from outbox where id <= ?", (sent_through,))
            appended = [(self._append(output), output) for output in outputs]
            execute("commit")
        except BaseException:
            if self._connection.in_transaction:  # A full disk ends it already.
                execute("rollback")
            raise
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
        with self._explained():
            rows = self._connection.execute(
                "select id, topic, number, key, headers, value from outbox order by id"
            ).fetchall()
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
        with self._explained():
            self._connection.execute("delete from outbox where id <= ?", (through,))

    def close(self) -> None:
        """Close the file and let another process have it."""
        self._connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what SQLite raises into what a person can act on."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StoreError(f"{self._path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, why: str) -> StoreError:
        return StoreError(
            f"{self._path} is damaged: {why}; put a copy of it in its place, or begin another world"
        )


def _digest(stored: Stored) -> str:
    """Return the SHA-256 of all that a transaction leaves, but the outbox."""
    parts: list[str | bytes] = [str(stored.version), stored.world, str(stored.now_us), stored.data]
    for part, at in sorted(stored.positions.items()):
        parts += [str(part), str(at)]
    return sha256_of(*parts)


_HEADERS: Final = tuple[tuple[str, bytes], ...]
