"""Verification: recompute every hash on the audit topic and name the first thing that is wrong.

It trusts nothing but the public keys it is given and the anchors from outside the topic. What each
kind of tampering runs into: a changed byte, the record's own hash; a dropped or moved record, the
next one's number and previous hash; a chain hashed anew, the checkpoints' signatures; checkpoints
signed anew, or a cut tail, the anchors. Records after the last checkpoint are chained but not yet
signed, so a cut among those cannot be told from a topic that ends there; the report counts them.
"""

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import msgspec

from gpuloop.loop.evaluate.chain import (
    AUDITED,
    GENESIS,
    gaps_allowed,
    is_genuine,
    record_hash,
)
from gpuloop.schemas.codec import BadInput, Record, decode
from gpuloop.schemas.messages import AuditCheckpoint, AuditRecord

MAX_GAPS: Final = 100
MAX_UNSIGNED_RECORDS: Final = 5000
"""An auditor signs every 1,000 records; a longer stretch has lost its checkpoints."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong and where: `at` is the place on the topic, `subject` what stands there."""

    at: str
    subject: str
    problem: str

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.at}: {self.subject}: {self.problem}"


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Records of a source that were never audited: they had expired by then, the chain says."""

    topic: str
    partition: int
    first: int
    last: int

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.topic}/{self.partition} records {self.first} to {self.last}"


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was verified up to the end, or up to `first_bad`; `records` counts no duplicates.

    `ok` says that nothing was tampered with. `missed` records of sources that keep all of them are
    in no chain, where `gaps` says, of which the first `MAX_GAPS` are named.
    """

    ok: bool
    records: int
    chains: int
    checkpoints: int
    anchors: int
    unsigned_records: int
    first_bad: Finding | None
    missed: int = 0
    gaps: tuple[Gap, ...] = ()


class _Bad(Exception):
    """The first bad thing was found; the caller knows where."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(problem)
        self.subject = subject
        self.problem = problem


class _Chain:
    """The numbers and hashes of one chain, packed: 40 bytes a record."""

    def __init__(self) -> None:
        self.numbers = array("q")
        self.signed = 0
        self._hashes = bytearray()

    @property
    def head(self) -> str:
        return self.hash_at(len(self.numbers))

    def hash_at(self, length: int) -> str:
        """Return the hash that stands after the first `length` records."""
        return self._hashes[32 * (length - 1) : 32 * length].hex() if length else GENESIS

    @property
    def last(self) -> int:
        return self.numbers[-1] if self.numbers else -1

    def add(self, number: int, digest: str) -> None:
        self.numbers.append(number)
        self._hashes += bytes.fromhex(digest)

    def cut(self, length: int) -> int:
        """Forget the records after the first `length`; return how many."""
        forgotten = len(self.numbers) - length
        del self.numbers[length:]
        del self._hashes[32 * length :]
        return forgotten

    def find(self, number: int, digest: str) -> int | None:
        """Return how many records the chain has up to this one; None when it is not there."""
        index = bisect_left(self.numbers, number)
        if index == len(self.numbers) or self.numbers[index] != number:
            return None
        found = self._hashes[32 * index : 32 * index + 32].hex() == digest
        return index + 1 if found else None


class _Verifier:
    """Reads the topic once, in order; raises `_Bad` at the first thing that is wrong."""

    def __init__(self, anchors: Sequence[AuditCheckpoint], trusted_keys: Collection[str]) -> None:
        self._trusted: Final = trusted_keys
        self._anchors: Final = anchors
        self._anchored: Final = {
            (head.topic, head.partition, head.offset): head.hash
            for anchor in anchors
            for head in anchor.heads
        }
        self._chains: Final[dict[tuple[str, int], _Chain]] = {}
        self._checkpoints: Final[list[set[str]]] = []
        self._unsigned = 0
        self._missed = 0
        self._gaps: Final[list[Gap]] = []

    @property
    def checkpoints(self) -> int:
        return len(self._checkpoints)

    def check_anchor(self, anchor: AuditCheckpoint) -> None:
        self._check_genuine(anchor)

    def check(self, record: Record) -> None:
        try:
            message = decode(record)
        except BadInput as error:
            raise _Bad("foreign record", str(error)) from None
        if isinstance(message, AuditCheckpoint):
            self._check_checkpoint(message)
        elif isinstance(message, AuditRecord):
            self._check_record(message)

    def _check_record(self, record: AuditRecord) -> None:
        subject = f"{record.topic}/{record.partition} record {record.offset}"
        if record.topic not in AUDITED:
            raise _Bad(subject, "the topic is not an audited one")
        if record.hash != record_hash(record):
            raise _Bad(subject, "its hash does not follow from its content")
        chain = self._chains.setdefault((record.topic, record.partition), _Chain())
        if chain.find(record.offset, record.hash) is not None:
            return
        if record.missing_before:
            self._unsigned -= _take_back(chain, record)
        if record.offset <= chain.last:
            raise _Bad(subject, "differs from what is chained under this number already")
        self._check_gap(chain, record, subject)
        if record.previous_hash != chain.head:
            after = f"record {chain.last}" if chain.numbers else "an empty chain"
            raise _Bad(subject, f"its previous hash is not that of {after}")
        anchored = self._anchored.get((record.topic, record.partition, record.offset))
        if anchored is not None and anchored != record.hash:
            raise _Bad(subject, "differs from what was anchored: history was rewritten up to here")
        chain.add(record.offset, record.hash)
        self._unsigned += 1
        if self._unsigned > MAX_UNSIGNED_RECORDS:
            raise _Bad(subject, f"no checkpoint within {MAX_UNSIGNED_RECORDS} records")

    def _check_gap(self, chain: _Chain, record: AuditRecord, subject: str) -> None:
        """Take a gap that the auditor owned up to, and note it; compaction needs no excuse."""
        missing = record.offset - chain.last - 1
        if not missing or gaps_allowed(record.topic):
            return
        # Auditors of old did not own up to a late beginning; their first hash tells of it anyway.
        if record.missing_before != missing and chain.numbers:
            raise _Bad(subject, f"the records after {chain.last} are missing before it")
        self._missed += missing
        if len(self._gaps) < MAX_GAPS:
            self._gaps.append(
                Gap(
                    topic=record.topic,
                    partition=record.partition,
                    first=chain.last + 1,
                    last=record.offset - 1,
                )
            )

    def _check_checkpoint(self, checkpoint: AuditCheckpoint) -> None:
        subject, known = f"checkpoint {checkpoint.number}", self._checkpoints
        self._check_genuine(checkpoint)
        if checkpoint.number > len(known):
            raise _Bad(subject, f"checkpoints from {len(known)} on are missing before it")
        before = known[checkpoint.number - 1] if checkpoint.number else {GENESIS}
        if checkpoint.previous_hash not in before:
            raise _Bad(subject, "does not follow the checkpoint before it")
        for head in checkpoint.heads:
            chain = self._chains.get((head.topic, head.partition))
            length = chain.find(head.offset, head.hash) if chain else None
            if chain is None or length is None:
                signed = f"{head.topic}/{head.partition} record {head.offset}"
                raise _Bad(subject, f"signs {signed}, which is missing or another before it")
            self._unsigned -= max(length - chain.signed, 0)
            chain.signed = max(chain.signed, length)
        # An auditor that died before it learned that its checkpoint was written writes another of
        # that number: both are true, and the next may follow either.
        if checkpoint.number == len(known):
            known.append(set())
        known[checkpoint.number].add(checkpoint.hash)

    def check_anchor_is_on_topic(self, anchor: AuditCheckpoint) -> None:
        known = self._checkpoints
        if anchor.number < len(known) and anchor.hash in known[anchor.number]:
            return
        subject = f"checkpoint {anchor.number}"
        for head in anchor.heads:
            chain = self._chains.get((head.topic, head.partition), _Chain())
            if chain.find(head.offset, head.hash) is None:
                lost = f"{head.topic}/{head.partition} record {max(chain.last + 1, 0)}"
                raise _Bad(subject, f"anchored, but the topic lacks {lost} and what follows")
        raise _Bad(subject, "anchored, but not on the topic")

    def _check_genuine(self, checkpoint: AuditCheckpoint) -> None:
        if is_genuine(checkpoint, self._trusted):
            return
        subject = f"checkpoint {checkpoint.number}"
        if checkpoint.public_key not in self._trusted:
            raise _Bad(
                subject, f"signed by {checkpoint.public_key or 'nobody'}, who is not trusted"
            )
        raise _Bad(subject, "its signature does not follow from its content")

    def report(self, first_bad: Finding | None) -> VerifyReport:
        return VerifyReport(
            ok=first_bad is None,
            records=sum(len(chain.numbers) for chain in self._chains.values()),
            chains=len(self._chains),
            checkpoints=self.checkpoints,
            anchors=len(self._anchors),
            unsigned_records=self._unsigned,
            missed=self._missed,
            gaps=tuple(self._gaps),
            first_bad=first_bad,
        )


def _take_back(chain: _Chain, record: AuditRecord) -> int:
    """Forget what an auditor chained, did not live to sign, and found expired when it came back.

    Its successor goes on from what was signed, so its first record follows that one, across a gap.
    Return how many records are forgotten; what is signed is never taken back.
    """
    length = bisect_left(chain.numbers, record.offset - record.missing_before)
    if length >= chain.signed and record.previous_hash == chain.hash_at(length):
        return chain.cut(length)
    return 0


def verify(
    records: Iterable[Record],
    anchors: Sequence[AuditCheckpoint],
    trusted_keys: Collection[str],
    *,
    whole: bool = True,
) -> VerifyReport:
    """Verify the audit topic from its beginning, in order, against the anchors.

    Args:
        records: the topic's records.
        anchors: checkpoints known from outside it, in their order.
        trusted_keys: hex public keys; without any, the first checkpoint is the first bad thing.
        whole: the records reach to the topic's end, so every anchor must be among them.

    """
    verifier = _Verifier(anchors, trusted_keys)
    at = ""
    try:
        for index, anchor in enumerate(anchors, start=1):
            at = f"anchor {index}"
            verifier.check_anchor(anchor)
        for record in records:
            at = f"audit offset {record.offset}"
            verifier.check(record)
        for index, anchor in enumerate(anchors, start=1):
            at = f"anchor {index}"
            if whole or anchor.number < verifier.checkpoints:
                verifier.check_anchor_is_on_topic(anchor)
    except _Bad as bad:
        return verifier.report(Finding(at=at, subject=bad.subject, problem=bad.problem))
    return verifier.report(None)
