"""What each agent of the observe stage does with a record, without Faust.

A stage holds its shards in memory and says, per record, what to send, which table rows to write,
and which records those rows cover. It never sends or writes itself, so it can be tested with
dictionaries, and a crash between any two acts of the agent loses nothing: what was not
acknowledged comes again and finds the rows of before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import msgspec

from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.component import Output, Received, S, State
from gpuloop.schemas.messages import (
    Frame,
    JobEvent,
    Message,
    Partial,
    ResourceSample,
    ServiceSample,
    TenantEvent,
)
from gpuloop.schemas.units import INT64_MAX
from gpuloop.streams import job_rows, jobs, node_rows, node_ticks, nodes, pools, tenants
from gpuloop.streams.frames import unpack
from gpuloop.streams.horizon import AHEAD_US, refuse_future

M = TypeVar("M", bound=Message)
Rows = Mapping[bytes, bytes]
Table = Callable[[], Rows]
Now = Callable[[], int | None]

MAX_HELD: Final = 4096
"""Records a partition may hold unacknowledged; then its rows are written without a tick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a record led to.

    The record waits under `mark`. Once the outputs are delivered and the rows are in the changelog
    (an empty row deletes its key), waiting records with marks up to `settled` are done, oldest
    first and up to the first that is not.
    """

    outputs: list[Output] = field(default_factory=list)
    rows: dict[bytes, bytes] = field(default_factory=dict)
    mark: int = 0
    settled: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


class Stage(Protocol):
    """What an agent runs."""

    def take(self, event: Received) -> Turn:
        """Fold one record.

        Raises:
            BadInput: the record breaks its contract and must be dead-lettered.

        """
        ...

    def forget(self) -> None:
        """Drop what is in memory; the tables are read again when it is needed."""
        ...


class JobStage:
    """`telemetry.jobs`: a row and a state per event that changes something."""

    def __init__(self, table: Table, now: Now) -> None:
        self._table: Final = table
        self._now: Final = now
        self._shards: Final[dict[int, jobs.JobShard]] = {}

    def take(self, event: Received) -> Turn:
        """Fold one job event."""
        message = _only(event, JobEvent)
        _refuse_future(message.event_time_us, self._now())
        shard = self._shard(event.partition)
        change = jobs.absorb(shard, message, event.id)
        if change.output is None or change.block is None:
            return Turn(dropped={change.dropped or "duplicate": 1})
        key = job_rows.row_key(event.partition, change.block)
        return Turn(outputs=[change.output], rows={key: job_rows.row_of(shard, change.block)})

    def partials(self, fleet: str, partition: int, tick_us: int) -> list[Partial]:
        """Return what a partition's jobs add to each pool."""
        name = f"jobs/{partition}"
        found = jobs.partials(self._shard(partition), fleet, name, tick_us)
        return [*found, pools.done(fleet, name, tick_us)]

    def forget(self) -> None:
        """Drop what is in memory."""
        self._shards.clear()

    def _shard(self, partition: int) -> jobs.JobShard:
        shard = self._shards.get(partition)
        if shard is None:
            shard = self._shards[partition] = job_rows.shard_from(self._table(), partition)
        return shard


@dataclass(slots=True)
class _Nodes:
    """A partition's nodes, the blocks to write, the keys that the table has."""

    shard: nodes.NodeShard
    keys: set[bytes]
    changed: set[int] = field(default_factory=set)
    held: int = 0

    def rows(self, partition: int) -> dict[bytes, bytes]:
        """Return the rows that bring the table up to date, deletions last."""
        prefix = node_rows.row_key(partition, self.shard.depth, 0)[:-1]
        stale = {key for key in self.keys if not key.startswith(prefix)}
        if stale or not self.keys:
            self.changed = set(range(1 << self.shard.depth))
        written = node_rows.rows_of(self.shard, partition, self.changed)
        rows = {key: row for key, row in written.items() if row}
        deleted = stale | ({key for key, row in written.items() if not row} & self.keys)
        self.keys = (self.keys | set(rows)) - deleted
        rows |= dict.fromkeys(sorted(deleted), b"")
        self.changed, self.held = set(), 0
        return rows


class FrameStage:
    """`internal.frames`: samples into blocks; at a tick rows, node states and partial sums.

    The tick of a partition also closes the partition's jobs, which Faust assigns to the same
    worker because both topics have the same number of partitions.
    """

    def __init__(self, fleet: str, table: Table, job_stage: JobStage, now: Now) -> None:
        self._fleet: Final = fleet
        self._table: Final = table
        self._jobs: Final = job_stage
        self._now: Final = now
        self._nodes: Final[dict[int, _Nodes]] = {}

    def take(self, event: Received) -> Turn:
        """Fold a data frame, or tell a tick."""
        frame = _only(event, Frame)
        if frame.partition != event.partition:
            raise BadInput("inconsistent", f"a frame of partition {frame.partition}")
        own = self._own(event.partition)
        if frame.tick_us is not None:
            return self._tick(own, event.partition, frame.tick_us)
        now_us = self._now()
        # The framer has refused such samples; who writes frames itself may have a broken clock.
        latest_us = INT64_MAX if now_us is None else now_us + AHEAD_US
        absorbed = nodes.absorb(own.shard, unpack(frame), latest_us=latest_us)
        own.changed |= absorbed.changed
        own.held += 1
        if own.held < MAX_HELD:
            return Turn(mark=1, dropped=absorbed.dropped)
        rows = own.rows(event.partition)
        return Turn(rows=rows, mark=1, settled=1, dropped=absorbed.dropped)

    def _tick(self, own: _Nodes, partition: int, tick_us: int) -> Turn:
        name = f"gpu/{partition}"
        told = node_ticks.at_tick(own.shard, self._fleet, tick_us)
        own.changed |= told.changed
        partials = [
            *pools.node_partials(told.pools, self._fleet, name, tick_us),
            pools.done(self._fleet, name, tick_us),
            *self._jobs.partials(self._fleet, partition, tick_us),
        ]
        outputs = told.states + [pools.output(partial) for partial in partials]
        return Turn(outputs=outputs, rows=own.rows(partition), mark=1, settled=1)

    def forget(self) -> None:
        """Drop what is in memory."""
        self._nodes.clear()

    def _own(self, partition: int) -> _Nodes:
        own = self._nodes.get(partition)
        if own is None:
            rows = self._table()
            keys = {key for key in rows if key.startswith(f"{partition}/".encode())}
            shard = node_rows.shard_from(rows, partition)
            own = self._nodes[partition] = _Nodes(shard, keys)
        return own


class SampleStage:
    """Topics of one partition whose newest samples stand: capacity, services, refusals."""

    def __init__(self, fleet: str, table: Table, now: Now) -> None:
        self._fleet: Final = fleet
        self._table: Final = table
        self._now: Final = now
        self._shards: Final[dict[str, State]] = {}

    def take(self, event: Received) -> Turn:
        """Fold one sample; what changed leaves as the pool's partial."""
        match event.message:
            case ResourceSample() as sample:
                _refuse_future(sample.event_time_us, self._now())
                return self._capacity(sample)
            case ServiceSample() as sample:
                _refuse_future(sample.event_time_us, self._now())
                return self._service(sample)
            case TenantEvent() as sample:
                _refuse_future(sample.event_time_us, self._now())
                return self._tenant(sample)
        raise BadInput("unknown_type", f"not telemetry of {event.topic}")

    def forget(self) -> None:
        """Drop what is in memory."""
        self._shards.clear()

    def _capacity(self, sample: ResourceSample) -> Turn:
        shard = self._shard("resources", pools.CapacityShard)
        dropped = pools.absorb_resource(shard, sample)
        if dropped is not None or sample.kind != "capacity":
            return _nothing(dropped)
        at_us = sample.event_time_us
        found = pools.capacity_partials(shard, self._fleet, "resources/0", at_us)
        return _told("resources", shard, found, {sample.pool})

    def _service(self, sample: ServiceSample) -> Turn:
        shard = self._shard("services", pools.ServiceShard)
        before = {pool for _, _, pool, _ in shard.services.values()}
        dropped = pools.absorb_service(shard, sample)
        if dropped is not None:
            return _nothing(dropped)
        newest_us = max(state.event_time_us for *_, state in shard.services.values())
        found = pools.service_partials(
            shard, before | {sample.pool}, self._fleet, "services/0", newest_us
        )
        return _told("services", shard, found, before | {sample.pool})

    def _tenant(self, event: TenantEvent) -> Turn:
        shard = self._shard("tenants", tenants.TenantShard)
        dropped = tenants.absorb_tenant(shard, event)
        if dropped is not None or event.kind == "cancelled":
            return _nothing(dropped)
        found = tenants.tenant_partials(shard, self._fleet, "tenants/0", shard.newest_us)
        return _told("tenants", shard, found, {event.pool})

    def _shard(self, name: str, kind: type[S]) -> S:
        shard = self._shards.get(name)
        if shard is None:
            row = self._table().get(name.encode())
            shard = kind() if row is None else msgspec.msgpack.decode(row, type=kind)
            self._shards[name] = shard
        assert isinstance(shard, kind)
        return shard


class BookMark(State):
    """How far the book is: the last tick told, and what each shard had reported by then."""

    told_us: int
    reported_us: dict[str, int]


class PoolStage:
    """`internal.partials`: every pool's state at every tick, once all shards have reported."""

    def __init__(self, fleet: str, table: Table, ticking: frozenset[str]) -> None:
        self._fleet: Final = fleet
        self._table: Final = table
        self._ticking: Final = ticking
        self._book: pools.PoolBook | None = None
        self._keys: set[bytes] = set()

    def take(self, event: Received) -> Turn:
        """Fold one partial, and tell the ticks that it completes."""
        partial = _only(event, Partial)
        book = self._open()
        before_us = book.told_us
        pools.receive(book, partial, self._ticking)
        outputs: list[Output] = []
        while (tick_us := pools.next_tick(book, self._ticking)) is not None:
            outputs += pools.tell(book, self._fleet, tick_us, self._ticking)
        mark = partial.tick_us if partial.shard in self._ticking else 0
        settled = max(book.told_us, 0)
        rows: dict[bytes, bytes] = {}
        if book.told_us > before_us:
            rows = {_pool_key(pool): self._row(book, pool) for pool in sorted(book.standing)}
            bookmark = BookMark(told_us=book.told_us, reported_us=book.reported_us)
            rows[BOOK] = msgspec.msgpack.encode(bookmark)
            rows |= dict.fromkeys(sorted(self._keys - rows.keys()), b"")
            self._keys = {key for key, row in rows.items() if row}
        elif mark <= settled and partial.pool in book.standing:
            rows = {_pool_key(partial.pool): self._row(book, partial.pool)}
            self._keys |= rows.keys()
        return Turn(outputs=outputs, rows=rows, mark=mark, settled=settled)

    def forget(self) -> None:
        """Drop what is in memory."""
        self._book = None

    def _row(self, book: pools.PoolBook, pool: str) -> bytes:
        return msgspec.msgpack.encode(book.standing[pool])

    def _open(self) -> pools.PoolBook:
        if self._book is None:
            rows, book = self._table(), pools.PoolBook()
            decoder = msgspec.msgpack.Decoder(dict[str, Partial])
            for key in sorted(rows):
                if key.startswith(POOL):
                    book.standing[key.removeprefix(POOL).decode()] = decoder.decode(rows[key])
            if BOOK in rows:
                bookmark = msgspec.msgpack.decode(rows[BOOK], type=BookMark)
                book.told_us, book.reported_us = bookmark.told_us, bookmark.reported_us
            self._book = book
            self._keys = {key for key in rows if key == BOOK or key.startswith(POOL)}
        return self._book


BOOK: Final = b"book"
POOL: Final = b"pool/"


def _pool_key(pool: str) -> bytes:
    return POOL + pool.encode()


def _only(event: Received, kind: type[M]) -> M:
    if not isinstance(event.message, kind):
        raise BadInput("unknown_type", f"not what {event.topic} carries here")
    return event.message


def _refuse_future(event_time_us: int, now_us: int | None) -> None:
    """Refuse what is dated too far ahead, once there is a fleet clock to say so."""
    if now_us is not None:
        refuse_future(event_time_us, now_us)


def _nothing(reason: str | None) -> Turn:
    return Turn(dropped={} if reason is None else {reason: 1})


def _told(name: str, shard: State, partials: list[Partial], of_pools: set[str]) -> Turn:
    return Turn(
        outputs=[pools.output(partial) for partial in partials if partial.pool in of_pools],
        rows={name.encode(): msgspec.msgpack.encode(shard)},
    )
