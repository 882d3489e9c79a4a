"""The audit chain: which topics it covers, what is hashed, and in which bytes.

A chain is one source partition and a record's number is its offset, so the chain follows from the
source alone and writing a record twice writes the same thing. Every hash covers the one before:

    record hash      SHA-256(0x00 || previous hash || canonical bytes)
    checkpoint hash  SHA-256(0x01 || previous hash || canonical bytes)

Canonical bytes are fields in a fixed order, each behind its length as 8 big-endian bytes, numbers
in decimal; a new optional field of a message therefore changes no old hash. How many numbers are
missing before a record is the last field, and left out when none is. The first record of a chain,
and the first checkpoint, follow 32 zero bytes. Knows nothing of brokers, files or time.
"""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuloop.loop.evaluate.keys import public_hex, sign, verify
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import Record
from gpuloop.schemas.errors import Explained
from gpuloop.schemas.messages import AuditCheckpoint, AuditRecord
from gpuloop.schemas.messages.record import ChainHead

AUDITED: Final = tuple(name for name, topic in CATALOGUE.items() if "auditor" in topic.consumers)
GENESIS: Final = "0" * 64

# What stays verbatim: in base64, with every header name escaped, it fits a 1 MB record. Our own
# codec accepts values up to 1 MB, so a larger one is possible, if only by hand.
KEPT_VALUE_BYTES: Final = 640_000
KEPT_KEY_BYTES: Final = 10_000
KEPT_HEADER_BYTES: Final = 20_000
KEPT_HEADERS: Final = 64

# Neither is base64, so neither can be mistaken for content.
NOTHING: Final = "-"
DIGEST: Final = "sha256:"

_RECORD: Final = b"\x00"
_CHECKPOINT: Final = b"\x01"
_SIGNED_AS: Final = b"gpuloop.audit.checkpoint\x00"


class AuditError(Explained):
    """The chain cannot be read or continued without a person: key, source or record is wrong."""


def gaps_allowed(topic: str) -> bool:
    """Say whether numbers may be missing: compaction may reach a topic before the auditor does."""
    return CATALOGUE[topic].compacted


def chained(
    record: Record, *, fleet: str, previous_hash: str, missing_before: int = 0
) -> AuditRecord:
    """Return the audit record of a source record that follows `previous_hash` in its chain."""
    draft = AuditRecord(
        fleet=fleet,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=max(record.timestamp_ms, 0),
        key=_kept(record.key, KEPT_KEY_BYTES),
        headers=_kept_headers(record.headers),
        value=_kept(record.value, KEPT_VALUE_BYTES),
        previous_hash=previous_hash,
        hash=GENESIS,
        missing_before=missing_before,
    )
    return msgspec.structs.replace(draft, hash=record_hash(draft))


def original(field: str) -> bytes | None:
    """Return the bytes of a `key` or `value`; None when it was null or too long to keep."""
    return None if field == NOTHING or field.startswith(DIGEST) else b64decode(field)


def record_hash(record: AuditRecord) -> str:
    """Return the hash that a record must carry."""
    fields = [
        record.fleet,
        record.topic,
        str(record.partition),
        str(record.offset),
        str(record.timestamp_ms),
        record.key,
        str(len(record.headers)),
        *(text for header in record.headers for text in header),
        record.value,
        *([str(record.missing_before)] if record.missing_before else []),
    ]
    return _hash(_RECORD, record.previous_hash, fields)


def signed_checkpoint(
    heads: Iterable[ChainHead],
    *,
    fleet: str,
    number: int,
    wall_us: int,
    previous_hash: str,
    key: Ed25519PrivateKey,
) -> AuditCheckpoint:
    """Return a checkpoint of all chain heads, sorted by chain, chained and signed."""
    draft = AuditCheckpoint(
        fleet=fleet,
        number=number,
        wall_us=wall_us,
        heads=tuple(sorted(heads, key=lambda head: (head.topic, head.partition))),
        previous_hash=previous_hash,
        hash=GENESIS,
        public_key=public_hex(key),
        signature="",
    )
    digest = checkpoint_hash(draft)
    signature = sign(key, _SIGNED_AS + bytes.fromhex(digest))
    return msgspec.structs.replace(draft, hash=digest, signature=signature)


def checkpoint_hash(checkpoint: AuditCheckpoint) -> str:
    """Return the hash that a checkpoint must carry; it covers the signer's key as well."""
    fields = [
        checkpoint.fleet,
        str(checkpoint.number),
        str(checkpoint.wall_us),
        str(len(checkpoint.heads)),
    ]
    for head in checkpoint.heads:
        fields += [head.topic, str(head.partition), str(head.offset), head.hash]
    fields.append(checkpoint.public_key)
    return _hash(_CHECKPOINT, checkpoint.previous_hash, fields)


def is_genuine(checkpoint: AuditCheckpoint, trusted_keys: Collection[str]) -> bool:
    """Say whether a checkpoint is whole and signed by a trusted key."""
    return (
        checkpoint.public_key in trusted_keys
        and checkpoint.hash == checkpoint_hash(checkpoint)
        and verify(
            checkpoint.public_key,
            checkpoint.signature,
            _SIGNED_AS + bytes.fromhex(checkpoint.hash),
        )
    )


def _hash(domain: bytes, previous: str, fields: Iterable[str]) -> str:
    digest = hashlib.sha256(domain + bytes.fromhex(previous))
    for field in fields:
        data = field.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def _kept(data: bytes | None, limit: int) -> str:
    if data is None:
        return NOTHING
    if len(data) > limit:
        return DIGEST + hashlib.sha256(data).hexdigest()
    return b64encode(data).decode()


def _kept_headers(headers: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, str], ...]:
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) <= KEPT_HEADERS and size <= KEPT_HEADER_BYTES:
        return tuple((name, b64encode(value).decode()) for name, value in headers)
    whole = [part for name, value in headers for part in (name, b64encode(value).decode())]
    return (("", DIGEST + _hash(b"", GENESIS, whole)),)
