"""The sinks' shell on a store in memory: what it writes, in which order, and when it must not."""

import logging
import threading
from collections.abc import Callable, Mapping

import pytest

from builders import FLEET, START_US, offer, pool_state
from gpuloop.loop.shells import sink as shell
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.sink import Sink, Written
from gpuloop.loop.shells.sink_store import Batch, Standing, StoreDown, StoreRefused
from gpuloop.schemas.codec import encode
from gpuloop.schemas.messages import Message
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams.sinks.history import HISTORY

YEAR_2099_US = 4_070_908_800_000_000


class Kept:
    """A store that does with each batch what it is told to, and keeps what it took."""

    def __init__(self, write: Callable[[Batch], None] = lambda batch: None) -> None:
        self.batches: list[Batch] = []
        self.tended: list[int] = []
        self._write = write
        self._next: dict[Partition, int] = {}

    def open(self, parts: Mapping[Partition, int]) -> dict[Partition, Standing]:
        return {part: Standing(self._next.get(part, at)) for part, at in parts.items()}

    def write(self, batch: Batch) -> None:
        self._write(batch)
        self.batches.append(batch)
        self._next |= {part: span.next for part, span in batch.spans.items()}

    def tend(self, fleet_us: int) -> None:
        self.tended.append(fleet_us)

    def close(self) -> None:
        pass

    def missing(self) -> list[str]:
        """Return spans that do not hold a row for each of their offsets."""
        return [
            f"{part} {span}: {len(batch.rows.get(part, {}).get('offers', []))} rows"
            for batch in self.batches
            for part, span in batch.spans.items()
            if len(batch.rows.get(part, {}).get("offers", [])) != span.next - span.first
        ]


class Watch:
    """Stops the sink when all is written, or when told to at an outage."""

    def __init__(self, *, stop_at_outage: bool = False) -> None:
        self.stop = threading.Event()
        self._stop_at_outage = stop_at_outage

    def written(self, done: Written) -> None:
        pass

    def refused(self, reason: str) -> None:
        pass

    def outage(self, why: str, attempt: int, oldest_ms: int | None) -> None:
        if self._stop_at_outage:
            self.stop.set()

    def expired(self, part: Partition, missing: int) -> None:
        pass

    def turn(self, positions: Mapping[Partition, int], lag: Callable[[], int]) -> None:
        if lag() == 0:
            self.stop.set()


def holding(topic: str, *messages: Message) -> MemoryBroker:
    broker = MemoryBroker()
    broker.produce(
        [encode(topic, "key", message, event_id=str(n), source="s", time_us=START_US)
         for n, message in enumerate(messages)]
    )  # fmt: skip
    return broker


def run(broker: MemoryBroker, store: Kept, watch: Watch) -> None:
    Sink(
        broker, store, HISTORY, name="sink-test", fleet=FLEET, watch=watch,
        chance=lambda: -1.0, limits=shell.Limits(linger_s=0.0),
    ).run(watch.stop)  # fmt: skip


def test_a_stop_between_the_halves_of_a_refused_batch_leaves_no_record_out() -> None:
    """The first half meets an outage and gives up: the other's span would cover it, without it."""
    calls: list[int] = []

    def write(batch: Batch) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise StoreRefused("something in it")
        if len(calls) == 2:
            raise StoreDown("for a moment")

    store = Kept(write)
    broker = holding("market.offers", *(offer(at_us=START_US + n) for n in range(4)))
    run(broker, store, Watch(stop_at_outage=True))
    assert store.missing() == []
    run(broker, store, Watch())
    assert store.missing() == []
    assert sum(len(rows["offers"]) for b in store.batches for rows in b.rows.values()) == 4


def test_upkeep_goes_by_the_time_that_many_states_agree_on() -> None:
    ticks = [START_US + n * MINUTE_US for n in range(shell.AGREEING)]
    states = [pool_state(tick_us=tick_us) for tick_us in (*ticks, YEAR_2099_US)]
    store = Kept()
    run(holding("state.pools", *states), store, Watch())
    assert store.tended == [ticks[1]]


def test_a_store_that_is_away_is_told_when_it_goes_and_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    refusals = iter(range(3))

    def write(batch: Batch) -> None:
        if next(refusals, None) is not None:
            raise StoreDown("for a moment")

    run(holding("market.offers", offer()), Kept(write), Watch())
    assert caplog.messages == ["store is away", "store is back"]
