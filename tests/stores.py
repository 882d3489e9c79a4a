"""A real PostgreSQL and ClickHouse's real engine for tests, each started once per session."""

import itertools
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clickhouse_connect
import psutil
import psycopg
import pytest

from gpuloop.loop.shells.clickhouse_schema import DATABASE
from gpuloop.ops.stack import postgres
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.ports import LOOPBACK, free_ports
from gpuloop.ops.stack.process import Child
from gpuloop.ops.stack.roles import admit
from gpuloop.ops.stack.stores import SINK
from processes import until

SECRET = "known to the sink"


@dataclass
class Postgres:
    """A running server; every database is made empty, with the sink admitted to it."""

    server: postgres.Postgres
    port: int
    child: Child
    log: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def database(self, *, options: str = "", hypertables: bool | None = None) -> str:
        """Return the sink's connection string to a database of its own.

        With TimescaleDB where it is installed, unless `hypertables` says otherwise; where they are
        asked for and it is not, the test is skipped.
        """
        if hypertables and not self.server.offers_timescale:
            pytest.skip("TimescaleDB is not installed in this PostgreSQL (CONTRIBUTING.md)")
        name = f"t{next(self._numbers)}"
        self.order("postgres", f"create database {name} {options}")
        self.admit(name)
        if hypertables is False:
            self.order(name, f"drop extension if exists {postgres.EXTENSION}")
        return f"postgresql://{SINK}:{SECRET.replace(' ', '%20')}@{LOOPBACK}:{self.port}/{name}"

    def administrator(self, name: str) -> str:
        """Return the administrator's connection string to a database."""
        return self.server.dsn(self.port).rpartition("/")[0] + f"/{name}"

    def admit(self, name: str) -> None:
        """Do what is done at every start of a stack: let the sink in, switch the extension on."""
        admit(self.administrator(name), SECRET)

    def order(self, name: str, statement: str) -> None:
        """Do what only the administrator of a database may."""
        with psycopg.connect(self.administrator(name), autocommit=True) as connection:
            connection.execute(statement)

    def answers(self) -> bool:
        """Say whether it takes connections."""
        try:
            postgres.describe(self.server.dsn(self.port))
        except StackError:
            assert self.child.exit_status() is None, self.log.read_text()[-2000:]
            return False
        return True

    def start(self) -> None:
        """Start it, again after `kill`."""
        self.child = Child(self.server.program(self.port), self.log)
        until(self.answers, seconds=60.0)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop all its processes where they are; its kernel goes on taking what is sent."""
        group = psutil.Process(self.child.pid)
        stopped = [group, *group.children(recursive=True)]
        for one in stopped:
            one.suspend()
        try:
            yield
        finally:
            for one in reversed(stopped):
                one.resume()

    def kill(self) -> None:
        """End it at once, as a loss of power would."""
        self.child.kill_group()
        self.child.reap(10.0)


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """Run a server in a folder."""
    try:
        server = postgres.locate(folder.resolve())
    except StackError as error:
        pytest.skip(str(error))
    postgres.create(server)
    port, log = next(free_ports(Path(f"{folder}-{os.getpid()}"))), folder / "postgres.log"
    found = Postgres(server, port, Child(server.program(port), log), log)
    try:
        until(found.answers, seconds=60.0)
        yield found
    finally:
        found.kill()
        postgres.wipe(folder.resolve())


@dataclass
class Engine:
    """ClickHouse's engine in the process that serves it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return where it answers."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def password_file(self) -> Path:
        """Return the file with the password."""
        return self.folder / "clickhouse.token"

    def start(self) -> None:
        """Start it, again after `kill`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPULOOP_")}
        own = {"GPULOOP_HTTP_PORT": str(self.port), "GPULOOP_STATE_DIR": str(self.folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpuloop.loop.services", "clickhouse"], env=kept | own
        )
        until(self._answers, seconds=60.0)

    def kill(self) -> None:
        """End it at once."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows of a statement."""
        client = clickhouse_connect.get_client(
            host=LOOPBACK, port=self.port, access_token=self.password_file.read_text(),
            compress=False, autogenerate_session_id=False,
        )  # fmt: skip
        try:
            return [tuple(row) for row in client.query(statement).result_rows]
        finally:
            client.close()

    def empty(self) -> None:
        """Forget everything."""
        self.query("system start merges")
        self.query(f"drop database if exists {DATABASE}")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True


@contextmanager
def running_engine(folder: Path) -> Iterator[Engine]:
    """Run the engine in a folder."""
    engine = Engine(folder, next(free_ports(Path(f"{folder}-{os.getpid()}"))))
    engine.start()
    try:
        yield engine
    finally:
        engine.kill()
