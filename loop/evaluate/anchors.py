"""Anchors: checkpoints kept outside Kafka, so that a history rewritten there does not match them.

A chain alone proves nothing against someone who rewrites all of it and holds the key. The file
should lie where the auditor can append and nobody can rewrite: an append-only mount, another
machine. Its default place, beside the state, guards against those who can write to Kafka only.
"""

import os
from pathlib import Path
from typing import Final

import msgspec

from gpuloop.loop.evaluate.chain import AuditError
from gpuloop.schemas.messages import AuditCheckpoint


class Anchors:
    """Checkpoints as JSON lines. A last line without its end was never acknowledged."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def read(self) -> list[AuditCheckpoint]:
        """Return the anchored checkpoints, oldest first.

        Raises:
            AuditError: a line is no checkpoint.

        """
        if not self._path.exists():
            return []
        anchors = []
        for number, line in enumerate(self._path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                anchors.append(msgspec.json.decode(line, type=AuditCheckpoint))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise AuditError(
                    f"{self._path} line {number} is no checkpoint: {error}; bring back a copy"
                ) from None
        return anchors

    def append(self, checkpoint: AuditCheckpoint) -> None:
        """Add a checkpoint and return when it is on the disk."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(checkpoint) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _drop_torn_line(self) -> None:
        if not self._path.exists() or self._path.stat().st_size == 0:
            return
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() == b"\n":
                return
        os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)
