"""Verification names the first thing that is wrong, whoever did it and however thoroughly."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from gpuloop.loop.evaluate.auditor import Auditor
from gpuloop.loop.evaluate.chain import GENESIS, checkpoint_hash, record_hash
from gpuloop.loop.evaluate.keys import load_or_create, public_hex
from gpuloop.loop.evaluate.verify import MAX_UNSIGNED_RECORDS, VerifyReport, verify
from gpuloop.ops.cli.main import app
from gpuloop.schemas.codec import Encoded, Record, decode
from gpuloop.schemas.messages import AuditCheckpoint, AuditRecord


class Topic:
    """An audit topic written by a real auditor, which a test may then tamper with."""

    def __init__(self, key_file: Path) -> None:
        self.key = load_or_create(key_file)
        self.trusted = {public_hex(self.key)}
        self.auditor = Auditor(fleet="local", key=self.key)
        self.records: list[Record] = []
        self.anchors: list[AuditCheckpoint] = []
        self.offsets: dict[str, int] = {}

    def write(self, encoded: Encoded) -> None:
        self.records.append(
            Record(
                topic="audit",
                partition=0,
                offset=len(self.records),
                timestamp_ms=0,
                key=encoded.key,
                headers=encoded.headers,
                value=encoded.value,
            )
        )

    def happen(self, topic: str, count: int = 1, skip: int = 0) -> "Topic":
        for _ in range(count):
            offset = self.offsets.get(topic, -1) + 1 + skip
            self.offsets[topic] = offset
            source = Record(
                topic=topic,
                partition=0,
                offset=offset,
                timestamp_ms=offset,
                key=b"k",
                headers=(),
                value=f"{topic} {offset}".encode(),
            )
            self.write(self.auditor.audit(source))
        return self

    def sign(self) -> "Topic":
        checkpoint, record = self.auditor.checkpoint(wall_us=len(self.records))
        self.write(record)
        self.anchors.append(checkpoint)
        return self

    def verify(self, *, anchored: bool = True) -> VerifyReport:
        return verify(self.records, self.anchors if anchored else [], self.trusted)


@pytest.fixture
def topic(tmp_path: Path) -> Topic:
    """Two chains of 6 records, a checkpoint after each third, one unsigned record at the end."""
    topic = Topic(tmp_path / "key.pem")
    for _ in range(3):
        topic.happen("decisions", 2).happen("rewards", 2).sign()
    return topic.happen("decisions")


def message(record: Record) -> AuditRecord | AuditCheckpoint:
    found = decode(record)
    assert isinstance(found, AuditRecord | AuditCheckpoint)
    return found


def rewritten(record: Record, changed: AuditRecord | AuditCheckpoint) -> Record:
    return replace(record, value=msgspec.json.encode(changed))


def renumbered(records: Iterable[Record]) -> list[Record]:
    return [replace(record, offset=number) for number, record in enumerate(records)]


def first_bad(report: VerifyReport) -> str:
    assert not report.ok
    return str(report.first_bad)


def test_an_untouched_topic_verifies_and_is_counted(topic: Topic) -> None:
    report = topic.verify()
    assert report.first_bad is None
    assert report == VerifyReport(
        ok=True,
        records=13,
        chains=2,
        checkpoints=3,
        anchors=3,
        unsigned_records=1,
        first_bad=None,
    )


def test_an_empty_topic_verifies_unless_something_was_anchored(topic: Topic) -> None:
    assert verify([], [], topic.trusted).ok
    assert (
        "anchor 1: checkpoint 0: anchored, but the topic lacks decisions/0 record 0"
        in first_bad(verify([], topic.anchors, topic.trusted))
    )


def test_a_record_written_twice_is_still_one_record(topic: Topic) -> None:
    again = [*topic.records, topic.records[0], topic.records[5], topic.records[12]]
    report = verify(renumbered(again), topic.anchors, topic.trusted)
    assert report.first_bad is None
    assert report.records == 13


def test_a_changed_byte_is_found_where_it_is(topic: Topic) -> None:
    victim = message(topic.records[6])
    assert isinstance(victim, AuditRecord)
    changed = msgspec.structs.replace(victim, value=victim.value.replace("Z", "Y", 1))
    assert changed != victim
    topic.records[6] = rewritten(topic.records[6], changed)
    assert first_bad(topic.verify()) == (
        "audit offset 6: decisions/0 record 3: its hash does not follow from its content"
    )


def test_a_changed_record_with_its_own_hash_made_right_breaks_the_next(topic: Topic) -> None:
    victim = message(topic.records[5])
    assert isinstance(victim, AuditRecord)
    changed = msgspec.structs.replace(victim, value="Zm9yZ2Vk")
    changed = msgspec.structs.replace(changed, hash=record_hash(changed))
    topic.records[5] = rewritten(topic.records[5], changed)
    assert first_bad(topic.verify()) == (
        "audit offset 6: decisions/0 record 3: its previous hash is not that of record 2"
    )


def test_a_dropped_record_is_missed_by_the_next(topic: Topic) -> None:
    del topic.records[5]
    assert first_bad(topic.verify()) == (
        "audit offset 6: decisions/0 record 3: the records after 1 are missing before it"
    )


def test_a_swapped_pair_is_found_at_the_first(topic: Topic) -> None:
    topic.records[5:7] = topic.records[6], topic.records[5]
    assert first_bad(topic.verify()) == (
        "audit offset 6: decisions/0 record 3: the records after 1 are missing before it"
    )


def test_a_dropped_chain_beginning_is_found(topic: Topic) -> None:
    del topic.records[0]
    assert "decisions/0 record 1: its previous hash is not that of an empty chain" in first_bad(
        topic.verify()
    )


def test_a_dropped_record_before_a_checkpoint_is_missed_by_the_checkpoint(topic: Topic) -> None:
    del topic.records[13]
    assert "checkpoint 2: signs rewards/0 record 5, which is missing" in first_bad(topic.verify())


def test_a_cut_tail_is_found_against_the_anchors_only(topic: Topic) -> None:
    del topic.records[8:]
    assert topic.verify(anchored=False).ok
    assert first_bad(topic.verify()) == (
        "anchor 2: checkpoint 1: anchored, but the topic lacks rewards/0 record 3 and what follows"
    )


def test_a_cut_checkpoint_is_found_against_the_anchors(topic: Topic) -> None:
    del topic.records[14:]
    assert first_bad(topic.verify()) == "anchor 3: checkpoint 2: anchored, but not on the topic"


def test_a_dropped_checkpoint_is_missed_by_the_next(topic: Topic) -> None:
    del topic.records[9]
    assert "checkpoint 2: checkpoints from 1 on are missing before it" in first_bad(topic.verify())


def test_a_checkpoint_with_another_content_is_a_forgery(topic: Topic) -> None:
    victim = message(topic.records[9])
    assert isinstance(victim, AuditCheckpoint)
    forged = msgspec.structs.replace(victim, wall_us=victim.wall_us + 1)
    topic.records[9] = rewritten(topic.records[9], forged)
    assert first_bad(topic.verify(anchored=False)) == (
        "audit offset 9: checkpoint 1: its signature does not follow from its content"
    )
    rehashed = msgspec.structs.replace(forged, hash=checkpoint_hash(forged))
    topic.records[9] = rewritten(topic.records[9], rehashed)
    assert "its signature does not follow" in first_bad(topic.verify(anchored=False))


def test_a_history_written_by_a_stranger_is_not_trusted(topic: Topic, tmp_path: Path) -> None:
    stranger = Topic(tmp_path / "stranger.pem").happen("decisions", 3).sign()
    found = first_bad(verify(stranger.records, [], topic.trusted))
    assert found.startswith("audit offset 3: checkpoint 0: signed by ")
    assert found.endswith("who is not trusted")
    assert not verify(topic.records, topic.anchors, ()).ok


def test_a_history_rewritten_with_the_key_itself_differs_from_the_anchors(
    topic: Topic, tmp_path: Path
) -> None:
    forger = Topic(tmp_path / "key.pem").happen("decisions", 2).happen("rewards", 2).sign()
    forger.offsets["decisions"] = 1
    source = Record(
        topic="decisions", partition=0, offset=2, timestamp_ms=2, key=b"k", headers=(), value=b"!"
    )
    forger.write(forger.auditor.audit(source))
    forger.offsets["decisions"] = 2
    forger.happen("decisions").happen("rewards", 2).sign()
    assert forger.verify(anchored=False).ok
    assert first_bad(verify(forger.records, topic.anchors, topic.trusted)) == (
        "audit offset 6: decisions/0 record 3: differs from what was anchored: "
        "history was rewritten up to here"
    )


def test_a_forged_or_stray_anchor_is_found(topic: Topic, tmp_path: Path) -> None:
    stray = Topic(tmp_path / "stranger.pem").happen("decisions").sign().anchors[0]
    report = verify(topic.records, [*topic.anchors, stray], topic.trusted)
    assert "anchor 4: checkpoint 0: signed by" in first_bad(report)


def test_gaps_of_compacted_sources_are_no_news_and_those_of_others_are_told(topic: Topic) -> None:
    report = topic.happen("controls").happen("controls", skip=3).verify()
    assert (report.ok, report.missed) == (True, 0)
    report = topic.happen("rewards", skip=3).sign().happen("rewards").verify()
    assert report.ok
    assert (report.missed, [str(gap) for gap in report.gaps]) == (3, ["rewards/0 records 6 to 8"])


def test_a_chain_that_begins_late_says_what_it_lacks(tmp_path: Path) -> None:
    report = Topic(tmp_path / "key.pem").happen("rewards", skip=9).sign().verify()
    assert [str(gap) for gap in report.gaps] == ["rewards/0 records 0 to 8"]


def test_a_gap_that_no_auditor_owned_up_to_is_found(topic: Topic) -> None:
    topic.happen("rewards", skip=3)
    silent = message(topic.records[-1])
    assert isinstance(silent, AuditRecord)
    silent = msgspec.structs.replace(silent, missing_before=0)
    silent = msgspec.structs.replace(silent, hash=record_hash(silent))
    topic.records[-1] = rewritten(topic.records[-1], silent)
    assert "rewards/0 record 9: the records after 5 are missing" in first_bad(topic.verify())


def test_signed_records_cannot_be_taken_back_by_a_gap(topic: Topic) -> None:
    """A writer without the key claims that records which are signed had expired."""
    signed = message(topic.records[0])
    assert isinstance(signed, AuditRecord)
    forged = msgspec.structs.replace(
        signed, offset=9, missing_before=8, previous_hash=signed.hash, value="-"
    )
    forged = msgspec.structs.replace(forged, hash=record_hash(forged))
    topic.records.append(rewritten(replace(topic.records[0], offset=len(topic.records)), forged))
    assert "decisions/0 record 9: the records after 6 are missing" in first_bad(topic.verify())


def test_a_record_dropped_from_a_compacted_chain_is_still_missed(topic: Topic) -> None:
    topic.happen("controls").happen("controls").happen("controls")
    del topic.records[-2]
    assert "controls/0 record 2: its previous hash is not that of record 0" in first_bad(
        topic.verify()
    )


def test_a_foreign_record_on_the_topic_is_named(topic: Topic) -> None:
    topic.records[3] = replace(topic.records[3], value=b"hello")
    assert first_bad(topic.verify()).startswith("audit offset 3: foreign record: not_json")


def test_a_topic_that_is_not_audited_cannot_be_slipped_in(topic: Topic) -> None:
    victim = message(topic.records[0])
    assert isinstance(victim, AuditRecord)
    slipped = msgspec.structs.replace(victim, topic="deadletters", previous_hash=GENESIS)
    slipped = msgspec.structs.replace(slipped, hash=record_hash(slipped))
    topic.records.append(rewritten(topic.records[0], slipped))
    assert "the topic is not an audited one" in first_bad(topic.verify())


def test_a_second_checkpoint_of_one_number_is_the_work_of_a_restarted_auditor(
    topic: Topic,
) -> None:
    successor = Auditor(fleet="local", key=topic.key, last=topic.anchors[1])
    checkpoint, record = successor.checkpoint(wall_us=99)
    assert checkpoint.number == topic.anchors[2].number
    topic.write(record)
    following, record = successor.checkpoint(wall_us=100)
    topic.write(record)
    topic.anchors += [checkpoint, following]
    assert topic.verify().first_bad is None


def test_a_topic_stripped_of_its_checkpoints_is_found(tmp_path: Path) -> None:
    topic = Topic(tmp_path / "key.pem").happen("rewards", MAX_UNSIGNED_RECORDS + 1)
    assert f"no checkpoint within {MAX_UNSIGNED_RECORDS} records" in first_bad(topic.verify())


def test_another_record_under_a_number_already_chained_is_found(topic: Topic) -> None:
    victim = message(topic.records[5])
    assert isinstance(victim, AuditRecord)
    other = msgspec.structs.replace(victim, value="Zm9yZ2Vk")
    other = msgspec.structs.replace(other, hash=record_hash(other))
    topic.records.append(rewritten(topic.records[5], other))
    assert "decisions/0 record 2: differs from what is chained under this number already" in (
        first_bad(topic.verify())
    )


def test_a_signed_checkpoint_that_follows_no_known_one_is_found(topic: Topic) -> None:
    fork = Auditor(
        fleet="local",
        key=topic.key,
        last=msgspec.structs.replace(topic.anchors[1], hash="1" * 64),
    )
    topic.write(fork.checkpoint(wall_us=99)[1])
    assert "checkpoint 2: does not follow the checkpoint before it" in first_bad(topic.verify())


@pytest.mark.parametrize(("anchors", "said"), [(1, True), (3, False)])
def test_checkpoints_that_are_anchored_nowhere_are_said(
    monkeypatch: pytest.MonkeyPatch, anchors: int, said: bool
) -> None:
    report = VerifyReport(
        ok=True,
        records=9,
        chains=1,
        checkpoints=3,
        anchors=anchors,
        unsigned_records=0,
        first_bad=None,
    )
    monkeypatch.setattr("gpuloop.loop.evaluate.audit.verify_topic", lambda _: report)
    shown = CliRunner().invoke(app, ["audit", "verify", "--bootstrap-servers", "127.0.0.1:1"])
    assert shown.exit_code == 0
    assert ("2 checkpoints have no anchor" in shown.output) is said
