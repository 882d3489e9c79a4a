"""The auditor's process on a broker in memory: however it ends, one chain goes on."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from gpuloop.loop.evaluate.audit import anchors_of, trusted_keys, verify_topic
from gpuloop.loop.evaluate.auditor import CHECKPOINT_EVERY_RECORDS
from gpuloop.loop.evaluate.chain import AuditError
from gpuloop.loop.services.auditor import run
from gpuloop.loop.services.health import Health
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import BrokerError, Partition, Placed
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.schemas.codec import Encoded, decode
from gpuloop.schemas.messages import AuditCheckpoint, AuditRecord
from gpuloop.schemas.units import MINUTE_US

AUDIT = Partition("audit", 0)


class FailingBroker(MemoryBroker):
    """Dies at the nth write to the audit topic, before or after the records have landed."""

    def __init__(self) -> None:
        super().__init__()
        self.dies_at = -1
        self.lands = False
        self.after_produce: Callable[[], None] = lambda: None

    def produce(self, records: Sequence[Encoded]) -> list[Placed]:
        if records[0].topic == "audit":
            self.dies_at -= 1
            if self.dies_at == 0:
                if self.lands:
                    super().produce(records)
                raise BrokerError("the write may or may not have taken place")
        placed = super().produce(records)
        self.after_produce()
        return placed


class Clock:
    def __init__(self) -> None:
        self.now = 1_760_000_000_000_000

    def __call__(self) -> int:
        self.now += MINUTE_US // 3
        return self.now


def happen(broker: MemoryBroker, topic: str, count: int) -> None:
    partition = broker.partitions(topic)[0].number
    broker.produce(
        [
            Encoded(topic=topic, key=b"k", headers=(), value=b"%d" % i, partition=partition)
            for i in range(count)
        ]
    )


def audited(broker: MemoryBroker, topic: str) -> bool:
    part = broker.partitions(topic)[0]
    written = {
        message.offset
        for message in map(decode, broker.logs[AUDIT])
        if isinstance(message, AuditRecord) and message.topic == topic
    }
    return written >= set(range(broker.ends([part])[part]))


def run_until_audited(
    broker: FailingBroker, settings: Settings, clock: Callable[[], int], *topics: str
) -> None:
    """Run the auditor and ask it to stop once every record of `topics` is on the audit topic."""
    stop = threading.Event()

    def look() -> None:
        if all(audited(broker, topic) for topic in topics):
            stop.set()

    broker.after_produce = look
    look()
    run(broker, settings, Health("auditor"), stop, clock)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


def test_a_clean_stop_leaves_nothing_unsigned(settings: Settings) -> None:
    broker, clock = FailingBroker(), Clock()
    happen(broker, "decisions", 7)
    happen(broker, "controls", 3)
    run_until_audited(broker, settings, clock, "decisions", "controls")
    report = verify_topic(settings, broker)
    assert report.first_bad is None
    assert (report.records, report.chains, report.unsigned_records) == (10, 2, 0)
    assert report.anchors == report.checkpoints > 0


def test_a_restart_goes_on_where_the_last_checkpoint_stands(settings: Settings) -> None:
    broker, clock = FailingBroker(), Clock()
    happen(broker, "decisions", 7)
    run_until_audited(broker, settings, clock, "decisions")
    written = len(broker.logs[AUDIT])
    happen(broker, "decisions", 2)
    run_until_audited(broker, settings, clock, "decisions")
    keys = [record.key for record in broker.logs[AUDIT][written:]]
    assert keys.count(b"decisions/0") == 2
    assert verify_topic(settings, broker).records == 9


@pytest.mark.parametrize("lands", [False, True])
@pytest.mark.parametrize("dies_at", [1, 2, 3, 4])
def test_a_chain_survives_death_at_any_write(settings: Settings, dies_at: int, lands: bool) -> None:
    broker, clock = FailingBroker(), Clock()
    for life in range(4):
        happen(broker, "decisions", 3)
        happen(broker, "rewards", 2)
        broker.dies_at, broker.lands = (dies_at + life, lands)
        try:
            run_until_audited(broker, settings, clock, "decisions", "rewards")
        except BrokerError:
            continue
    broker.dies_at = -1
    happen(broker, "decisions", 1)
    run_until_audited(broker, settings, clock, "decisions", "rewards")
    report = verify_topic(settings, broker)
    assert report.first_bad is None
    assert report.records == 4 * 5 + 1
    assert report.unsigned_records == 0


def test_many_records_are_signed_before_a_minute_has_passed(settings: Settings) -> None:
    broker = FailingBroker()
    happen(broker, "decisions", 3 * CHECKPOINT_EVERY_RECORDS)
    run_until_audited(broker, settings, lambda: 1_760_000_000_000_000, "decisions")
    assert verify_topic(settings, broker).checkpoints >= 3


def test_a_lost_anchor_file_is_begun_again_from_the_topic(settings: Settings) -> None:
    broker, clock = FailingBroker(), Clock()
    happen(broker, "decisions", 5)
    run_until_audited(broker, settings, clock, "decisions")
    (settings.state_dir / "audit" / "anchors.jsonl").unlink()
    happen(broker, "decisions", 5)
    run_until_audited(broker, settings, clock, "decisions")
    report = verify_topic(settings, broker)
    assert report.first_bad is None
    assert report.records == 10
    assert report.anchors == 2


def test_a_topic_cut_behind_the_auditors_back_stays_visible(settings: Settings) -> None:
    broker, clock = FailingBroker(), Clock()
    happen(broker, "decisions", 5)
    run_until_audited(broker, settings, clock, "decisions")
    del broker.logs[AUDIT][2:]
    happen(broker, "decisions", 5)
    stop = threading.Event()
    broker.after_produce = stop.set
    run(broker, settings, Health("auditor"), stop, clock)
    report = verify_topic(settings, broker)
    assert "the records after 1 are missing before it" in str(report.first_bad)


def test_an_auditor_with_a_lost_key_does_not_begin_a_second_history(settings: Settings) -> None:
    broker, clock = FailingBroker(), Clock()
    happen(broker, "decisions", 5)
    run_until_audited(broker, settings, clock, "decisions")
    (settings.state_dir / "keys" / "auditor.pem").unlink()
    with pytest.raises(AuditError, match="not trusted"):
        run_until_audited(broker, settings, clock, "decisions")


def test_an_auditor_refuses_a_source_shorter_than_its_chain(settings: Settings) -> None:
    broker, clock = FailingBroker(), Clock()
    happen(broker, "decisions", 5)
    run_until_audited(broker, settings, clock, "decisions")
    del broker.logs[Partition("decisions", 0)][2:]
    with pytest.raises(AuditError, match="decisions/0 ends at 2, its chain at 5"):
        run_until_audited(broker, settings, clock, "decisions")


def test_records_that_expired_before_they_were_audited_are_reported(settings: Settings) -> None:
    broker, clock = FailingBroker(), Clock()
    happen(broker, "proposals", 5)
    run_until_audited(broker, settings, clock, "proposals")
    happen(broker, "proposals", 5)
    broker.expire(Partition("proposals", 0), 8)
    stop = threading.Event()
    broker.after_produce = stop.set
    run(broker, settings, Health("auditor"), stop, clock)
    report = verify_topic(settings, broker)
    assert report.ok
    assert (report.missed, [str(gap) for gap in report.gaps]) == (3, ["proposals/0 records 5 to 7"])


def test_what_a_crash_left_unsigned_and_downtime_let_expire_is_a_gap_and_no_forgery(
    settings: Settings,
) -> None:
    broker, clock = FailingBroker(), Clock()
    happen(broker, "proposals", 5)
    run_until_audited(broker, settings, clock, "proposals")
    happen(broker, "proposals", 3)
    broker.dies_at, broker.lands = 1, True
    with pytest.raises(BrokerError):
        run_until_audited(broker, settings, clock, "proposals")
    broker.dies_at = -1
    happen(broker, "proposals", 2)
    broker.expire(Partition("proposals", 0), 7)
    stop = threading.Event()
    broker.after_produce = stop.set
    run(broker, settings, Health("auditor"), stop, clock)
    report = verify_topic(settings, broker)
    assert report.first_bad is None
    assert [str(gap) for gap in report.gaps] == ["proposals/0 records 5 to 6"]
    assert (report.records, report.unsigned_records) == (8, 0)


def test_every_checkpoint_on_the_topic_is_anchored(settings: Settings) -> None:
    broker, clock = FailingBroker(), Clock()
    for _ in range(3):
        happen(broker, "rewards", 4)
        run_until_audited(broker, settings, clock, "rewards")
    on_topic = [decode(record) for record in broker.logs[AUDIT]]
    signed = [message for message in on_topic if isinstance(message, AuditCheckpoint)]
    assert anchors_of(settings).read() == signed


def test_who_may_sign_policies_may_not_sign_what_happened(settings: Settings) -> None:
    broker, clock = FailingBroker(), Clock()
    happen(broker, "decisions", 5)
    run_until_audited(broker, settings, clock, "decisions")
    [signer] = trusted_keys(settings)
    (settings.state_dir / "keys" / "auditor.pem").unlink()
    of_policies = msgspec.structs.replace(settings, trusted_keys=(signer,))
    assert "who is not trusted" in str(verify_topic(of_policies, broker).first_bad)
    of_audits = msgspec.structs.replace(settings, audit_keys=(signer,))
    assert verify_topic(of_audits, broker).ok
