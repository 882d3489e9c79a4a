"""The owner of the embedded ClickHouse engine: one process may open its folder, and this is it.

Others ask at its health address as they would ask a server: `POST /` is so much of ClickHouse's own
HTTP interface as its clients need, and `POST /query` with `{"sql": "..."}` is answered with JSON
lines, or with the engine's complaint as text under status 400. SQL can read and write files, so
whoever asks shows a token: drawn at each start and left in a file of the owner's, or, where a
person gave a password file, that password, which other machines may show as well.
"""

import os
import re
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import clickhouse_connect
import msgspec
from clickhouse_connect.driver.exceptions import ClickHouseError, Error

from gpuloop.loop.services.health import Answer
from gpuloop.loop.services.process import Process, serving
from gpuloop.loop.settings import Settings

NAME: Final = "clickhouse"
FOLDER: Final = "clickhouse"
ADMISSION: Final = "clickhouse.token"
PROBE_SECONDS: Final = 5.0
LIMITS: Final[dict[str, int]] = {
    "max_threads": 2,
    "max_memory_usage": 512 * 1024 * 1024,
    "max_execution_time": 30,
}


_INSERT: Final = re.compile(
    r"insert\s+into\s+(?P<table>\S+)\s*(?:\((?P<columns>[^)]*)\))\s*format\s+(?P<format>\w+)", re.I
)
_PASSED: Final = frozenset(
    {
        "insert_deduplicate",
        "insert_deduplication_token",
        "input_format_parallel_parsing",
        "date_time_input_format",
    }
)
"""Settings that a client may send along; the engine's limits are not among them."""


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /query`."""

    sql: str


class Engine:
    """The engine on its folder, one query at a time."""

    def __init__(self, settings: Settings) -> None:
        folder = settings.state_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # Who has no token shall not read the engine's files either.
        self._client: Final = clickhouse_connect.get_client(interface="chdb", path=str(folder))
        self._lock: Final = threading.Lock()

    def __enter__(self) -> Self:
        """Return the open engine."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the folder."""
        self._client.close()

    def query(self, sql: str) -> bytes:
        """Return the rows of a statement as JSON lines; empty when it returns none.

        Raises:
            ClickHouseError: the engine refuses the statement.

        """
        with self._lock:
            return self._client.raw_query(sql, settings=LIMITS, fmt="JSONEachRow")

    def insert(
        self, table: str, columns: list[str], fmt: str, block: bytes, settings: dict[str, str]
    ) -> None:
        """Insert a block of rows.

        Raises:
            ClickHouseError: the engine refuses it.

        """
        with self._lock:
            self._client.raw_insert(table, columns, block, settings={**LIMITS, **settings}, fmt=fmt)

    def interface(self, asked: Mapping[str, str], body: bytes) -> Answer:
        """Answer `POST /`: a statement in the body or the query, after an insert's its rows."""
        statement = asked.get("query", "").encode()
        text = statement + b"\n" + body if statement else body
        head, _, block = text.partition(b"\n")
        insert = _INSERT.fullmatch(head.decode("utf-8", "replace").strip())
        settings = {name: asked[name] for name in asked.keys() & _PASSED}
        try:
            if insert is None:
                with self._lock:
                    rows = self._client.raw_query(text.decode(), settings={**LIMITS, **settings})
            else:
                columns = [name.strip(' `"') for name in (insert["columns"] or "").split(",")]
                self.insert(insert["table"], columns, insert["format"], block, settings)
                rows = b""
        except (ClickHouseError, UnicodeDecodeError) as error:
            code = error.code if isinstance(error, Error) else None
            return Answer(
                status=500,
                content_type="text/plain",
                body=str(error).encode(),
                headers=(("X-ClickHouse-Exception-Code", str(code or 0)),),
            )
        return Answer(
            status=200,
            content_type="application/octet-stream",
            body=rows,
            headers=(("X-ClickHouse-Timezone", "UTC"), ("X-ClickHouse-Summary", "{}")),
        )

    def answer(self, body: bytes) -> Answer:
        """Answer `POST /query`."""
        try:
            rows = self.query(msgspec.json.decode(body, type=Query).sql)
        except (ClickHouseError, msgspec.DecodeError) as error:
            return Answer(status=400, content_type="text/plain", body=str(error).encode())
        return Answer(status=200, content_type="application/x-ndjson", body=rows)


def main(settings: Settings) -> None:
    """Own the engine until asked to stop."""
    given = settings.clickhouse_password_file
    given = given if given is not None and given.exists() else None
    token = given.read_text().strip() if given else new_token(settings.state_dir / ADMISSION)
    with (
        Engine(settings) as engine,
        serving(
            NAME,
            settings,
            routes={"/query": engine.answer},
            token=token,
            interface=engine.interface,
            anywhere=given is not None,
        ) as process,
    ):
        probe(engine, process)


def new_token(path: Path) -> str:
    """Return a token drawn now, and leave it in a file that only its owner can read."""
    token = secrets.token_urlsafe(32)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    draft.replace(path)
    return token


class _Version(msgspec.Struct):
    version: str


def probe(engine: Engine, process: Process) -> None:
    """Ask the engine for its version again and again; what it raises ends the process."""
    while True:
        answer = msgspec.json.decode(engine.query("select version() as version"), type=_Version)
        process.health.progress(f"ClickHouse's engine {answer.version}")
        if process.stop.wait(PROBE_SECONDS):
            return
