"""Records to messages and back: CloudEvents 1.0 in Kafka's binary content mode.

Decoding is the only place where outside bytes become typed values. It either returns a message or
raises `BadInput` with one reason; what was refused goes whole to the dead-letter topic.
"""

import hashlib
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from typing import Final

import msgspec

from gpuloop.schemas.catalogue import CATALOGUE, MAX_VALUE_BYTES, Topic, message_type
from gpuloop.schemas.messages import DeadLetter, Message, dataschema
from gpuloop.schemas.messages.record import DeadLetterReason
from gpuloop.schemas.units import calendar_time

Headers = tuple[tuple[str, bytes], ...]
Kind = type[Message]

CONTENT_TYPES: Final = {
    "json": b"application/json",
    "msgpack": b"application/msgpack",
    "binary": b"application/octet-stream",
}


class BadInput(ValueError):
    """Input that does not follow its contract; `reason` is one of the dead-letter reasons."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DeadLetterReason = reason
        self.detail = detail


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A record as it stands on a topic.

    Hundreds of thousands are made a second, so it is a struct, which costs a tenth of a dataclass.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    headers: Headers
    value: bytes | None

    def header(self, name: str) -> str | None:
        """Return the last header of that name as text, or None."""
        for key, value in reversed(self.headers):
            if key == name:
                return value.decode("utf-8", "replace")
        return None


class Encoded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A record to be written: everything but the partition, which the key decides.

    `partition` is set only where the contract fixes it (frames keep their samples' partition).
    """

    topic: str
    key: bytes
    headers: Headers
    value: bytes
    partition: int | None = None


_json_encoder: Final = msgspec.json.Encoder()
_msgpack_encoder: Final = msgspec.msgpack.Encoder()


def encode_value(topic: str, message: Message) -> bytes:
    """Return the bytes of a message on a topic; the order of fields is that of the class."""
    if CATALOGUE[topic].encoding == "msgpack":
        return _msgpack_encoder.encode(message)
    return _json_encoder.encode(message)


def encode(
    topic: str,
    key: str,
    message: Message,
    *,
    event_id: str,
    source: str,
    time_us: int | None = None,
    partition: int | None = None,
) -> Encoded:
    """Return the record of a message: CloudEvents headers, key and value.

    `ce_time`, which is optional there, is left out for a time after the year 9999: numbers allow
    it, so it may come from outside, and what cannot be written would stop its reader for good.
    """
    headers: list[tuple[str, bytes]] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_type", f"gpuloop.{message.TYPE}".encode()),
        ("ce_source", source.encode()),
        ("ce_subject", key.encode()),
        ("ce_dataschema", dataschema(type(message)).encode()),
        ("content-type", CONTENT_TYPES[CATALOGUE[topic].encoding]),
    ]
    if time_us is not None and (time := calendar_time(time_us)) is not None:
        headers.append(("ce_time", time.isoformat(timespec="microseconds").encode()))
    return Encoded(
        topic=topic,
        key=key.encode(),
        headers=tuple(headers),
        value=encode_value(topic, message),
        partition=partition,
    )


def encode_binary(topic: str, key: str, value: bytes, *, source: str) -> Encoded:
    """Return the record of a payload that is not a message, such as actor weights."""
    return Encoded(
        topic=topic,
        key=key.encode(),
        headers=(
            ("ce_specversion", b"1.0"),
            ("ce_id", key.encode()),
            ("ce_type", f"gpuloop.{topic}".encode()),
            ("ce_source", source.encode()),
            ("content-type", CONTENT_TYPES["binary"]),
        ),
        value=value,
    )


def decode(record: Record) -> Message:
    """Return the message in a record.

    Raises:
        BadInput: with the reason, for anything that does not follow the topic's contract.

    """
    value = record.value
    if not value:
        raise BadInput("empty", "the record has no value")
    if len(value) > MAX_VALUE_BYTES:
        raise BadInput("too_large", f"{len(value)} bytes, at most {MAX_VALUE_BYTES}")
    stated_type = stated_schema = None
    for name, stated in record.headers:
        if name == "ce_type":
            stated_type = stated
        elif name == "ce_dataschema":
            stated_schema = stated
    try:
        return _reader(record.topic, stated_type, stated_schema)(value)
    except msgspec.ValidationError as error:
        raise BadInput(_reason_of(str(error)), str(error)) from None
    except msgspec.DecodeError as error:
        reason: DeadLetterReason = "truncated" if "truncated" in str(error) else "not_json"
        raise BadInput(reason, str(error)) from None
    except UnicodeDecodeError as error:
        raise BadInput("not_json", str(error)) from None
    except RecursionError:
        raise BadInput("too_deep", "nested too deep to parse") from None


@cache
def _reader(
    topic: str, stated_type: bytes | None, stated_schema: bytes | None
) -> Callable[[bytes], Message]:
    """Return what decodes a record whose headers state this, as its topic allows.

    Only what is right is cached, so there are few entries.
    """
    known = CATALOGUE.get(topic)
    if known is None or not known.messages:
        raise BadInput("unknown_type", f"topic {topic} carries no messages")
    kind = _message_class(known, stated_type, stated_schema)
    if known.encoding == "msgpack":
        return msgspec.msgpack.Decoder(kind, strict=True).decode
    return msgspec.json.Decoder(kind, strict=True).decode


def _message_class(topic: Topic, stated_type: bytes | None, stated_schema: bytes | None) -> Kind:
    if stated_type is None:
        if topic.headers_required or len(topic.messages) != 1:
            raise BadInput("unknown_type", "no ce_type header")
        return topic.messages[0]
    type_name = stated_type.decode("utf-8", "replace")
    kind = message_type(type_name.removeprefix("gpuloop."))
    if kind is None or kind not in topic.messages:
        raise BadInput("unknown_type", f"{type_name[:200]} does not belong on {topic.name}")
    if stated_schema is not None and stated_schema != (reads := dataschema(kind).encode()):
        schema_name = stated_schema.decode("utf-8", "replace")
        raise BadInput("unknown_version", f"{schema_name[:200]}, this reads {reads.decode()}")
    return kind


def _reason_of(error: str) -> DeadLetterReason:
    if "unknown field" in error:
        return "unknown_field"
    if error.startswith("inconsistent"):
        return "inconsistent"
    if any(word in error for word in (" >= ", " <= ", " length ", "regex", "out of range")):
        return "out_of_range"
    return "wrong_type"


DEAD_LETTER_CHUNK_BYTES: Final = 512 * 1024
DEAD_LETTER_KEY_BYTES: Final = 20_000
DEAD_LETTER_HEADER_BYTES: Final = 20_000
DEAD_LETTER_HEADERS: Final = 64


def dead_letters(record: Record, error: BadInput, *, stage: str, fleet: str) -> list[DeadLetter]:
    """Return the dead letters that hold a refused record, its value in chunks of at most 512 KiB.

    A key or headers too long for a record of ours to repeat are there as `sha256:` and a digest:
    what cannot be written would stop whoever refuses it, at every start again.
    """
    key, headers = _kept_key(record.key or b""), _kept_headers(record.headers)
    value = record.value or b""
    size = DEAD_LETTER_CHUNK_BYTES
    parts = [value[i : i + size] for i in range(0, len(value), size)] or [b""]
    return [
        DeadLetter(
            fleet=fleet,
            stage=stage,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=max(record.timestamp_ms, 0),
            reason=error.reason,
            detail=error.detail[:4000],
            key=key,
            headers=headers,
            value=b64encode(part).decode(),
            value_sha256=hashlib.sha256(value).hexdigest(),
            chunk=index,
            chunks=len(parts),
        )
        for index, part in enumerate(parts)
    ]


def _kept_key(key: bytes) -> str:
    if len(key) > DEAD_LETTER_KEY_BYTES:
        return f"sha256:{hashlib.sha256(key).hexdigest()}"
    return b64encode(key).decode()


def _kept_headers(headers: Headers) -> tuple[tuple[str, str], ...]:
    size = sum(len(name.encode()) + len(value) for name, value in headers)
    if len(headers) <= DEAD_LETTER_HEADERS and size <= DEAD_LETTER_HEADER_BYTES:
        return tuple((name, b64encode(value).decode()) for name, value in headers)
    digest = hashlib.sha256(msgspec.msgpack.encode(headers)).hexdigest()
    return (("", f"sha256:{digest}"),)
