"""Keeps a library that says the same every second from filling a log.

A broker that cannot be reached makes each connection of each client complain several times a
second. The first line of a kind is let through, then one every half minute, and each says how many
were held back since the one before it.
"""

import logging
from typing import Final

LIBRARIES: Final = frozenset({"librdkafka", "aiokafka", "faust", "mode", "kafka"})
EVERY_SECONDS: Final = 30.0
MAX_KINDS: Final = 200


class Repeats(logging.Filter):
    """Lets our own records through, and of a library's repeated ones few."""

    def __init__(self, every_seconds: float = EVERY_SECONDS) -> None:
        super().__init__()
        self._every: Final = every_seconds
        self._last: Final[dict[tuple[str, int, str], float]] = {}
        self._held: Final[dict[tuple[str, int, str], int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is written; one that stands for others says for how many."""
        if record.name.split(".")[0] not in LIBRARIES:
            return True
        kind = (record.name, record.levelno, _kind(record))
        last = self._last.get(kind)
        if last is not None and record.created - last < self._every:
            self._held[kind] = self._held.get(kind, 0) + 1
            return False
        if len(self._last) >= MAX_KINDS:
            self._last.clear()
            self._held.clear()
        self._last[kind] = record.created
        record.held_back = self._held.pop(kind, 0)
        return True


def _kind(record: logging.LogRecord) -> str:
    """Return what makes two records the same complaint: librdkafka begins with its name for it."""
    text = record.getMessage() if record.name.startswith("librdkafka") else str(record.msg)
    return text.split(" ", 1)[0] if record.name.startswith("librdkafka") else text[:80]
