"""The auditor: extends the chains record by record and signs where they stand.

The one writer of the `audit` topic. After a start it goes on from the newest checkpoint it can
trust and derives what follows from the sources again: nothing unsigned on the topic is believed,
and what had been written already is written a second time with the same hash. Reads no clock: the
wall time of a checkpoint is an argument.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuloop.loop.evaluate.chain import (
    AUDITED,
    GENESIS,
    AuditError,
    chained,
    gaps_allowed,
    is_genuine,
    signed_checkpoint,
)
from gpuloop.loop.shells.broker import Broker, Partition, read_between
from gpuloop.schemas.codec import BadInput, Encoded, Record, decode, encode
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import AuditCheckpoint
from gpuloop.schemas.messages.record import ChainHead
from gpuloop.schemas.units import MINUTE_US

TOPIC: Final = "audit"
CHECKPOINT_EVERY_US: Final = MINUTE_US
CHECKPOINT_EVERY_RECORDS: Final = 1000
TAIL_RECORDS: Final = 2000


class Auditor:
    """The heads of all chains and the last checkpoint; state that lives in the topic itself."""

    def __init__(
        self, *, fleet: str, key: Ed25519PrivateKey, last: AuditCheckpoint | None = None
    ) -> None:
        self._fleet: Final = fleet
        self._key: Final = key
        self._last = last
        self._heads: dict[Partition, ChainHead] = {
            Partition(head.topic, head.partition): head for head in (last.heads if last else ())
        }
        self._since = 0

    @property
    def unsigned(self) -> int:
        """Return how many records no checkpoint covers yet."""
        return self._since

    def positions(
        self, beginnings: Mapping[Partition, int], ends: Mapping[Partition, int]
    ) -> dict[Partition, int]:
        """Return the offset at which each source goes on.

        Raises:
            AuditError: a source is shorter than its chain, so it is not the one that was audited.

        """
        positions = {}
        for part, first in beginnings.items():
            head = self._heads.get(part)
            positions[part] = first if head is None else max(first, head.offset + 1)
            if positions[part] > ends[part]:
                raise AuditError(f"{part} ends at {ends[part]}, its chain at {positions[part]}")
        return positions

    def gap(self, record: Record) -> int:
        """Return how many records before this one expired unaudited; 0 where a topic compacts."""
        return 0 if gaps_allowed(record.topic) else self._missing_before(record)

    def _missing_before(self, record: Record) -> int:
        head = self._heads.get(Partition(record.topic, record.partition))
        return record.offset - (head.offset + 1 if head else 0)

    def audit(self, record: Record) -> Encoded:
        """Extend the record's chain; return what to write, which must succeed before going on."""
        part = Partition(record.topic, record.partition)
        head = self._heads.get(part)
        entry = chained(
            record,
            fleet=self._fleet,
            previous_hash=head.hash if head else GENESIS,
            missing_before=self._missing_before(record),
        )
        self._heads[part] = ChainHead(
            fleet=self._fleet,
            topic=entry.topic,
            partition=entry.partition,
            offset=entry.offset,
            hash=entry.hash,
        )
        self._since += 1
        return encode(
            TOPIC,
            str(part),
            entry,
            event_id=derived_event_id(entry.TYPE, (self._fleet, str(part), str(entry.offset))),
            source="auditor",
        )

    def due(self, wall_us: int) -> bool:
        """Say whether it is time to sign: a minute or a thousand records after the last time."""
        if self._last is None:
            return self._since > 0
        waited = wall_us - self._last.wall_us
        return waited >= CHECKPOINT_EVERY_US or self._since >= CHECKPOINT_EVERY_RECORDS

    def checkpoint(self, wall_us: int) -> tuple[AuditCheckpoint, Encoded]:
        """Sign all heads, which must be written already; return the checkpoint and its record."""
        last = self._last
        signed = signed_checkpoint(
            self._heads.values(),
            fleet=self._fleet,
            number=last.number + 1 if last else 0,
            wall_us=wall_us,
            previous_hash=last.hash if last else GENESIS,
            key=self._key,
        )
        self._last, self._since = signed, 0
        record = encode(
            TOPIC,
            "checkpoint",
            signed,
            event_id=derived_event_id(signed.TYPE, (self._fleet, signed.hash)),
            source="auditor",
        )
        return signed, record


def sources(broker: Broker) -> list[Partition]:
    """Return every partition that has a chain."""
    return [part for topic in AUDITED for part in broker.partitions(topic)]


def last_checkpoint(
    broker: Broker, anchors: Iterable[AuditCheckpoint], trusted_keys: Collection[str]
) -> AuditCheckpoint | None:
    """Return the newest trusted checkpoint of topic and anchors; None when there is none at all.

    Raises:
        AuditError: there are checkpoints, but no trusted key signed any of them.

    """
    found = [*anchors, *_newest_on_topic(broker, trusted_keys)]
    trusted = [checkpoint for checkpoint in found if is_genuine(checkpoint, trusted_keys)]
    if found and not trusted:
        signers = ", ".join(sorted({checkpoint.public_key for checkpoint in found}))
        raise AuditError(
            f"the audit topic was signed by keys that are not trusted: {signers}; put the auditor's"
            " key back, or name these in GPULOOP_AUDIT_KEYS"
        )
    return max(trusted, key=lambda checkpoint: checkpoint.number, default=None)


def _newest_on_topic(broker: Broker, trusted_keys: Collection[str]) -> list[AuditCheckpoint]:
    """Read the topic backwards, a stretch at a time, until one holds a genuine checkpoint."""
    (part,) = broker.partitions(TOPIC)
    first, until = broker.beginnings([part])[part], broker.ends([part])[part]
    seen: list[AuditCheckpoint] = []
    while until > first:
        start = max(first, until - TAIL_RECORDS)
        for record in read_between(broker, part, start, until):
            try:
                message = decode(record)
            except BadInput:
                continue  # Somebody else wrote it; verification names it.
            if isinstance(message, AuditCheckpoint):
                seen.append(message)
        if any(is_genuine(checkpoint, trusted_keys) for checkpoint in seen):
            break
        until = start
    return seen
