"""Where a stack keeps its things: one folder, owned by one supervisor at a time.

Owns the folder's shape, its lock and what `--fresh` deletes. Signing keys and the caches of other
folders are never deleted.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpuloop.ops.stack.errors import StackError

KEPT: Final = frozenset({"keys", "stack.lock"})
MARK: Final = "stack.json"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one stack."""

    root: Path

    @property
    def state(self) -> Path:
        """Return the file that says what runs and where."""
        return self.root / MARK

    @property
    def lock(self) -> Path:
        """Return the file whose lock the supervisor holds."""
        return self.root / "stack.lock"

    @property
    def scale(self) -> Path:
        """Return the file that says how many workers of a service were asked for."""
        return self.root / "scale.json"

    @property
    def world(self) -> Path:
        """Return the file that remembers with what the twin's world was begun."""
        return self.root / "world.json"

    @property
    def keys(self) -> Path:
        """Return the folder of signing keys."""
        return self.root / "keys"

    @property
    def logs(self) -> Path:
        """Return the folder of the processes' output."""
        return self.root / "logs"

    @property
    def kafka(self) -> Path:
        """Return the folder of the broker's settings and data."""
        return self.root / "kafka"

    @property
    def postgres(self) -> Path:
        """Return the folder of PostgreSQL's data, unless its user cannot reach it."""
        return self.root / "postgres"

    def log(self, name: str) -> Path:
        """Return the file of one process's output."""
        return self.logs / f"{name}.log"

    def refuse_strangers(self) -> None:
        """Leave alone what is not a stack's.

        Raises:
            StackError: the folder holds something else.

        """
        if self.root.is_dir() and any(self.root.iterdir()) and not self._is_ours():
            raise StackError(f"{self.root} is not empty and not a gpuloop state folder")

    def refuse_if_up(self) -> None:
        """Leave a stack alone that is up.

        Raises:
            StackError: another supervisor owns the folder.

        """
        if self.owner() is not None:
            raise self._already_up()

    def create(self) -> None:
        """Make the folder, readable by its owner only.

        Raises:
            StackError: the folder holds something else.

        """
        self.refuse_strangers()
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.logs.mkdir(mode=0o700, exist_ok=True)

    def wipe(self) -> None:
        """Delete everything of the last world but the signing keys."""
        for path in self.root.iterdir():
            if path.name in KEPT:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        self.logs.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Own the stack until the end of the block; the kernel lets go if this process dies.

        Raises:
            StackError: another supervisor owns it.

        """
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._already_up() from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            try:
                yield
            finally:
                self.lock.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def owner(self) -> int | None:
        """Return the process that holds the lock, or None when nobody does."""
        try:
            descriptor = os.open(self.lock, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(self.lock.read_text().strip() or 0)
        finally:
            os.close(descriptor)
        return None

    def _already_up(self) -> StackError:
        owner = self.lock.read_text().strip() if self.lock.exists() else ""
        return StackError(
            f"a stack is already up in {self.root} (process {owner or 'unknown'}); "
            "see `gpuloop status`, stop it with `gpuloop down`"
        )

    def _is_ours(self) -> bool:
        return any((self.root / name).exists() for name in (MARK, "stack.lock", "keys", "logs"))
