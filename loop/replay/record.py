"""Write topics to a folder, as they stand now.

The journal's end is taken first and every other end after it, so that whatever a recorded cut
consumed is in the recording too; only the outputs of the last cut may be missing.
"""

import gzip
import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from gpuloop.loop.replay.recording import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    Manifest,
    PartitionFile,
    encode_line,
)
from gpuloop.loop.shells.broker import Broker, Partition, read_between
from gpuloop.loop.shells.clock import wall_us
from gpuloop.loop.shells.journal import JOURNAL
from gpuloop.schemas.catalogue import CATALOGUE

DERIVED: Final = frozenset({"internal.frames", "internal.partials"})
"""Not recorded unless asked for: nothing replays from them, and they are most of the bytes."""

PROGRESS_RECORDS: Final = 2_000
Progress = Callable[[str, float], None]
"""Called again and again with what is being written and the share of all offsets that is."""


def recordable() -> tuple[str, ...]:
    """Return the topics that a recording holds by default."""
    return tuple(name for name in CATALOGUE if name not in DERIVED)


def record(
    broker: Broker,
    folder: Path,
    *,
    fleet: str,
    settings: Mapping[str, str],
    topics: Iterable[str] | None = None,
    progress: Progress = lambda what, share: None,
) -> Manifest:
    """Write `topics`, whole, to an empty or new folder and return its manifest.

    `settings` are kept for the replay to build the same components; secrets do not belong there.

    Raises:
        FileExistsError: the folder holds something already.
        BrokerError: the broker cannot be read.
        OSError: the folder cannot be written; what is there is marked as unfinished.

    """
    names = sorted(recordable() if topics is None else topics)
    parts = [part for name in names for part in broker.partitions(name)]
    ends = broker.ends([part for part in parts if part == JOURNAL])
    ends |= broker.ends([part for part in parts if part != JOURNAL])
    firsts = broker.beginnings(parts)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    (folder / UNFINISHED).touch()
    files, passed, whole = [], 0, max(1, sum(ends[part] - firsts[part] for part in parts))
    for part in parts:
        tell = partial(_tell, progress, f"recording {part}", passed - firsts[part], whole)
        files.append(_write(broker, folder, part, firsts[part], ends[part], tell))
        passed += ends[part] - firsts[part]
    manifest = Manifest(
        format=FORMAT,
        fleet=fleet,
        created_wall_us=wall_us(),
        versions={
            "gpuloop": version("gpuloop"),
            "numpy": version("numpy"),
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        settings=dict(settings),
        partitions=tuple(files),
    )
    draft = folder / f"{MANIFEST}.draft"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    draft.rename(folder / MANIFEST)
    (folder / UNFINISHED).unlink()
    return manifest


def _tell(progress: Progress, what: str, before: int, whole: int, offset: int) -> None:
    progress(what, (before + offset) / whole)


def _write(
    broker: Broker,
    folder: Path,
    part: Partition,
    first: int,
    end: int,
    tell: Callable[[int], None],
) -> PartitionFile:
    name = f"{part.topic}.{part.number}.jsonl.gz"
    digest, count = hashlib.sha256(), 0
    with gzip.open(folder / name, "wb", compresslevel=3) as file:
        for found in read_between(broker, part, first, end):
            line = encode_line(found)
            file.write(line)
            digest.update(line)
            count += 1
            if count % PROGRESS_RECORDS == 0:
                tell(found.offset)
    tell(end)
    return PartitionFile(
        topic=part.topic,
        partition=part.number,
        file=name,
        first=first,
        end=end,
        records=count,
        sha256=digest.hexdigest(),
    )
