"""Moves messages from topics into a store; a kill at any point neither loses nor doubles a row.

    poll ─► decode ─► dead letters acked ─► rows and position durable, together ─► next poll

Where to go on is what the store says, never what the consumer group says. While the store is away
nothing is read and the one batch in hand is tried again; what the store refuses for its content is
found by halving the batch, and goes whole to the dead letters.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import (
    Broker,
    BrokerError,
    Consumer,
    Partition,
    read_between,
    starts,
)
from gpuloop.loop.shells.fold import encode_dead_letters
from gpuloop.loop.shells.outage import Outage
from gpuloop.loop.shells.sink_store import (
    Batch,
    Fenced,
    Span,
    Standing,
    Store,
    StoreDown,
    StoreRefused,
)
from gpuloop.schemas.codec import BadInput, Record, decode
from gpuloop.schemas.messages import PoolState
from gpuloop.schemas.units import SECOND_US
from gpuloop.streams.sinks.tables import Catalogue, Rows

log: Final = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final = 0.5
LAST_BACKOFF_S: Final = 15.0
TEND_US: Final = 10 * SECOND_US
AGREEING: Final = 16
"""How many ticks in a row say how late it is, since upkeep deletes what is old by then."""
POLL_S: Final = 0.25


@dataclass(slots=True)
class Written:
    """What one batch came to."""

    records: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)


class Watch(Protocol):
    """Told what a sink does, for health and metrics."""

    def written(self, done: Written) -> None:
        """Hear of a batch that is durable."""
        ...

    def refused(self, reason: str) -> None:
        """Hear of a record that went to the dead letters."""
        ...

    def outage(self, why: str, attempt: int, oldest_ms: int | None) -> None:
        """Hear that the store is away, since when unwritten records wait (broker's time)."""
        ...

    def expired(self, part: Partition, missing: int) -> None:
        """Hear that records were gone before they could be written."""
        ...

    def turn(self, positions: Mapping[Partition, int], lag: Callable[[], int]) -> None:
        """Hear, again and again, that the sink is at work."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is held in memory, and how long records wait for others to come along."""

    records: int = 2_000
    bytes: int = 4_000_000
    linger_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A record and the rows it makes: none where it was refused, or is about nothing kept."""

    record: Record
    rows: Rows
    tick_us: int | None = None


class Sink:
    """One thread drives it with `run`."""

    def __init__(
        self,
        broker: Broker,
        store: Store,
        catalogue: Catalogue,
        *,
        name: str,
        fleet: str,
        watch: Watch,
        chance: Callable[[], float],
        limits: Limits | None = None,
    ) -> None:
        self._broker: Final = broker
        self._store: Final = store
        self._catalogue: Final = catalogue
        self._name: Final = name
        self._fleet: Final = fleet
        self._watch: Final = watch
        self._chance: Final = chance
        self._limits: Final = limits or Limits()
        self._consumer: Consumer | None = None
        self._stop = threading.Event()
        self._begins: dict[Partition, int] = {}
        self._ticks_us: Final[deque[int]] = deque(maxlen=AGREEING)
        self._tend_us = 0
        self.positions: dict[Partition, int] = {}

    def run(self, stop: threading.Event) -> None:
        """Write until `stop`; what is in hand then is written, or read again by the next start."""
        self._stop = stop
        self._begins = starts(self._broker, self._catalogue.topics)
        try:
            standing = self._opened()
            if standing is None:
                return
            self._go_on(standing)
            self._consumer = self._broker.consumer(self.positions, group=f"gpuloop-{self._name}")
            while not stop.is_set():
                records = self._gather()
                if records:
                    self._put(self._taken(records))
                    self._consumer.commit(self.positions)
                self._tend()
                self._watch.turn(self.positions, self._lag)
        finally:
            if self._consumer is not None:
                self._consumer.close()
            self._store.close()

    # Where to go on.

    def _opened(self) -> dict[Partition, Standing] | None:
        """Return what the store says once it is there; None if asked to stop before."""
        found: list[dict[Partition, Standing]] = []
        done = self._persistently(lambda: found.append(self._store.open(self._begins)), None)
        return found[0] if done else None

    def _go_on(self, standing: Mapping[Partition, Standing]) -> None:
        """Take up the store's positions, and finish the batches that it saw begin."""
        ends = self._broker.ends(list(self._begins))
        for part, begin in self._begins.items():
            stands = standing[part]
            self.positions[part] = stands.next
            if begin <= stands.next <= ends[part]:
                if stands.begun is not None and stands.next < stands.begun <= ends[part]:
                    again = read_between(self._broker, part, stands.next, stands.begun)
                    self._put(self._taken(list(again)), {part: stands.begun})
                continue
            # Retention took what was not written yet, or the topic is another of the same name.
            missing = max(begin - stands.next, 0)
            log.error(
                "positions are not on the topic any more",
                extra={"partition": str(part), "stood_at": stands.next, "begins_at": begin},
            )
            self._watch.expired(part, missing)
            self._put([], {part: begin})

    # Reading.

    def _gather(self) -> list[Record]:
        """Return what arrived within one linger, within the limits."""
        assert self._consumer is not None
        limits = self._limits
        records = self._consumer.poll(max_records=limits.records, timeout_s=POLL_S)
        size = sum(len(record.value or b"") for record in records)
        until_us = clock.monotonic_us() + round(limits.linger_s * SECOND_US)
        while records and len(records) < limits.records and size < limits.bytes:
            left_us = until_us - clock.monotonic_us()
            if left_us <= 0 or self._stop.is_set():
                break
            more = self._consumer.poll(
                max_records=limits.records - len(records), timeout_s=left_us / SECOND_US
            )
            records += more
            size += sum(len(record.value or b"") for record in more)
        return records

    def _taken(self, records: Sequence[Record]) -> list[Taken]:
        """Return the rows of records; what cannot be understood goes to the dead letters first."""
        taken: list[Taken] = []
        refused: list[tuple[Record, BadInput]] = []
        for record in records:
            try:
                taken.append(self._understood(record))
            except BadInput as error:
                refused.append((record, error))
                taken.append(Taken(record=record, rows={}))
        self._lay_aside(refused)
        return taken

    def _understood(self, record: Record) -> Taken:
        message = decode(record)
        if message.fleet != self._fleet:
            raise BadInput("wrong_fleet", f"for fleet {message.fleet}, this is {self._fleet}")
        stated = record.header("ce_id")
        event_id = stated or f"{record.topic}/{record.partition}/{record.offset}"
        return Taken(
            record=record,
            rows=self._catalogue.rows(record.topic, message, event_id),
            tick_us=message.tick_us if isinstance(message, PoolState) else None,
        )

    def _lay_aside(self, refused: Sequence[tuple[Record, BadInput]]) -> None:
        if refused:
            self._broker.produce(encode_dead_letters(refused, stage=self._name, fleet=self._fleet))
        for _, error in refused:
            self._watch.refused(error.reason)

    # Writing.

    def _put(self, taken: Sequence[Taken], to: Mapping[Partition, int] | None = None) -> bool:
        """Write records and move positions past them, or `to`; False, ending all, if stopped."""
        batch = self._batch(taken, to or {})
        oldest_ms = min((one.record.timestamp_ms for one in taken), default=None)
        try:
            if not self._persistently(lambda: self._store.write(batch), oldest_ms, batch):
                return False
        except StoreRefused as error:
            return self._put_apart(taken, str(error), to)
        self.positions |= {part: span.next for part, span in batch.spans.items()}
        done = Written()
        for one in taken:
            topic = one.record.topic
            done.records[topic] = done.records.get(topic, 0) + 1
            for table, rows in one.rows.items():
                done.rows[table] = done.rows.get(table, 0) + len(rows)
            if one.tick_us is not None:
                self._ticks_us.append(one.tick_us)
        self._watch.written(done)
        return True

    def _put_apart(
        self, taken: Sequence[Taken], why: str, to: Mapping[Partition, int] | None
    ) -> bool:
        """Write the halves of a batch that was refused; what is refused alone is laid aside."""
        if not any(one.rows for one in taken):
            raise StoreRefused(f"a batch without rows: {why}")
        if len(taken) == 1:
            self._lay_aside([(taken[0].record, BadInput("handler", why))])
            return self._put([Taken(record=taken[0].record, rows={})], to)
        middle = len(taken) // 2
        return self._put(taken[:middle]) and self._put(taken[middle:], to)

    def _batch(self, taken: Sequence[Taken], to: Mapping[Partition, int]) -> Batch:
        nexts: dict[Partition, int] = {}
        rows: dict[Partition, Rows] = {}
        for one in taken:
            part = Partition(one.record.topic, one.record.partition)
            nexts[part] = one.record.offset + 1
            for table, found in one.rows.items():
                rows.setdefault(part, {}).setdefault(table, []).extend(found)
        nexts |= to
        spans = {part: Span(self.positions[part], at) for part, at in nexts.items()}
        return Batch(spans=spans, rows=rows)

    def _persistently(
        self, act: Callable[[], None], oldest_ms: int | None, batch: Batch | None = None
    ) -> bool:
        """Do `act` until the store lets it; False if asked to stop meanwhile.

        Whether a write that failed took place is read off the positions before it is tried again.
        """
        attempt, paused = 0, False
        outage = Outage(log)
        while True:
            try:
                if attempt and batch is not None and self._is_written(batch):
                    break
                act()
                break
            except StoreDown as error:
                attempt += 1
                if self._consumer is not None and not paused:
                    self._consumer.pause(self.positions)
                    paused = True
                outage.wrong("store is away", {"why": str(error)})
                self._watch.outage(str(error), attempt, oldest_ms)
                ceiling = min(FIRST_BACKOFF_S * 2 ** min(attempt - 1, 10), LAST_BACKOFF_S)
                if self._stop.wait(ceiling * (0.5 + self._chance() / 2)):
                    return False
        if paused and self._consumer is not None:
            self._consumer.resume(self.positions)
        outage.right("store is back", {"attempts": str(attempt)})
        return True

    def _is_written(self, batch: Batch) -> bool:
        standing = self._store.open(self._begins)
        stands = {part: standing[part].next for part in batch.spans}
        if stands == {part: span.next for part, span in batch.spans.items()}:
            return True
        if stands != {part: span.first for part, span in batch.spans.items()}:
            raise Fenced("another process writes under this sink's name; see sink_offsets")
        return False

    def _tend(self) -> None:
        if len(self._ticks_us) < AGREEING or clock.monotonic_us() < self._tend_us:
            return
        self._tend_us = clock.monotonic_us() + TEND_US
        try:
            self._store.tend(min(self._ticks_us))
        except StoreDown as error:
            log.warning("upkeep is put off", extra={"why": str(error)})

    def _lag(self) -> int:
        """Return how many records wait to be read; what the broker does not say counts as none."""
        try:
            ends = self._broker.ends(list(self.positions))
        except BrokerError:
            return 0
        return sum(max(ends[part] - at, 0) for part, at in self.positions.items())
