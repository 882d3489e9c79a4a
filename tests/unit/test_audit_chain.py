"""The chain: hashes that follow from the source alone, and records that always fit the topic."""

from pathlib import Path

import msgspec
import pytest

from gpuloop.loop.evaluate.anchors import Anchors
from gpuloop.loop.evaluate.chain import (
    AUDITED,
    GENESIS,
    AuditError,
    chained,
    original,
    record_hash,
    signed_checkpoint,
)
from gpuloop.loop.evaluate.keys import load_or_create
from gpuloop.schemas.catalogue import MAX_VALUE_BYTES
from gpuloop.schemas.codec import Record, encode
from gpuloop.schemas.messages import AuditCheckpoint


def a_record(**changes: object) -> Record:
    fields = {
        "topic": "decisions",
        "partition": 0,
        "offset": 3,
        "timestamp_ms": 1_760_000_000_000,
        "key": b"h100",
        "headers": (("ce_id", b"1"),),
        "value": b'{"pool":"h100"}',
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_chain_covers_what_is_decided_done_approved_and_controlled() -> None:
    assert {
        "decisions", "proposals", "approvals", "actions.scaling", "actions.pricing",
        "actions.migration", "actions.remediation", "actions.sharing", "actions.outcomes",
        "rewards", "policies", "controls",
    } <= set(AUDITED)  # fmt: skip
    assert "audit" not in AUDITED


def test_a_hash_is_the_same_on_any_day_and_machine() -> None:
    record = chained(a_record(), fleet="local", previous_hash=GENESIS)
    assert record.hash == "3c991f894728dfc383c25bd48b138a4e807fe7ecc14869b74db34f33dcb4206e"


@pytest.mark.parametrize(
    "changes",
    [
        {"topic": "rewards"},
        {"partition": 1},
        {"offset": 4},
        {"timestamp_ms": 1},
        {"key": b"a100"},
        {"key": None},
        {"headers": ()},
        {"headers": (("ce_id", b"2"),)},
        {"headers": (("ce_i", b"d1"),)},
        {"value": b"{}"},
        {"value": b""},
        {"value": None},
    ],
)
def test_every_part_of_a_source_record_is_hashed(changes: dict[str, object]) -> None:
    kept = chained(a_record(), fleet="local", previous_hash=GENESIS)
    other = chained(a_record(**changes), fleet="local", previous_hash=GENESIS)
    assert other.hash != kept.hash
    assert other.hash == record_hash(other)


def test_the_original_bytes_come_back_and_null_is_not_empty() -> None:
    for data in (b"", b"-", b"sha256:", bytes(range(256)), None):
        record = chained(a_record(key=data, value=data), fleet="local", previous_hash=GENESIS)
        assert original(record.key) == data
        assert original(record.value) == data


def test_the_largest_and_the_most_headers_still_fit_a_record() -> None:
    huge = a_record(
        key=b"k" * 10_001,
        value=b"v" * MAX_VALUE_BYTES,
        headers=tuple((f"h{i}", b"x" * 100) for i in range(1000)),
    )
    most = a_record(key=b"k" * 10_000, value=b"v" * 640_000, headers=(("\x01" * 20_000, b""),))
    for record in (huge, most):
        entry = chained(record, fleet="local", previous_hash=GENESIS)
        written = encode("audit", "decisions/0", entry, event_id="1", source="auditor")
        assert len(written.value) <= MAX_VALUE_BYTES
        assert msgspec.json.decode(written.value, type=type(entry)) == entry
    entry = chained(huge, fleet="local", previous_hash=GENESIS)
    assert original(entry.value) is None
    assert entry.value.startswith("sha256:")
    changed = chained(
        a_record(key=huge.key, value=b"w" * MAX_VALUE_BYTES, headers=huge.headers),
        fleet="local",
        previous_hash=GENESIS,
    )
    assert changed.hash != entry.hash


def a_checkpoint(tmp_path: Path, number: int) -> AuditCheckpoint:
    return signed_checkpoint(
        (),
        fleet="local",
        number=number,
        wall_us=number,
        previous_hash=GENESIS,
        key=load_or_create(tmp_path / "key.pem"),
    )


def test_a_torn_last_anchor_is_ignored_and_then_replaced(tmp_path: Path) -> None:
    path = tmp_path / "audit" / "anchors.jsonl"
    anchors = Anchors(path)
    assert anchors.read() == []
    first, second = a_checkpoint(tmp_path, 0), a_checkpoint(tmp_path, 1)
    anchors.append(first)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(second)[:50])
    assert anchors.read() == [first]
    anchors.append(second)
    assert anchors.read() == [first, second]


def test_an_anchor_that_is_no_checkpoint_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "anchors.jsonl"
    Anchors(path).append(a_checkpoint(tmp_path, 0))
    with path.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(AuditError, match="line 2"):
        Anchors(path).read()


def test_what_is_missing_before_a_record_is_hashed_and_nothing_missing_changes_no_old_hash() -> (
    None
):
    record = chained(a_record(), fleet="local", previous_hash=GENESIS)
    gapped = chained(a_record(), fleet="local", previous_hash=GENESIS, missing_before=2)
    assert record_hash(gapped) != record_hash(record)
    assert b"missing_before" not in msgspec.json.encode(record)
