"""The shell of the component that owns a world: effect, ledger and positions in one transaction.

    poll ─► step ─► one SQLite transaction: state, input positions, outbox ─► send outbox

A command therefore takes effect at most once, whatever dies when; what the world said about it is
in the outbox of the same transaction and is sent, after a crash again, under the same ids. The
world is also what fleet time is measured by: this shell publishes the anchor, and time stands while
it does not run. Refused input goes out as dead letters through the same outbox.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import Broker, Consumer, Partition
from gpuloop.loop.shells.clock import FleetClock
from gpuloop.loop.shells.fold import (
    Executed,
    Failpoint,
    Moment,
    due_ticks,
    encode_dead_letters,
    encode_outputs,
    execute,
    no_failpoint,
    source_of,
)
from gpuloop.loop.shells.store import Store, Stored
from gpuloop.loop.shells.timekeeping import newest_anchors
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import Encoded, encode
from gpuloop.schemas.component import Component, S, load, save
from gpuloop.schemas.errors import Explained
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import ClockAnchor
from gpuloop.schemas.units import INT64_MAX, MINUTE_US, SECOND_US

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """Pace and bounds of a world.

    `step_every_us` and `anchor_every_us` are wall time, `step_max_us` and `lag_max_us` fleet time:
    a step takes the world no further than the one, and when it lies behind its clock by more than
    the other the clock is set back to it.
    """

    fleet: str
    seed: int
    start_us: int
    speed: float
    step_every_us: int = SECOND_US // 10
    anchor_every_us: int = 10 * SECOND_US
    step_max_us: int = MINUTE_US
    lag_max_us: int = 5 * MINUTE_US
    max_records: int = 500


class WorldWatcher(Protocol):
    """Who is told how the world gets on."""

    def resumed(self, world: str, now_us: int, *, unsent: int) -> None:
        """Say which world goes on from when, and how many outputs are sent again."""
        ...

    def stepped(
        self, executed: Executed[S], positions: dict[Partition, int], now_us: int, *, records: int
    ) -> None:
        """Say that a step is committed and its outputs are acknowledged."""
        ...

    def reanchored(self, lag_us: int) -> None:
        """Say that the world could not keep up with its clock, which was set back."""
        ...


class TransactionalShell(Generic[S]):
    """Runs the component that owns a world. One thread drives it, as it does a `LiveShell`."""

    def __init__(
        self,
        component: Component[S],
        broker: Broker,
        store: Store,
        config: WorldConfig,
        watcher: WorldWatcher,
        *,
        wall: Callable[[], int] = clock.wall_us,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self._component: Final = component
        self._broker: Final = broker
        self._store: Final = store
        self._config: Final = config
        self._watcher: Final = watcher
        self._wall: Final = wall
        self._failpoint: Final = failpoint
        self._source: Final = source_of(config.fleet, component.name)
        self._sent_through = 0
        self._now_us = 0
        self._world = ""
        self._next_step_us = 0
        self._next_anchor_us = 0

    @property
    def state(self) -> S:
        """Return the component's state as it is now; only after `open`."""
        return self._state

    def run(self, stop: threading.Event) -> None:
        """Resume the world and keep it going until `stop`; then its clock stands."""
        self.open()
        try:
            while not stop.is_set():
                self.advance()
            self._anchor(self._now_us, self._wall(), speed=0.0)
            self._store.note_sent(self._sent_through)
        finally:
            self.close()

    def open(self) -> None:
        """Load the world or begin one, send what may be missing, and start its clock."""
        stored = self._store.load()
        if stored is None:
            stored = self._begin()
        self._world, self._now_us = stored.world, stored.now_us
        if stored.version != self._component.state_version:
            raise Explained(
                f"the world was saved by version {stored.version}, this is version"
                f" {self._component.state_version}: start a fresh one"
            )
        self._state: S = load(self._component.state_type, stored.data)
        self._positions = stored.positions
        unsent = self._store.outbox()
        self._send(unsent)
        self._consumer: Consumer = self._broker.consumer(
            self._positions, group=f"gpuloop-{self._component.name}"
        )
        self._anchor(self._now_us, self._wall(), speed=self._config.speed)
        self._watcher.resumed(self._world, self._now_us, unsent=len(unsent))

    def close(self) -> None:
        """Let go of the inputs; the store stays with whoever opened it."""
        self._consumer.close()

    def advance(self) -> None:
        """Wait for a command or for the next step, and take it."""
        wait_us = max(self._next_step_us - self._wall(), 0)
        records = self._consumer.poll(
            max_records=self._config.max_records, timeout_s=wait_us / SECOND_US
        )
        wall_us = self._wall()
        if not records and wall_us < self._next_step_us:
            return
        self._next_step_us = wall_us + self._config.step_every_us
        now_us = self._reachable(wall_us)
        ticks, _ = due_ticks(self._now_us, now_us, self._component.tick_every_us)
        # A world advances from event to event, so the newest tick says it all.
        moment = Moment(now_us=now_us, wall_us=wall_us, ticks_us=ticks[-1:])
        executed = execute(
            self._component,
            self._state,
            records,
            moment,
            fleet=self._config.fleet,
            seed=self._config.seed,
        )
        self._failpoint("stepped")
        self._state, self._now_us = executed.state, now_us
        self._positions |= {Partition(r.topic, r.partition): r.offset + 1 for r in records}
        outputs = encode_dead_letters(
            executed.refused, stage=self._component.name, fleet=self._config.fleet
        ) + encode_outputs(executed.outputs, self._source)
        if records or outputs:
            appended = self._commit(outputs)
            self._failpoint("committed")
            self._send(appended)
            self._failpoint("sent")
            self._consumer.commit(self._positions)
        self._watcher.stepped(executed, self._positions, now_us, records=len(records))
        if wall_us >= self._next_anchor_us:
            self._anchor(self._clock.now_us(wall_us), wall_us, speed=self._config.speed)

    def _begin(self) -> Stored:
        """Return a new world, which owes nothing to commands that were given to another."""
        parts = [
            part for topic in self._component.inputs for part in self._broker.partitions(topic)
        ]
        if before := newest_anchors(self._broker, self._config.fleet):
            log.warning(
                "another world was here: who remembers it waits until this one is as far,"
                " unless it gets a prefix of its own",
                extra={"world": before[-1].world, "anchor_us": before[-1].anchor_us},
            )
        beginnings, ends = self._broker.beginnings(parts), self._broker.ends(parts)
        stored = Stored(
            version=self._component.state_version,
            world=f"{self._config.fleet}-{self._wall()}",
            now_us=self._config.start_us,
            data=save(self._component.initial()),
            positions={
                part: beginnings[part] if CATALOGUE[part.topic].compacted else ends[part]
                for part in parts
            },
        )
        self._store.commit(stored, (), sent_through=0)
        return stored

    def _commit(self, outputs: list[Encoded]) -> list[tuple[int, Encoded]]:
        stored = Stored(
            version=self._component.state_version,
            world=self._world,
            now_us=self._now_us,
            data=save(self._state),
            positions=self._positions,
        )
        return self._store.commit(stored, outputs, sent_through=self._sent_through)

    def _send(self, unsent: list[tuple[int, Encoded]]) -> None:
        """Write outputs and remember that they are written; the next transaction drops them."""
        if unsent:
            self._broker.produce([output for _, output in unsent])
            self._sent_through = unsent[-1][0]

    def _reachable(self, wall_us: int) -> int:
        """Return how far this step takes the world, setting its clock back if it cannot keep up."""
        config = self._config
        wanted_us = self._clock.now_us(wall_us)
        reached_us = max(min(wanted_us, self._now_us + config.step_max_us), self._now_us)
        lag_us = wanted_us - reached_us
        if lag_us > config.lag_max_us:
            self._anchor(reached_us, wall_us, speed=config.speed)
            self._watcher.reanchored(lag_us)
        return reached_us

    def _anchor(self, now_us: int, wall_us: int, *, speed: float) -> None:
        """Publish what fleet time it is now and how fast it goes, and follow that."""
        anchor = ClockAnchor(
            fleet=self._config.fleet,
            world=self._world,
            anchor_us=now_us,
            anchor_wall_us=wall_us,
            speed=speed,
        )
        event_id = derived_event_id("telemetry.clock", (self._world, str(wall_us)))
        record = encode(
            "telemetry.clock", anchor.fleet, anchor, event_id=event_id, source=self._source
        )
        self._broker.produce([record])
        self._clock = FleetClock(anchor, reach_us=INT64_MAX)  # Nobody else knows how far it is.
        self._next_anchor_us = wall_us + self._config.anchor_every_us
