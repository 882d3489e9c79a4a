r"""Prometheus' text format, line by line; a line that is none is counted and the rest is read.

    DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-8f"} 54 1763750000000

Only lines whose name begins as asked are looked at. The library's own parser gives up a whole
scrape for one bad line, and exporters do write them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

MAX_LINE: Final = 8_192
LATEST_MS: Final = 253_402_300_799_000
"""The end of the year 9999."""

_LINE: Final = re.compile(
    r"(?P<name>[a-zA-Z_:][\w:]*)\s*(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+(?P<ms>-?\d+))?\s*"
)
_LABEL: Final = re.compile(r'\s*([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPED: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Line:
    """One sample of a scrape; `time_ms` where the exporter says when it was taken."""

    name: str
    labels: Mapping[str, str]
    value: float
    time_ms: int | None


@dataclass(slots=True)
class Exposition:
    """A scrape as its lines, and how many were none."""

    lines: list[Line] = field(default_factory=list)
    bad: int = 0


def parse(text: str, *, prefix: str) -> Exposition:
    """Return the samples whose names begin with `prefix`."""
    found = Exposition()
    for row in text.splitlines():
        if not row.startswith(prefix):
            continue
        line = _parsed(row) if len(row) <= MAX_LINE else None
        if line is None:
            found.bad += 1
        else:
            found.lines.append(line)
    return found


def _parsed(row: str) -> Line | None:
    matched = _LINE.fullmatch(row)
    if matched is None:
        return None
    try:
        labels = dict(_labels(matched["labels"] or ""))
        value = float(matched["value"])
        time_ms = None if matched["ms"] is None else int(matched["ms"])
    except ValueError:
        return None
    if time_ms is not None and not 0 <= time_ms <= LATEST_MS:
        return None
    return Line(matched["name"], labels, value, time_ms)


def _labels(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text.rstrip()):
        matched = _LABEL.match(text, at)
        if matched is None:
            raise ValueError(text)
        yield matched[1], _ESCAPED.sub(lambda one: "\n" if one[1] == "n" else one[1], matched[2])
        at = matched.end()
