"""A recording is whole, or it is refused."""

import errno
import gzip
import os
import shutil
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest

from gpuloop.loop.replay.record import record, recordable
from gpuloop.loop.replay.recording import (
    MANIFEST,
    MAX_LINE_BYTES,
    UNFINISHED,
    Recording,
    RecordingError,
    RecordingSource,
    decode_line,
    encode_line,
)
from gpuloop.loop.shells.broker import BrokerError, Partition, PositionLost
from gpuloop.loop.shells.memory import MemoryBroker, MemoryConsumer
from gpuloop.schemas.codec import Encoded, Record
from gpuloop.schemas.messages.internal import Segment

PART = Partition("telemetry.faults", 0)


def written(folder: Path, *, expired: int = 0) -> Recording:
    broker = MemoryBroker(wall=lambda: 1_700_000_000_000_000)
    broker.produce(
        [
            Encoded(topic=PART.topic, key=b"n", headers=(("a", b"b"),), value=f"{n}".encode())
            for n in range(10)
        ]
    )
    broker.expire(PART, expired)
    record(broker, folder, fleet="local", settings={"seed": "3"}, topics=["telemetry.faults"])
    return Recording(folder)


@pytest.mark.parametrize("value", [b"{}", b"\xff\x00", None, b""])
@pytest.mark.parametrize("key", [b"k", b"\xfe", None])
def test_a_record_survives_its_line_byte_for_byte(key: bytes | None, value: bytes | None) -> None:
    original = Record(
        topic=PART.topic,
        partition=0,
        offset=7,
        timestamp_ms=5,
        key=key,
        headers=(("h", b"1"), ("h", b"\xff"), ("i", b"")),
        value=value,
    )
    assert decode_line(encode_line(original), PART) == original


def test_offsets_are_kept_also_where_the_beginning_has_expired(tmp_path: Path) -> None:
    recording = written(tmp_path / "r", expired=4)
    assert [r.offset for r in recording.records(PART)] == [4, 5, 6, 7, 8, 9]
    assert recording.files[PART].first == 4


def test_segments_are_found_in_one_pass(tmp_path: Path) -> None:
    source = RecordingSource(written(tmp_path / "r"))

    def take(first: int, last: int) -> list[int]:
        segment = Segment(topic=PART.topic, partition=0, first=first, last=last)
        return [record.offset for record in source.take(segment)]

    assert take(0, 2) == [0, 1, 2]
    assert take(3, 3) == [3]
    assert take(6, 9) == [6, 7, 8, 9]


@pytest.mark.parametrize("segment", [(0, 5), (8, 10)])
def test_a_segment_that_was_not_recorded_is_an_error(
    tmp_path: Path, segment: tuple[int, int]
) -> None:
    source = RecordingSource(written(tmp_path / "r", expired=4))
    with pytest.raises(PositionLost):
        source.take(Segment(topic=PART.topic, partition=0, first=segment[0], last=segment[1]))


def test_an_unfinished_recording_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "r")
    (tmp_path / "r" / MANIFEST).unlink()
    with pytest.raises(RecordingError, match="no finished recording"):
        Recording(tmp_path / "r")


class FullDisk(MemoryBroker):
    """Hands out records until the disk of whoever writes them is full."""

    def consumer(self, positions: Mapping[Partition, int], *, group: str = "") -> MemoryConsumer:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_recording_that_was_cut_short_says_so(tmp_path: Path) -> None:
    broker = FullDisk()
    broker.produce([Encoded(topic=PART.topic, key=b"k", headers=(), value=b"1")])
    with pytest.raises(OSError, match="No space"):
        record(broker, tmp_path / "r", fleet="local", settings={}, topics=[PART.topic])
    with pytest.raises(RecordingError, match="was cut short"):
        Recording(tmp_path / "r")


def test_a_finished_recording_is_marked_as_nothing_else(tmp_path: Path) -> None:
    written(tmp_path / "r")
    assert not (tmp_path / "r" / UNFINISHED).exists()


def test_what_cannot_be_read_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(BrokerError):
        record(MemoryBroker(), tmp_path / "r", fleet="local", settings={}, topics=["nonsense"])
    assert not (tmp_path / "r").exists()


def pointed(folder: Path, name: str) -> Recording:
    """Return a recording whose manifest names another file, with the same content."""
    recording = written(folder)
    shutil.copyfile(folder / recording.files[PART].file, folder.parent / "outside.gz")
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes().replace(recording.files[PART].file.encode(), name.encode()))
    return Recording(folder)


@pytest.mark.parametrize("name", ["../outside.gz", "{}/outside.gz", "..", ".", "", "sub/x"])
def test_a_file_outside_the_recording_is_not_read(tmp_path: Path, name: str) -> None:
    recording = pointed(tmp_path / "r", name.format(tmp_path))
    with pytest.raises(RecordingError):
        list(recording.records(PART))


def test_a_link_to_a_file_outside_the_recording_is_not_read(tmp_path: Path) -> None:
    recording = pointed(tmp_path / "r", "link.gz")
    (tmp_path / "r" / "link.gz").symlink_to(tmp_path / "outside.gz")
    with pytest.raises(RecordingError):
        list(recording.records(PART))


def test_a_pipe_in_place_of_the_manifest_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(RecordingError, match="no plain file"):
        Recording(tmp_path)


def test_a_line_that_unpacks_beyond_the_bound_is_refused_before_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = written(tmp_path / "r")
    path = tmp_path / "r" / recording.files[PART].file
    path.write_bytes(gzip.compress(b"[" * 100_000_000, compresslevel=1))
    tracemalloc.start()
    with pytest.raises(RecordingError, match="line 1 exceeds"):
        list(recording.records(PART))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MAX_LINE_BYTES


def test_more_lines_than_the_manifest_says_are_not_read_to_their_end(tmp_path: Path) -> None:
    recording = written(tmp_path / "r")
    path = tmp_path / "r" / recording.files[PART].file
    line = gzip.decompress(path.read_bytes()).splitlines(keepends=True)[0]
    path.write_bytes(gzip.compress(line * 10_000))
    found = recording.records(PART)
    for _ in range(recording.files[PART].records + 1):
        next(found)
    with pytest.raises(RecordingError, match="is not what was recorded"):
        next(found)


@pytest.mark.parametrize("damage", ["changed", "shortened", "torn", "flipped", "gone"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    recording = written(tmp_path / "r")
    path = tmp_path / "r" / recording.files[PART].file
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    match damage:
        case "changed":
            lines[3] = lines[3].replace(b'"3"', b'"4"')
            path.write_bytes(gzip.compress(b"".join(lines)))
        case "shortened":
            path.write_bytes(gzip.compress(b"".join(lines[:-1])))
        case "torn":
            path.write_bytes(path.read_bytes()[:-20])
        case "flipped":
            data = bytearray(path.read_bytes())
            data[40:60] = bytes(255 - byte for byte in data[40:60])
            path.write_bytes(data)
        case _:
            path.unlink()
    with pytest.raises(RecordingError):
        list(recording.records(PART))


def test_a_folder_in_use_is_not_written_to(tmp_path: Path) -> None:
    written(tmp_path / "r")
    with pytest.raises(FileExistsError):
        written(tmp_path / "r")


def test_derived_frames_are_left_out_by_default() -> None:
    assert "internal.frames" not in recordable()
    assert {"internal.journal", "internal.snapshots", "decisions"} <= set(recordable())


def test_a_recording_tells_what_it_writes_and_the_share_that_is_done(tmp_path: Path) -> None:
    broker = MemoryBroker()
    for topic in ("decisions", "rewards"):
        broker.produce([Encoded(topic=topic, key=b"k", headers=(), value=b"1")] * 3000)
    told: list[tuple[str, float]] = []
    record(
        broker, tmp_path / "r", fleet="local", settings={}, topics=["rewards", "decisions"],
        progress=lambda what, share: told.append((what, share)),
    )  # fmt: skip
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (len(shares), shares[1], shares[-1]) == (4, 0.5, 1.0)
    assert [what for what, _ in told] == ["recording decisions/0"] * 2 + ["recording rewards/0"] * 2
