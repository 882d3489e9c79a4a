"""What became of records that were refused."""

import hashlib
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterable

from faults.loops import FLEET
from gpuloop.loop.shells.fold import receive
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import BadInput, Record, decode
from gpuloop.schemas.messages import DeadLetter

LONGEST_KEPT = 20_000
"""Bytes of a key, or of all headers, that a dead letter repeats; of longer ones it has a digest."""


def is_refused(record: Record) -> bool:
    """Say whether a record breaks its contract."""
    try:
        receive(record, FLEET)
    except BadInput:
        return True
    return False


def vanished(broker: MemoryBroker, bad: Iterable[Record]) -> list[str]:
    """Return which bad records are not on the dead letters with all that stood in them."""
    letters: dict[tuple[str, int, int], dict[int, DeadLetter]] = defaultdict(dict)
    for part in broker.partitions("deadletters"):
        for record in broker.logs[part]:
            letter = _letter(record)
            if letter is None:
                return [f"{part} {record.offset} is no dead letter that anyone takes"]
            place = (letter.topic, letter.partition, letter.offset)
            if letters[place].setdefault(letter.chunk, letter) != letter:
                return [f"{part} {record.offset} is not what was set aside before"]
    return [
        f"{record.topic}/{record.partition} {record.offset}: {problem}"
        for record in bad
        for problem in _lacks(record, letters[record.topic, record.partition, record.offset])
    ]


def _letter(record: Record) -> DeadLetter | None:
    try:
        letter = decode(record)
    except BadInput:  # For one, it is larger than a record may be.
        return None
    return letter if isinstance(letter, DeadLetter) else None


def _lacks(record: Record, chunks: dict[int, DeadLetter]) -> list[str]:
    """Return what of a record is not in its dead letters."""
    if not chunks:
        return ["is gone"]
    first = chunks[min(chunks)]
    if sorted(chunks) != list(range(first.chunks)):
        return [f"has {len(chunks)} of {first.chunks} chunks"]
    value = b"".join(b64decode(chunks[number].value) for number in sorted(chunks))
    found = ["lost some of its value"] * (value != (record.value or b""))
    key = record.key or b""
    if len(key) > LONGEST_KEPT:
        found += ["lost its key"] * (first.key != f"sha256:{hashlib.sha256(key).hexdigest()}")
    else:
        found += ["lost its key"] * (b64decode(first.key) != key)
    headers = tuple((name, b64decode(text)) for name, text in first.headers)
    return found + ["lost its headers"] * (headers != record.headers)


def unreadable(broker: MemoryBroker) -> list[str]:
    """Return what was said by a component and could not be read by anyone."""
    found = []
    for part, log in broker.logs.items():
        if CATALOGUE[part.topic].encoding == "binary":
            continue
        for record in log:
            if (record.header("ce_source") or "").startswith("gpuloop/"):
                try:
                    decode(record)
                except BadInput as error:
                    found.append(f"{part} {record.offset} cannot be read: {error}")
    return found
