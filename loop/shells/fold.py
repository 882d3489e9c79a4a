"""One cut of a component, executed: the part that live, restart and replay have in common.

Records become events here, or are refused here, so that a record refused live is refused in a
replay as well. Nothing in this module reads a clock or a broker.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic

from gpuloop.schemas.catalogue import CATALOGUE, MAX_VALUE_BYTES
from gpuloop.schemas.codec import (
    BadInput,
    Encoded,
    Record,
    dead_letters,
    decode,
    encode,
    encode_binary,
)
from gpuloop.schemas.component import Component, Context, Output, Received, S, Tick
from gpuloop.schemas.identity import derived_event_id, sha256_of
from gpuloop.schemas.messages import Message

MAX_TICKS: Final = 16
"""Ticks one cut may hold; after a longer silence the older ones are dropped and counted."""


Failpoint = Callable[[str], None]
"""Called with the name of a step that a shell has completed, so that a test can end it there."""


def no_failpoint(step: str) -> None:
    """Go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When a cut is made, and by which run: both clocks, and the ticks that are due."""

    now_us: int
    wall_us: int
    ticks_us: tuple[int, ...] = ()
    run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed(Generic[S]):
    """What a cut led to. `refused` are the records whose contract was broken, in order."""

    state: S
    outputs: tuple[Output, ...]
    refused: tuple[tuple[Record, BadInput], ...]


def receive(record: Record, fleet: str) -> Received:
    """Return the event that a record is to a component of `fleet`.

    Raises:
        BadInput: the record breaks its topic's contract or names another fleet.

    """
    topic = CATALOGUE.get(record.topic)
    payload, message = b"", None
    if topic is not None and topic.encoding == "binary":
        payload = record.value or b""
        if not payload:
            raise BadInput("empty", "the record has no value")
        if len(payload) > MAX_VALUE_BYTES:
            raise BadInput("too_large", f"{len(payload)} bytes, at most {MAX_VALUE_BYTES}")
    else:
        message = addressed(record, fleet)
    return Received(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=(record.key or b"").decode("utf-8", "replace"),
        id=record.header("ce_id") or f"{record.topic}/{record.partition}/{record.offset}",
        message=message,
        payload=payload,
    )


def addressed(record: Record, fleet: str) -> Message:
    """Return the message in a record.

    Raises:
        BadInput: it breaks its contract, or is for another fleet.

    """
    message = decode(record)
    if message.fleet != fleet:
        raise BadInput("wrong_fleet", f"for fleet {message.fleet}, this is {fleet}")
    return message


def execute(
    component: Component[S],
    state: S,
    records: Sequence[Record],
    moment: Moment,
    *,
    fleet: str,
    seed: int,
) -> Executed[S]:
    """Fold records in their order, then the ticks, into `state`, which it takes over.

    A `BadInput` that a step raises refuses its record; whatever else it raises is a broken
    invariant and passes through.
    """
    context = Context(now_us=moment.now_us, wall_us=moment.wall_us, seed=seed, run=moment.run)
    outputs: list[Output] = []
    refused: list[tuple[Record, BadInput]] = []
    for record in records:
        try:
            state, written = component.step(state, receive(record, fleet), context)
        except BadInput as error:
            refused.append((record, error))
            continue
        outputs.extend(written)
    for tick_us in moment.ticks_us:
        at_tick = replace(context, now_us=tick_us)
        state, written = component.step(state, Tick(tick_us=tick_us), at_tick)
        outputs.extend(written)
    return Executed(state=state, outputs=tuple(outputs), refused=tuple(refused))


def due_ticks(after_us: int, now_us: int, every_us: int) -> tuple[tuple[int, ...], int]:
    """Return the multiples of `every_us` in (after, now], and how many older ones were left out.

    At most the newest `MAX_TICKS` are returned.
    """
    if every_us <= 0:
        return (), 0
    first, last = after_us // every_us + 1, now_us // every_us
    skipped = max(last - first + 1 - MAX_TICKS, 0)
    return tuple(n * every_us for n in range(first + skipped, last + 1)), skipped


def source_of(fleet: str, component: str) -> str:
    """Return the `ce_source` of what a component writes."""
    return f"gpuloop/{fleet}/{component}"


def encode_outputs(outputs: Sequence[Output], source: str) -> list[Encoded]:
    """Return the records of a component's outputs, in their order."""
    return [
        encode_binary(output.topic, output.key, output.payload, source=source)
        if output.message is None
        else encode(
            output.topic,
            output.key,
            output.message,
            event_id=output.event_id,
            source=source,
            time_us=output.time_us,
        )
        for output in outputs
    ]


def encode_dead_letters(
    refused: Sequence[tuple[Record, BadInput]], *, stage: str, fleet: str
) -> list[Encoded]:
    """Return the dead letters of refused records; the same refusal always has the same ids."""
    return [
        encode(
            "deadletters",
            letter.topic,
            letter,
            event_id=derived_event_id(
                f"deadletters/{stage}",
                (letter.topic, str(letter.partition), str(letter.offset), str(letter.chunk)),
            ),
            source=source_of(fleet, stage),
        )
        for record, error in refused
        for letter in dead_letters(record, error, stage=stage, fleet=fleet)
    ]


def outputs_digest(encoded: Sequence[Encoded]) -> str:
    """Return the SHA-256 by which a journal knows the outputs of a cut, headers included."""
    parts: list[str | bytes] = []
    for record in encoded:
        parts += [record.topic, record.key, record.value]
        for name, value in record.headers:
            parts += [name, value]
    return sha256_of(*parts)
