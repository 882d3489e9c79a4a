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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import faust
from faust.types import EventT, StreamT

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.faust_consumer import Positions
from gpuloop.loop.shells.faust_outlet import NotedTable, Outlet
from gpuloop.loop.shells.faust_stages import Stage, Turn
from gpuloop.loop.shells.faust_tables import APP
from gpuloop.loop.shells.fold import encode_dead_letters, encode_outputs, receive
from gpuloop.loop.shells.framer import PRODUCED
from gpuloop.schemas.codec import BadInput, Record

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

    def known(self, topic: str, after_ms: float) -> None:
        """Say how long after its telemetry was produced a record was in the state."""
        ...

    def refused(self, error: BadInput) -> None:
        """Say that a record went to the dead letters."""
        ...

    def passed_over(self, what: str) -> None:
        """Say that something for the application itself was heard and not heeded."""
        ...


class RecordsMissing(RuntimeError):
    """The library passed records over; a restart reads them from the committed offset."""


@dataclass(slots=True)
class _Held:
    """What is left to settle of a partition: records' marks and the offsets after them.

    The records themselves would be gigabytes where the fleet's clock stands and no tick comes.
    """

    marks: deque[tuple[int, int]] = field(default_factory=deque)
    settled: int = 0


class Agent:
    """Runs one stage over one topic."""

    def __init__(
        self,
        topic: str,
        stage: Stage,
        table: NotedTable,
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
        await stream.ack(event)  # For the library's own account; what is settled is committed.
        held.marks.append((turn.mark, offset + 1))
        held.settled = turn.settled
        while held.marks and held.marks[0][0] <= held.settled:
            _, reached = held.marks.popleft()
            self._positions.settled[place] = reached

    async def _turn(self, record: Record, held: _Held) -> Turn:
        """Fold a record and deliver what follows from it, or dead-letter it."""
        try:
            turn = self._stage.take(receive(record, self._outlet.fleet))
        except BadInput as error:
            await self._refuse(record, error)
            self._watch.refused(error)
            return Turn(settled=held.settled)
        produced_ms = produced(record)
        if produced_ms is not None:
            self._watch.known(record.topic, clock.wall_us() / 1000 - produced_ms)
        await self._outlet.deliver(encode_outputs(turn.outputs, self._outlet.source))
        place = Partition(record.topic, record.partition)
        self._watch.handled(place, record.offset, len(turn.outputs), turn.dropped)
        return turn

    async def _refuse(self, record: Record, error: BadInput) -> None:
        """Put a refused record whole on the dead letters."""
        log.warning("record refused", extra={"topic": record.topic, "why": str(error)})
        refused = [(record, error)]
        await self._outlet.deliver(
            encode_dead_letters(refused, stage=APP, fleet=self._outlet.fleet)
        )

    async def _write(self, rows: Mapping[bytes, bytes]) -> None:
        """Write table rows and wait until the changelog has them."""
        for key, row in rows.items():
            if row:
                self._table[key] = row
            else:
                del self._table[key]
        await self._outlet.send(self._table.changes())


def produced(record: Record) -> int | None:
    """Return when the telemetry in a record was produced; None where it carries none."""
    if not record.topic.startswith("internal."):
        return record.timestamp_ms
    stated = record.header(PRODUCED) or ""
    return int(stated) if stated.isdecimal() and len(stated) < 16 else None


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
