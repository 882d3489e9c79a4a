"""A world's file is what was committed, or it is refused with the way out; it never passes off."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.store import Store, Stored, StoreError
from gpuloop.schemas.codec import Encoded

COMMANDS = Partition("actions.scaling", 0)


def stored(number: int, *, size: int = 200_000) -> Stored:
    return Stored(
        version=1,
        world="w",
        now_us=number,
        data=np.random.default_rng(number).bytes(size),
        positions={COMMANDS: number},
    )


def output(number: int) -> Encoded:
    return Encoded(topic="telemetry.gpu", key=b"n1", headers=(), value=b"%d" % number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file in which three transactions stand."""
    path = tmp_path / "twin" / "world.sqlite"
    store = Store(path)
    for number in range(3):
        store.commit(stored(number), [output(number)], sent_through=number)
    store.close()
    return path


def read(path: Path) -> Stored | None:
    store = Store(path)
    try:
        store.outbox()
        return store.load()
    finally:
        store.close()


def test_what_was_committed_is_there_after_a_restart(path: Path) -> None:
    assert read(path) == stored(2)


@pytest.mark.parametrize("kept", [0, 1, 100, 4096, 5000, 0.5, 0.99])
def test_a_file_that_was_cut_is_refused_and_the_line_names_it(path: Path, kept: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: round(kept if kept >= 1 else kept * len(whole))])
    with pytest.raises(StoreError, match=r"world\.sqlite is damaged: .*begin another world"):
        read(path)


@pytest.mark.parametrize("seed", range(20))
def test_a_block_of_noise_anywhere_is_refused_or_changes_nothing(path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    place = int(draw.integers(len(data) - 512))
    data[place : place + 512] = draw.bytes(512)
    path.write_bytes(data)
    try:
        assert read(path) == stored(2)
    except StoreError as error:
        assert "world.sqlite" in str(error)  # noqa: PT017


def test_one_changed_byte_of_the_state_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(stored(2).data[100_000:100_008])] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="the state is not what was written"):
        read(path)


def test_a_file_of_an_earlier_version_without_a_digest_is_read(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("drop table digest")
    connection.commit()
    connection.close()
    assert read(path) == stored(2)


def test_a_full_disk_is_named_and_the_last_transaction_stands(tmp_path: Path) -> None:
    path = tmp_path / "world.sqlite"
    store = Store(path)
    store.commit(stored(1), [output(1)], sent_through=0)
    store._connection.execute("pragma max_page_count = 60")
    with pytest.raises(StoreError, match=r"world\.sqlite: database or disk is full"):
        store.commit(stored(2, size=1_000_000), [output(2)], sent_through=0)
    assert store.load() == stored(1)
    store._connection.execute("pragma max_page_count = 10000")
    store.commit(stored(3), [output(3)], sent_through=1)
    assert [record.value for _, record in store.outbox()] == [b"3"]
    store.close()
