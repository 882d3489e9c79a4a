"""A recording on disk: one compressed file of JSON lines per partition, and a manifest.

Offsets, keys, headers and values are kept as they were, so that a journal finds its records again.
The manifest is written last, and until then a mark says that the folder is unfinished. A recording
may come from anywhere, so what it names is looked for in its own folder only, and no line or
manifest is taken in beyond a bound.
"""

import gzip
import hashlib
import os
import stat
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from gpuloop.loop.shells.broker import Partition, PositionLost
from gpuloop.schemas.codec import Record
from gpuloop.schemas.messages.internal import Segment

FORMAT: Final = "gpuloop-recording/1"
MANIFEST: Final = "manifest.json"
UNFINISHED: Final = "UNFINISHED"
MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""A record of 1 MiB, every byte of it written as an escape, takes less than half."""


class RecordingError(ValueError):
    """The folder holds no recording, or one that is damaged."""


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record. With `binary`, key, header values and value are base64."""

    offset: int
    timestamp_ms: int
    key: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    value: str | None = None
    binary: bool = False


class PartitionFile(msgspec.Struct, frozen=True, kw_only=True):
    """One partition's records: those of [first, end) that were still there."""

    topic: str
    partition: int
    file: str
    first: int
    end: int
    records: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recording holds and under which settings it came about."""

    format: str
    fleet: str
    created_wall_us: int
    versions: dict[str, str]
    settings: dict[str, str]
    partitions: tuple[PartitionFile, ...]


_line_encoder: Final = msgspec.json.Encoder()
_line_decoder: Final = msgspec.json.Decoder(Line)


def encode_line(record: Record) -> bytes:
    """Return a record as one JSON line, readable where it is text."""
    parts = (record.key, record.value, *(value for _, value in record.headers))
    binary = not all(part is None or _is_text(part) for part in parts)

    def show(data: bytes | None) -> str | None:
        if data is None:
            return None
        return b64encode(data).decode() if binary else data.decode()

    line = Line(
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
        key=show(record.key),
        headers=tuple((name, show(value) or "") for name, value in record.headers),
        value=show(record.value),
        binary=binary,
    )
    return _line_encoder.encode(line) + b"\n"


def decode_line(data: bytes, part: Partition) -> Record:
    """Return the record in one line of a partition's file."""
    line = _line_decoder.decode(data)

    def restore(text: str | None) -> bytes | None:
        if text is None:
            return None
        return b64decode(text) if line.binary else text.encode()

    return Record(
        topic=part.topic,
        partition=part.number,
        offset=line.offset,
        timestamp_ms=line.timestamp_ms,
        key=restore(line.key),
        headers=tuple((name, restore(value) or b"") for name, value in line.headers),
        value=restore(line.value),
    )


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Recording:
    """A folder that `record` has written, opened for reading."""

    def __init__(self, folder: Path) -> None:
        try:
            with _opened(folder, MANIFEST) as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
            if len(data) > MAX_MANIFEST_BYTES:
                raise RecordingError(f"{folder / MANIFEST} exceeds {MAX_MANIFEST_BYTES} bytes")
            self.manifest: Final = msgspec.json.decode(data, type=Manifest)
        except FileNotFoundError:
            if (folder / UNFINISHED).exists():
                raise RecordingError(f"the recording in {folder} was cut short") from None
            raise RecordingError(f"{folder} holds no finished recording") from None
        except OSError as error:
            raise RecordingError(f"{folder / MANIFEST}: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RecordingError(f"{folder / MANIFEST}: {error}") from None
        if self.manifest.format != FORMAT:
            raise RecordingError(f"{folder} is {self.manifest.format}, this reads {FORMAT}")
        self._folder: Final = folder
        self.files: Final = {Partition(f.topic, f.partition): f for f in self.manifest.partitions}

    def partitions(self, topic: str) -> int:
        """Return how many partitions of a topic were recorded."""
        return sum(part.topic == topic for part in self.files)

    def records(self, part: Partition) -> Iterator[Record]:
        """Yield a partition's records in order; nothing when it was not recorded.

        Raises:
            RecordingError: the file is not the one that the manifest describes.

        """
        found = self.files.get(part)
        if found is None:
            return
        digest, count = hashlib.sha256(), 0
        try:
            with _opened(self._folder, found.file) as file, gzip.GzipFile(fileobj=file) as lines:
                while count <= found.records and (line := lines.readline(MAX_LINE_BYTES + 1)):
                    if len(line) > MAX_LINE_BYTES:
                        raise ValueError(f"line {count + 1} exceeds {MAX_LINE_BYTES} bytes")
                    digest.update(line)
                    count += 1
                    yield decode_line(line, part)
        except RecordingError:
            raise
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise RecordingError(f"{found.file}: {error}") from None
        if count != found.records or digest.hexdigest() != found.sha256:
            raise RecordingError(f"{found.file} is not what was recorded")


def _opened(folder: Path, name: str) -> BinaryIO:
    """Open a file that lies in the folder itself, and not one that it only points to.

    Raises:
        RecordingError: the name leads elsewhere.
        OSError: there is no such file, or it is a link.

    """
    if Path(name).name != name:
        raise RecordingError(f"{name} leads out of the recording")
    descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RecordingError(f"{folder / name} is no plain file")
    return os.fdopen(descriptor, "rb")


class RecordingSource:
    """Finds a journal's records in a recording, one pass over each file."""

    def __init__(self, recording: Recording) -> None:
        self._recording: Final = recording
        self._cursors: Final[dict[Partition, Iterator[Record]]] = {}
        self._ahead: Final[dict[Partition, Record]] = {}

    def take(self, segment: Segment) -> list[Record]:
        """Return the segment's records; raises `PositionLost` when they were not recorded."""
        part = Partition(segment.topic, segment.partition)
        found = self._recording.files.get(part)
        if found is None or not found.first <= segment.first <= segment.last < found.end:
            raise PositionLost(f"{part} {segment.first} to {segment.last} is not in the recording")
        cursor = self._cursors.setdefault(part, self._recording.records(part))
        taken: list[Record] = []
        record = self._ahead.pop(part, None) or next(cursor, None)
        while record is not None and record.offset <= segment.last:
            if record.offset >= segment.first:
                taken.append(record)
            record = next(cursor, None) if record.offset < segment.last else None
        if record is not None:
            self._ahead[part] = record
        return taken
