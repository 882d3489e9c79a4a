"""Faust's consumer with two of its doors closed, both of which lose records after a restart.

Recovery lets input flow before it seeks to the committed offsets, and then empties the queues the
input has gone into (`flow_control.resume` clears them); the record is neither handled nor, behind
the read offset, fetched again. So partitions that recovery releases stay shut until it lets flow.
And offsets to commit are derived from acknowledgements with gaps guessed in between, where a
skipped record counts as acknowledged. So only what the agents have settled is committed.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import faust
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from yarl import URL

Place = tuple[str, int]
"""A topic under its full name, and a partition."""


@dataclass(slots=True)
class Positions:
    """Next offsets per partition since the last assignment: to begin with, folded, settled.

    `ready` says that the tables are recovered, `restored` how far recovery has come, in records of
    their changelogs. Written by the event loop, read by other threads.
    """

    ready: bool = False
    restored: int = 0
    begin: dict[Place, int] = field(default_factory=dict)
    handled: dict[Place, int] = field(default_factory=dict)
    settled: dict[Place, int] = field(default_factory=dict)

    def expected(self, place: Place) -> int | None:
        """Return the offset that must come next, None before the partition is assigned."""
        return self.handled.get(place, self.begin.get(place))

    def forget(self) -> None:
        """Drop all positions: the partitions were revoked."""
        self.begin.clear()
        self.handled.clear()
        self.settled.clear()


class SettledConsumer(driver.Consumer):
    """Reads stream partitions only behind recovery and commits what is settled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shut: set[TP] = set()

    @property
    def positions(self) -> Positions:
        """Return the positions that agents and consumer share."""
        return cast(SettledTransport, self.transport).positions

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Open changelog partitions now and the others when recovery lets flow."""
        wanted = set(tps)
        streams = {tp for tp in wanted if not self._is_changelog_tp(tp)}
        self._shut |= streams
        super().resume_partitions(wanted - streams)

    def resume_flow(self) -> None:
        """Let flow; recovery calls it behind the seek and behind the clearing of queues."""
        super().resume_partitions(self._shut)
        self._shut = set()
        super().resume_flow()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the committed offsets and note where each partition begins.

        The seek is made explicit, because the client's own is lazy and would go by a commit that a
        killed predecessor had under way and that lands after this one was read. It happens more
        than once per assignment, and the last seek is the one that counts.
        """
        committed = await super().seek_to_committed()
        first = await self.earliest_offsets(*committed)
        for tp, earliest in first.items():
            place = (tp.topic, tp.partition)
            begin = max(committed.get(tp) or 0, earliest)
            self.positions.begin[place] = begin
            await self._seek(tp, begin)
        return committed

    def coordination_error(self) -> BaseException | None:
        """Return what ended the client's membership of its group; it tells nobody by itself."""
        client = self._thread._consumer
        task = getattr(client and client._coordinator, "_coordination_task", None)
        if task is None or not task.done() or task.cancelled():
            return None
        error: BaseException | None = task.exception()
        return error

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        for topic, partition in list(self.positions.settled):
            tp = TP(topic, partition)
            if topics is None or tp in topics or topic in topics:
                yield tp

    def _new_offset(self, tp: TP) -> int | None:
        # The library's own account is not used; it must not grow either.
        for account in (self._acked, self._acked_index, self._gap):
            account.pop(tp, None)
        return self.positions.settled.get((tp.topic, tp.partition))


class SettledTransport(driver.Transport):
    """Kafka through aiokafka, with the consumer above."""

    Consumer = SettledConsumer

    def __init__(self, app: faust.App, addresses: Iterable[str], positions: Positions) -> None:
        super().__init__([URL(address) for address in addresses], app)
        self.positions: Final = positions
