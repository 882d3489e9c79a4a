"""Components in one process under virtual time: no broker, no JSON, thousands of seeded runs.

Time jumps from tick to tick. At each, the components tick in the order given, and after each of
them every message it caused is delivered, first in first out, before the next one ticks. A
component may lag: it then learns of a tick some time after it. Messages are passed as they are; a
run is fixed by its components, seed, lags and start.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from gpuloop.loop.shells.partition import partition_of
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.component import Component, Context, Event, Output, Received, State, Tick
from gpuloop.schemas.identity import sha256_of

MAX_MESSAGES_PER_TICK: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """Bad luck of messages, keyed by their id: shares that are lost, come twice, or come late.

    A late message, and the second of a pair, arrives after the next tick and so out of order.
    Topics are matched by prefix.
    """

    seed: int
    topics: tuple[str, ...] = ("telemetry.",)
    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0

    def fate(self, message: Received) -> tuple[int, int]:
        """Return how many copies arrive now and how many after the next tick."""
        if not message.topic.startswith(self.topics):
            return 1, 0
        draw = _uniform(str(self.seed), message.topic, message.id)
        if draw < self.drop:
            return 0, 0
        if draw < self.drop + self.duplicate:
            return 1, 1
        return (0, 1) if draw < self.drop + self.duplicate + self.delay else (1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How late one component learns what happens at a tick of the loop, drawn for each tick.

    A share of the ticks is late, evenly by up to `most_us`. What the component is told at such a
    tick, on `topics` or, where none are named, on all its inputs and by its own tick, reaches it in
    the same order at the later time, and its clock then shows that time. Others are told at once.
    """

    component: str
    every_us: int
    most_us: int
    share: float = 1.0
    topics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a lag that would let one tick overtake the next.

        Raises:
            ValueError: `most_us` is not less than `every_us`.

        """
        if not 0 <= self.most_us < self.every_us:
            raise ValueError(f"a lag of {self.most_us} does not fit into {self.every_us}")

    def due_us(self, event: Event, now_us: int, seed: int) -> int:
        """Return when the component is told of an event that happens at `now_us`."""
        if self.topics and (isinstance(event, Tick) or event.topic not in self.topics):
            return now_us
        tick_us = now_us // self.every_us * self.every_us
        draw = _uniform(str(seed), "lag", self.component, str(tick_us))
        late_us = round(draw / self.share * self.most_us) if draw < self.share else 0
        return max(now_us, tick_us + late_us)


@lru_cache(maxsize=64)
def _uniform(*key: str) -> float:
    """Return the draw of a key in [0, 1): the same key gives the same draw, in any order."""
    return int(sha256_of(*key)[:13], 16) / 16**13


class Simulation:
    """A loop of components, driven by virtual fleet time.

    `states` holds each component's state by name. Wall time runs along at `speed`, for leases.
    """

    def __init__(
        self,
        components: Iterable[Component[Any]],
        *,
        seed: int,
        start_us: int,
        speed: float = 60.0,
        wall_start_us: int = 0,
        disturbance: Disturbance | None = None,
        lags: Iterable[Lag] = (),
    ) -> None:
        self.components: Final = tuple(components)
        self.states: Final[dict[str, State]] = {c.name: c.initial() for c in self.components}
        self._seed: Final = seed
        self._start_us: Final = start_us
        self._speed: Final = speed
        self._wall_start_us: Final = wall_start_us or start_us
        self._disturbance: Final = disturbance
        self._lags: Final = {lag.component: lag for lag in lags}
        self._readers: Final[dict[str, list[Component[Any]]]] = defaultdict(list)
        for component in self.components:
            for topic in component.inputs:
                self._readers[topic].append(component)
        self._watchers: Final[dict[str, list[Callable[[Received], None]]]] = defaultdict(list)
        self._queue: Final[deque[Received]] = deque()
        self._late: list[Received] = []
        self._due: Final[deque[tuple[Component[Any], Event]]] = deque()
        self._held: Final[dict[int, list[tuple[Component[Any], Event]]]] = {}
        self._delivered = 0
        self._offsets: Final[dict[tuple[str, int], int]] = defaultdict(int)
        self._context = self._at(start_us)

    @property
    def now_us(self) -> int:
        """Return the present of the run, in fleet time."""
        return self._context.now_us

    def watch(self, topic: str, watcher: Callable[[Received], None]) -> None:
        """Call `watcher` with every message on a topic, before its readers see it."""
        self._watchers[topic].append(watcher)

    def collect(self, topic: str) -> list[Received]:
        """Return a list that fills with the messages on a topic."""
        messages: list[Received] = []
        self.watch(topic, messages.append)
        return messages

    def send(self, outputs: Iterable[Output]) -> None:
        """Deliver messages from outside, now, and everything that follows from them."""
        self._route(outputs)
        self._delivered = 0
        while self._queue:
            self._deliver()

    def step(self) -> int:
        """Go on to the next tick of any component and return its time."""
        self.run(self._next_tick_us())
        return self.now_us

    def run(self, until_us: int, *, halt: Callable[[], bool] | None = None) -> None:
        """Go on to `until_us`, ticks at that time included.

        `halt` is asked after every message and tick; once it says so, the run stands where it is,
        other messages still under way. What is sent then comes after those, and the next `run` or
        `step` goes on from there.
        """
        while halt is None or not halt():
            if self._queue:
                self._deliver()
            elif self._due:
                self._delivered = 0
                self._tell(*self._due.popleft())
            elif (at_us := min([self._next_tick_us(), *self._held])) <= until_us:
                self._begin(at_us)
            else:
                self._context = self._at(until_us)
                return

    def _begin(self, at_us: int) -> None:
        """Let time jump: what is late arrives, then those tick whose time it is."""
        self._context = self._at(at_us)
        self._delivered = 0
        ticking = [
            component
            for component in self.components
            if component.tick_every_us > 0 and at_us % component.tick_every_us == 0
        ]
        if ticking:
            self._queue.extend(self._late)
            self._late.clear()
        self._due.extend(self._held.pop(at_us, ()))
        self._due.extend((component, Tick(tick_us=at_us)) for component in ticking)

    def _next_tick_us(self) -> int:
        now_us = self.now_us
        every = [c.tick_every_us for c in self.components if c.tick_every_us > 0]
        if not every:
            raise ValueError("no component ticks, so time cannot pass")
        return min((now_us // step + 1) * step for step in every)

    def _at(self, now_us: int) -> Context:
        elapsed_us = (now_us - self._start_us) / self._speed
        return Context(
            now_us=now_us, wall_us=self._wall_start_us + round(elapsed_us), seed=self._seed
        )

    def _tell(self, component: Component[Any], event: Event) -> None:
        """Let a component know of an event, now or, where it lags, when it is told."""
        lag = self._lags.get(component.name)
        due_us = self.now_us if lag is None else lag.due_us(event, self.now_us, self._seed)
        if due_us > self.now_us:
            self._held.setdefault(due_us, []).append((component, event))
        else:
            self._step(component, event)

    def _step(self, component: Component[Any], event: Event) -> None:
        state, outputs = component.step(self.states[component.name], event, self._context)
        self.states[component.name] = state
        if outputs:
            self._route(outputs)

    def _route(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            topic = output.topic
            readers, watchers = self._readers.get(topic), self._watchers.get(topic)
            if not readers and not watchers:
                continue
            partition = partition_of(output.key.encode(), CATALOGUE[topic].partitions)
            offset = self._offsets[topic, partition]
            self._offsets[topic, partition] = offset + 1
            message = Received(
                topic=topic,
                partition=partition,
                offset=offset,
                key=output.key,
                id=output.event_id,
                message=output.message,
                payload=output.payload,
            )
            for watcher in watchers or ():
                watcher(message)
            self._enqueue(message)

    def _enqueue(self, message: Received) -> None:
        if self._disturbance is None:
            self._queue.append(message)
            return
        now, later = self._disturbance.fate(message)
        self._queue.extend([message] * now)
        self._late.extend([message] * later)

    def _deliver(self) -> None:
        message = self._queue.popleft()
        self._delivered += 1
        if self._delivered > MAX_MESSAGES_PER_TICK:
            raise RuntimeError(f"messages do not come to rest at {self.now_us}")
        for component in self._readers.get(message.topic, ()):
            self._tell(component, message)
