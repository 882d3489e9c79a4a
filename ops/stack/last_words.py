"""Why a service says it ended, off the end of its log.

Services write one JSON object a line, and a last one of level `critical` when they fail. What other
programs write is not understood here and left to whoever reads the log.
"""

from pathlib import Path
from typing import Final

import msgspec

LAST_BYTES: Final = 16_384
LONGEST: Final = 300


class _Line(msgspec.Struct):
    """What of a line counts here."""

    level: str
    message: str


def last_words(log: Path) -> str:
    """Return the reason that a service gave for failing since it last started, or nothing."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - LAST_BYTES, 0))
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            said = msgspec.json.decode(line, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if said.level == "critical":
            return said.message.removeprefix("service failed: ")[:LONGEST]
        if said.message == "service started":
            break
    return ""
