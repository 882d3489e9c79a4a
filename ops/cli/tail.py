"""`gpuloop tail`: what goes over the topics, one readable line per message."""

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from gpuloop.loop.shells.broker import Broker, Partition
from gpuloop.ops.cli.context import AsJson, BootstrapServers, StateDir, broker, settings
from gpuloop.ops.cli.lines import line, when
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import BadInput, Record, decode

POLL_SECONDS: Final = 0.25


def named(word: str) -> tuple[str, ...]:
    """Return the topics meant by a name, or by the part of it before or after a dot."""
    if word in CATALOGUE:
        return (word,)
    if word == "actions":
        return tuple(t for t in CATALOGUE if t.startswith("actions.") and t != "actions.outcomes")
    found = tuple(t for t in CATALOGUE if word in t.split("."))
    if not found:
        raise typer.BadParameter(f"no topic {word}; there are {', '.join(CATALOGUE)}")
    return found


def tail(
    what: Annotated[
        str,
        typer.Argument(help="A topic or part of its name: actions, proposals, audit ..."),
    ] = "decisions",
    follow: Annotated[bool, typer.Option(help="Go on as messages arrive.")] = True,
    last: Annotated[int, typer.Option("-n", min=0, help="Begin with this many.")] = 10,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Print what goes over a topic, one readable line per message."""
    topics = named(what)
    with broker(settings(state_dir, bootstrap_servers)) as log:
        try:
            for record in records(log, topics, last=last, follow=follow):
                typer.echo(_as_json(record) if as_json else readable(record))
        except KeyboardInterrupt:
            return


def records(log: Broker, topics: tuple[str, ...], *, last: int, follow: bool) -> Iterator[Record]:
    """Yield the newest records of some topics in the order of their arrival, then what follows."""
    parts = [part for topic in topics for part in log.partitions(topic)]
    begin, end = log.beginnings(parts), log.ends(parts)
    start = {part: max(begin[part], end[part] - last) for part in parts}
    consumer = log.consumer(start)
    try:
        yield from _history(log, start, end)[-last:] if last else []
        if not follow:
            return
        while True:
            for record in consumer.poll(max_records=500, timeout_s=POLL_SECONDS):
                if record.offset >= end[Partition(record.topic, record.partition)]:
                    yield record
    finally:
        consumer.close()


def _history(log: Broker, start: dict[Partition, int], end: dict[Partition, int]) -> list[Record]:
    """Return everything between two sets of positions; compaction may have left gaps."""
    left = {part for part, at in start.items() if at < end[part]}
    consumer = log.consumer({part: start[part] for part in left})
    found: list[Record] = []
    quiet = 0
    try:
        while left and quiet < 8:
            batch = consumer.poll(max_records=500, timeout_s=POLL_SECONDS)
            quiet = 0 if batch else quiet + 1
            for record in batch:
                part = Partition(record.topic, record.partition)
                if record.offset < end[part]:
                    found.append(record)
                if record.offset >= end[part] - 1:
                    left.discard(part)
    finally:
        consumer.close()
    return sorted(found, key=lambda r: (r.timestamp_ms, r.topic, r.partition, r.offset))


def readable(record: Record) -> str:
    """Return a record as one line, whatever is in it."""
    at = f"{record.topic}/{record.partition}@{record.offset}"
    if not CATALOGUE[record.topic].messages:
        key = (record.key or b"").decode("utf-8", "replace")
        return f"{when(record.timestamp_ms * 1000)}  {key}: {len(record.value or b'')} bytes"
    try:
        return line(decode(record), record.timestamp_ms)
    except BadInput as error:
        return f"{when(record.timestamp_ms * 1000)}  {at} does not follow its contract: {error}"


def _as_json(record: Record) -> str:
    """Return a record with its place as one line of JSON; bytes that are no JSON as base64."""
    try:
        value: object = json.loads(record.value or b"null")
    except ValueError:
        value = b64encode(record.value or b"").decode()
    return json.dumps(
        {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp_ms,
            "key": (record.key or b"").decode("utf-8", "replace"),
            "value": value,
        }
    )
