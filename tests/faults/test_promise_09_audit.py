"""Promise 9: every effect has one verifiable audit record.

A storm changes a world; the auditor's own process loop reads what was said, dying at any write of
its own with the write landed or not, and is restarted. Then every effect in the world, counted by
its generations, has exactly one audited outcome that says so, with the bytes that stood on the
topic, and the whole topic verifies. And an effect's record that is changed, dropped, moved or
followed by a history made anew no longer does. As a process on Kafka:
`tests/integration/test_audit_kafka.py`; any byte: `tests/property/test_audit_tampering.py`.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pytest

from faults.guards import Guard, both, line, violations
from faults.storm import Storm, rage, storm
from faults.until_read import UntilRead
from gpuloop.loop.evaluate import chain, verify
from gpuloop.loop.evaluate.audit import verify_topic
from gpuloop.loop.evaluate.auditor import Auditor
from gpuloop.loop.services.auditor import run
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import BrokerError, Partition, Placed
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.transactional import TransactionalShell
from gpuloop.schemas.codec import Encoded, Record, decode, encode
from gpuloop.schemas.messages import AuditRecord, Outcome
from gpuloop.schemas.units import SECOND_US

AUDIT = Partition("audit", 0)
WALL_US = 1_760_000_000_000_000


class AuditedBroker(MemoryBroker):
    """A broker that fails the auditor's writes now and then."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(wall=lambda: WALL_US)
        self.rng = rng
        self.bad_luck = 0.0

    def produce(self, records: Sequence[Encoded]) -> list[Placed]:
        """Write records, or fail with some of them landed."""
        if records[0].topic == "audit" and self.rng.random() < self.bad_luck:
            super().produce(records[: self.rng.integers(0, len(records) + 1)])
            raise BrokerError("whether the write took place is unknown")
        return super().produce(records)


def message_of(record: Record) -> AuditRecord:
    """Return the audit record in a record."""
    message = decode(record)
    assert isinstance(message, AuditRecord)
    return message


def audited(world: Storm, settings: Settings, *, deaths: int) -> AuditedBroker:
    """Let the auditor follow what the world's topics hold, in as many lives as it takes."""
    broker = AuditedBroker(world.rng)
    parts = [part for part in world.broker.logs if part.topic in chain.AUDITED]
    told = [record for part in parts for record in world.broker.logs[part]]
    for life in range(deaths + 1):
        share = told[life * len(told) // (deaths + 1) : (life + 1) * len(told) // (deaths + 1)]
        broker.bad_luck = 0.0
        for record in share:
            broker.produce([rewritten(record)])
        broker.bad_luck = 0.5 if life < deaths else 0.0
        health = UntilRead("auditor", broker)
        try:
            run(broker, settings, health, health.stop, clock())
        except BrokerError:
            continue
    return broker


def rewritten(record: Record) -> Encoded:
    """Return a record as it is to be written on another broker."""
    return Encoded(
        topic=record.topic, key=record.key or b"", headers=record.headers,
        value=record.value or b"", partition=record.partition,
    )  # fmt: skip


def clock() -> "partial[int]":
    """Return a clock that is twenty seconds further at each look."""
    times = iter(range(WALL_US, 2**60, 20 * SECOND_US))
    return partial(next, times)


def effects_on_record(broker: AuditedBroker) -> Counter[str]:
    """Return by pool how many different outcomes on record say that it was changed."""
    numbers: dict[str, set[str]] = {}
    for record in broker.logs[AUDIT]:
        message = decode(record)
        if not isinstance(message, AuditRecord) or message.topic != "actions.outcomes":
            continue
        value = chain.original(message.value)
        outcome = msgspec.json.decode(value or b"", type=Outcome)
        if outcome.status == "applied":
            numbers.setdefault(outcome.pool, set()).add(outcome.command_id)
    return Counter({pool: len(ids) for pool, ids in numbers.items()})


def check(seed: int) -> list[str]:
    """Return effects without a record, records without an effect, and a chain that is not whole."""
    with storm(seed) as world, TemporaryDirectory() as folder:
        rage(world, 25)
        settings = Settings(state_dir=Path(folder))
        broker = audited(world, settings, deaths=seed % 4)
        counted = effects_on_record(broker)
        found = [
            f"{pool} was changed {times} times, {counted[pool]} are on record"
            for pool, times in world.generations().items()
            if times != counted[pool]
        ]
        report = verify_topic(settings, broker)
        if report.first_bad is not None:
            found.append(str(report.first_bad))
        if report.unsigned_records:
            found.append(f"{report.unsigned_records} records are unsigned")
        return found


TAMPERINGS = ("another word", "another word and its hash", "dropped", "moved", "made anew")


def check_tampering(seed: int) -> list[str]:
    """Return how a record of an effect could be tampered with unseen."""
    way = TAMPERINGS[seed % len(TAMPERINGS)]
    with storm(1) as world, TemporaryDirectory() as folder:
        rage(world, 25)
        settings = Settings(state_dir=Path(folder))
        broker = audited(world, settings, deaths=0)
        tamper(broker, way)
        return [f"{way}: unseen"] if verify_topic(settings, broker).ok else []


def tamper(broker: AuditedBroker, way: str) -> None:
    """Change what is on record of the first effect."""
    log = broker.logs[AUDIT]
    at = next(
        i
        for i, record in enumerate(log)
        if record.key == b"actions.outcomes/0"
        and b'"applied"' in (chain.original(message_of(record).value) or b"")
    )
    entry = message_of(log[at])
    if way == "dropped":
        log[at:] = [_at(record, i) for i, record in enumerate(log[at + 1 :], start=at)]
        return
    if way == "moved":
        after = next(i for i in range(at + 1, len(log)) if log[i].key == log[at].key)
        log[at], log[after] = _at(log[after], at), _at(log[at], after)
        return
    changed = msgspec.structs.replace(entry, timestamp_ms=entry.timestamp_ms + 1)
    if way != "another word":
        changed = msgspec.structs.replace(changed, hash=chain.record_hash(changed))
    log[at] = _holding(log[at], changed)
    if way != "made anew":
        return
    head = changed.hash
    for i in range(at + 1, len(log)):  # The chain is hashed again; nobody can sign it again.
        if log[i].key == log[at].key:
            following = msgspec.structs.replace(message_of(log[i]), previous_hash=head)
            head = chain.record_hash(following)
            log[i] = _holding(log[i], msgspec.structs.replace(following, hash=head))


def _holding(record: Record, entry: AuditRecord) -> Record:
    value = encode("audit", "k", entry, event_id="e", source="auditor").value
    return _at(record, record.offset, value)


def _at(record: Record, offset: int, value: bytes | None = None) -> Record:
    return Record(
        topic=record.topic, partition=record.partition, offset=offset,
        timestamp_ms=record.timestamp_ms, key=record.key, headers=record.headers,
        value=record.value if value is None else value,
    )  # fmt: skip


def test_every_effect_is_on_record_once_and_the_record_verifies() -> None:
    assert violations(check, range(16)) == []


@pytest.mark.parametrize("seed", range(len(TAMPERINGS)), ids=TAMPERINGS)
def test_a_record_of_an_effect_cannot_be_changed_unseen(seed: int) -> None:
    assert check_tampering(seed) == []


GUARDS = [
    Guard(
        "outcomes are sent again after a death",
        line(TransactionalShell.open, ("self._send(unsent)", "pass")),
        check,
    ),
    Guard(
        "the auditor goes on where it has signed",
        line(
            Auditor.positions,
            ("first if head is None else max(first, head.offset + 1)", "ends[part]"),
        ),
        check,
    ),
    Guard(
        "every record is in its place",
        line(
            Auditor.audit,
            ("previous_hash=head.hash if head else GENESIS", "previous_hash=GENESIS"),
        ),
        check,
    ),
    Guard(
        "a record's hash is computed again",
        line(
            verify._Verifier._check_record, ("if record.hash != record_hash(record):", "if False:")
        ),
        check_tampering,
    ),
    Guard(
        "a record follows the one before",
        line(
            verify._Verifier._check_record, ("if record.previous_hash != chain.head:", "if False:")
        ),
        check_tampering,
    ),
    Guard(
        "what was signed and anchored must be what is there",
        both(
            line(
                verify._Verifier._check_checkpoint,
                (
                    "length = chain.find(head.offset, head.hash) if chain else None",
                    "length = len(chain.numbers) if chain else None",
                ),
            ),
            line(
                verify._Verifier._check_record,
                ("if anchored is not None and anchored != record.hash:", "if False:"),
            ),
        ),
        check_tampering,
        range(len(TAMPERINGS)),
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
