"""No single edit of the audit topic goes unseen, and every edit is named at or near its place."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from gpuloop.loop.evaluate.auditor import Auditor
from gpuloop.loop.evaluate.keys import load_or_create, public_hex
from gpuloop.loop.evaluate.verify import verify
from gpuloop.schemas.codec import Encoded, Record, decode
from gpuloop.schemas.messages import AuditCheckpoint

RECORDS = 40


@cache
def history() -> tuple[list[Record], list[AuditCheckpoint], str]:
    with TemporaryDirectory() as folder:
        key = load_or_create(Path(folder) / "key.pem")
    auditor = Auditor(fleet="local", key=key)
    written: list[Encoded] = []
    anchors: list[AuditCheckpoint] = []
    for number in range(RECORDS):
        topic = ("decisions", "rewards", "actions.outcomes")[number % 3]
        source = Record(
            topic=topic,
            partition=0,
            offset=number // 3 + 5 * (number > 30),
            timestamp_ms=number,
            key=b"pool",
            headers=(("ce_id", b"%d" % number),),
            value=b"value %d" % number,
        )
        written.append(auditor.audit(source))
        if number % 7 == 6:
            checkpoint, record = auditor.checkpoint(number)
            anchors.append(checkpoint)
            written.append(record)
    checkpoint, record = auditor.checkpoint(RECORDS)
    anchors.append(checkpoint)
    written.append(record)
    return (
        [as_record(entry, offset) for offset, entry in enumerate(written)],
        anchors,
        public_hex(key),
    )


def as_record(entry: Encoded, offset: int) -> Record:
    return Record(
        topic="audit",
        partition=0,
        offset=offset,
        timestamp_ms=0,
        key=entry.key,
        headers=entry.headers,
        value=entry.value,
    )


def place(finding: str) -> int:
    """Return the offset on the audit topic that a finding names; the end for anchors."""
    words = finding.split(":")[0].split()
    return int(words[2]) if words[0] == "audit" else len(history()[0])


@given(st.data())
def test_a_changed_byte_is_named_where_it_is(data: st.DataObject) -> None:
    records, anchors, key = history()
    at = data.draw(st.integers(0, len(records) - 1), label="record")
    value = records[at].value or b""
    byte = data.draw(st.integers(0, len(value) - 1), label="byte")
    new = data.draw(st.integers(0, 255), label="new byte")
    assume(new != value[byte])
    changed = replace(records[at], value=value[:byte] + bytes([new]) + value[byte + 1 :])
    tampered = [*records[:at], changed, *records[at + 1 :]]
    report = verify(tampered, anchors, [key])
    assert not report.ok
    assert place(str(report.first_bad)) == at


@given(st.sets(st.integers(0, 46), min_size=1, max_size=20))
def test_dropped_records_are_noticed_no_earlier_than_they_are_gone(gone: set[int]) -> None:
    records, anchors, key = history()
    kept = [record for at, record in enumerate(records) if at not in gone]
    assume(len(kept) < len(records))
    report = verify(kept, anchors, [key])
    assert not report.ok
    assert place(str(report.first_bad)) > min(gone)


@given(st.permutations(range(47)))
def test_another_order_passes_only_if_each_chain_kept_its_own(order: list[int]) -> None:
    records, anchors, key = history()
    shuffled = [records[at] for at in order if at < len(records)]
    kept_order = all(
        [m for m in map(decode, shuffled) if getattr(m, "topic", "") == topic]
        == [m for m in map(decode, records) if getattr(m, "topic", "") == topic]
        for topic in ("decisions", "rewards", "actions.outcomes", "")
    )
    if not kept_order:
        assert not verify(shuffled, anchors, [key]).ok


@given(st.integers(0, 45), st.integers(1, 46))
def test_a_repeated_stretch_changes_nothing(start: int, length: int) -> None:
    records, anchors, key = history()
    end = min(start + length, len(records))
    report = verify([*records[:end], *records[start:end], *records[end:]], anchors, [key])
    assert report.first_bad is None
    assert report.records == RECORDS
