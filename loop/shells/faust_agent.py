"""What is common to the agents of the observe stage.

Every agent handles a record the same way: its stage says what follows, the outputs are delivered,
the rows are written and their changelog records delivered, and only then are the records they
cover settled, oldest first. What Faust would do on its own (acknowledge on exceptions, restart an
agent behind a failed record, log a failed changelog record) is not relied on: bad input goes to
the dead letters, anything else ends the process, a record that was passed over included.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import faust
from faust.types import EventT, FutureMessage, StreamT

from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.faust_consumer import Positions
from gpuloop.loop.shells.faust_stages import Stage, Turn
from gpuloop.loop.shells.faust_tables import APP
from gpuloop.loop.shells.fold import encode_dead_letters, encode_outputs, receive, source_of
from gpuloop.schemas.codec import BadInput, Encoded, Record

DELIVERY_SECONDS: Final = 30.0
EXIT_FAILED: Final = 70

log: Final = logging.getLogger(__name__)


class Watch(Protocol):
    """Who is told how the agents get on; called from the event loop."""

    def ready(self) -> None:
        """Say that the tables are recovered."""
        ...

    def handled(
        self, part: Partition, offset: int, outputs: int, dropped: Mapping[str, int]
    ) -> None:
        """Say that a record was folded and its outputs delivered."""
        ...

    def refused(self, error: BadInput) -> None:
        """Say that a record went to the dead letters."""
        ...

    def passed_over(self, what: str) -> None:
        """Say that something for the application itself was heard and not heeded."""
        ...


class TrackedTable(faust.Table[bytes, bytes]):
    """A table whose changelog records can be awaited; the library only logs one that failed."""

    def send_changelog(self, *args: Any, **kwargs: Any) -> FutureMessage:
        """Send a change to the changelog and remember it for `unconfirmed_changes`."""
        sent = super().send_changelog(*args, **kwargs)
        vars(self).setdefault("unconfirmed", []).append(sent)
        return sent

    def unconfirmed_changes(self) -> list[FutureMessage]:
        """Return what was sent since the last call."""
        pending: list[FutureMessage] = vars(self).pop("unconfirmed", [])
        return pending


class Outlet:
    """Sends records and waits until the broker has them."""

    def __init__(self, app: faust.App, *, fleet: str, prefix: str) -> None:
        self.fleet: Final = fleet
        self.source: Final = source_of(fleet, APP)
        self._app: Final = app
        self._prefix: Final = prefix
        self._topics: Final[dict[str, Any]] = {}

    async def deliver(self, records: Sequence[Encoded]) -> None:
        """Send records in order; raise when not all are acknowledged in time."""
        sent = [
            await self._of(record.topic).send(
                key=record.key,
                value=record.value,
                partition=record.partition,
                headers=list(record.headers),
            )
            for record in records
        ]
        await delivered(sent)

    async def refuse(self, record: Record, error: BadInput) -> None:
        """Put a refused record whole on the dead letters."""
        log.warning("record refused", extra={"topic": record.topic, "why": str(error)})
        await self.deliver(encode_dead_letters([(record, error)], stage=APP, fleet=self.fleet))

    def _of(self, topic: str) -> Any:
        if topic not in self._topics:
            self._topics[topic] = raw_topic(self._app, self._prefix + topic)
        return self._topics[topic]


class RecordsMissing(RuntimeError):
    """The library passed records over; a restart reads them from the committed offset."""


@dataclass(slots=True)
class _Held:
    """A partition's unacknowledged records with their marks, and the mark settled so far."""

    events: deque[tuple[int, EventT[Any]]] = field(default_factory=deque)
    settled: int = 0


class Agent:
    """Runs one stage over one topic."""

    def __init__(
        self,
        topic: str,
        stage: Stage,
        table: TrackedTable,
        outlet: Outlet,
        watch: Watch,
        positions: Positions,
    ) -> None:
        self._topic: Final = topic
        self._stage: Final = stage
        self._table: Final = table
        self._outlet: Final = outlet
        self._watch: Final = watch
        self._positions: Final = positions
        self._held: dict[int, _Held] = {}
        self._generation = 0

    def forget(self) -> None:
        """Drop what is in memory: partitions were revoked, and unacknowledged records return."""
        self._generation += 1
        self._held.clear()
        self._stage.forget()

    async def run(self, stream: StreamT[Any]) -> None:
        """Handle the records of a stream; anything unexpected ends the process."""
        unacknowledged = cast(faust.Stream[bytes], stream).noack()
        try:
            async for event in unacknowledged.events():
                await self._handle(unacknowledged, event)
        except asyncio.CancelledError:
            raise
        except Exception:
            # The library would go on behind the failed record. A restart reads it again.
            log.exception("agent failed", extra={"topic": self._topic})
            os._exit(EXIT_FAILED)

    async def _handle(self, stream: StreamT[Any], event: EventT[Any]) -> None:
        place, offset = (event.message.topic, event.message.partition), event.message.offset
        expected = self._positions.expected(place)
        if expected is None or offset < expected:
            return  # Of an earlier assignment, or come again: its turn is yet to come, or over.
        if offset > expected:
            raise RecordsMissing(f"{place[0]}/{place[1]} jumps from {expected} to {offset}")
        generation = self._generation
        record = record_of(event, self._topic)
        held = self._held.setdefault(record.partition, _Held())
        turn = await self._turn(record, held)
        if generation == self._generation:
            await self._write(turn.rows)
        if generation != self._generation:
            return
        self._positions.handled[place] = offset + 1
        held.events.append((turn.mark, event))
        held.settled = turn.settled
        while held.events and held.events[0][0] <= held.settled:
            _, oldest = held.events.popleft()
            await stream.ack(oldest)
            self._positions.settled[place] = oldest.message.offset + 1

    async def _turn(self, record: Record, held: _Held) -> Turn:
        """Fold a record and deliver what follows from it, or dead-letter it."""
        try:
            turn = self._stage.take(receive(record, self._outlet.fleet))
        except BadInput as error:
            await self._outlet.refuse(record, error)
            self._watch.refused(error)
            return Turn(settled=held.settled)
        await self._outlet.deliver(encode_outputs(turn.outputs, self._outlet.source))
        place = Partition(record.topic, record.partition)
        self._watch.handled(place, record.offset, len(turn.outputs), turn.dropped)
        return turn

    async def _write(self, rows: Mapping[bytes, bytes]) -> None:
        """Write table rows and wait until the changelog has them."""
        for key, row in rows.items():
            if row:
                self._table[key] = row
            else:
                del self._table[key]
        await delivered(self._table.unconfirmed_changes())


async def delivered(sent: Iterable[FutureMessage]) -> None:
    """Wait until every message is acknowledged by the broker."""
    pending = list(sent)
    if pending:
        await asyncio.wait_for(asyncio.gather(*pending), DELIVERY_SECONDS)


def raw_topic(app: faust.App, name: str) -> Any:
    """Return a topic of bytes; an empty value reaches us, so that it can be refused by us."""
    return app.topic(
        name,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        allow_empty=True,
        internal=False,
    )


def record_of(event: EventT[Any], topic: str) -> Record:
    """Return the record behind an event, under its topic's name in the catalogue."""
    message = event.message
    headers = message.headers or ()
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return Record(
        topic=topic,
        partition=message.partition,
        offset=message.offset,
        timestamp_ms=int((message.timestamp or 0.0) * 1000),
        key=message.key,
        headers=tuple((name, value or b"") for name, value in pairs),
        value=message.value,
    )
