"""The record of what happened: audit chain and dead letters."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from gpuloop.schemas.messages.base import Message
from gpuloop.schemas.units import Count, Digest, Name, Text, WallUs

RawHeaders = Annotated[tuple[tuple[str, str], ...], Meta(max_length=64)]


class AuditRecord(Message, frozen=True, kw_only=True, omit_defaults=True):
    """One record of the chain of `(topic, partition)`; its number is the source offset.

    `missing_before` numbers just before it were gone from the source when it was audited: expired,
    or compacted away; it is left out when none was, so that no byte is without meaning. `key`,
    `value` and header values are base64 of the original bytes; `-` stands for null, `sha256:` and a
    digest for what is too long to keep. `hash` is SHA-256(0x00 || previous hash || canonical
    bytes), see `gpuloop.loop.evaluate.chain`.
    """

    TYPE: ClassVar[str] = "audit.record"

    topic: Name
    partition: Count
    offset: Count
    timestamp_ms: Count
    key: str
    headers: RawHeaders
    value: str
    previous_hash: Digest
    hash: Digest
    missing_before: Count = 0


class ChainHead(Message, frozen=True, kw_only=True):
    """How far one chain had come, inside a checkpoint."""

    TYPE: ClassVar[str] = "audit.head"

    topic: Name
    partition: Count
    offset: Count
    hash: Digest


class AuditCheckpoint(Message, frozen=True, kw_only=True):
    """All chain heads at one moment, signed (Ed25519, hex) and chained to the last checkpoint."""

    TYPE: ClassVar[str] = "audit.checkpoint"

    number: Count
    wall_us: WallUs
    heads: Annotated[tuple[ChainHead, ...], Meta(max_length=4096)]
    previous_hash: Digest
    hash: Digest
    public_key: str
    signature: str


DeadLetterReason = Literal[
    "truncated",
    "too_large",
    "too_deep",
    "not_json",
    "wrong_type",
    "unknown_field",
    "unknown_type",
    "unknown_version",
    "out_of_range",
    "wrong_fleet",
    "empty",
    "inconsistent",
    "handler",
]


class DeadLetter(Message, frozen=True, kw_only=True):
    """Input that could not be understood: chunk `chunk` of `chunks` of the whole value, base64."""

    TYPE: ClassVar[str] = "deadletters"

    stage: Name
    topic: Name
    partition: Count
    offset: Count
    timestamp_ms: Count
    reason: DeadLetterReason
    detail: Text
    key: str
    headers: RawHeaders
    value: str
    value_sha256: Digest
    chunk: Count
    chunks: Annotated[int, Meta(ge=1)]
