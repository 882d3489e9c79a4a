"""`state.pools` in, `insight.features` out: one vector per pool and job class at every minute.

What a vector says was known at its tick: it rests on the pool states that had come until then, and
is never told again. A state that comes late enters the windows of vectors to come; one that comes
twice changes nothing. All that enters is on one topic with one partition, so the same fold over a
recording of that topic gives the same vectors, byte for byte (`over`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Final

from gpuloop.schemas.component import Context, Event, Output, Received, State
from gpuloop.schemas.horizon import STATE_AHEAD_US, refuse_ahead
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import FeatureVector, PoolState
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import TimeUs
from gpuloop.streams.features import compute
from gpuloop.streams.features.compute import Track
from gpuloop.streams.features.definitions import CLASS_FEATURES, POOL_FEATURES

MAX_POOLS: Final = 64
MAX_CLASSES: Final = 16
OTHER: Final = "other"
"""The classes of a pool beyond the first `MAX_CLASSES` are told as one."""


class PoolTracks(State):
    """A pool and its job classes; `told_us` is the tick of its newest vector."""

    pool: Track
    classes: dict[str, Track] = {}
    told_us: int = -1


class FeaturesState(State):
    """Every pool's past, and how many states changed nothing, by reason."""

    pools: dict[str, PoolTracks] = {}
    dropped: dict[str, int] = {}


class Features:
    """Folds `state.pools` into `insight.features`."""

    name: ClassVar[str] = "features"
    inputs: ClassVar[tuple[str, ...]] = ("state.pools",)
    state_version: ClassVar[int] = 1

    def __init__(self) -> None:
        self.state_type = FeaturesState
        self.tick_every_us: TimeUs = 0

    def initial(self) -> FeaturesState:
        """Return a state without any past."""
        return FeaturesState()

    def step(
        self, state: FeaturesState, event: Event, ctx: Context
    ) -> tuple[FeaturesState, Sequence[Output]]:
        """Take a pool's state in, and tell its features if it is of a new minute.

        Raises:
            BadInput: a state from the future, after which all others would be old.

        """
        if not isinstance(event, Received) or not isinstance(event.message, PoolState):
            return state, ()
        pool = event.message
        refuse_ahead(pool.tick_us, ctx.now_us, STATE_AHEAD_US)
        if pool.tick_us % CONTROL_TICK_US:
            return state, ()
        tracks = state.pools.get(pool.pool)
        if tracks is None:
            if len(state.pools) >= MAX_POOLS:
                oldest = min(state.pools, key=lambda name: (state.pools[name].told_us, name))
                del state.pools[oldest]
            tracks = PoolTracks(pool=compute.new_track(POOL_FEATURES))
            state.pools[pool.pool] = tracks
        if pool.tick_us <= tracks.told_us:
            _take_late(state, tracks, pool)
            return state, ()
        tracks.told_us = pool.tick_us
        return state, [_output(vector, event.id) for vector in _tell(tracks, pool)]


def _tell(tracks: PoolTracks, pool: PoolState) -> Iterator[FeatureVector]:
    counters = (pool.arrived_gpus, pool.refused_jobs)
    readings = compute.of_pool(pool, compute.rates(tracks.pool, pool.tick_us, counters))
    compute.take(tracks.pool, pool.tick_us, readings)
    yield compute.vector(POOL_FEATURES, tracks.pool, pool, readings, "")
    for name, members in _classes(tracks, pool).items():
        track = tracks.classes.setdefault(name, compute.new_track(CLASS_FEATURES))
        arrived = sum(one.arrived_gpus for one in pool.classes if one.job_class in members)
        (grown,) = compute.rates(track, pool.tick_us, (arrived,))
        readings = compute.of_class(pool, members, grown)
        compute.take(track, pool.tick_us, readings)
        yield compute.vector(CLASS_FEATURES, track, pool, readings, name)


def _classes(tracks: PoolTracks, pool: PoolState) -> dict[str, frozenset[str]]:
    """Return the classes to tell of, and what each stands for; a class keeps its name."""
    seen = {one.job_class for one in pool.classes} | {queue.job_class for queue in pool.queues}
    room = MAX_CLASSES - len(tracks.classes.keys() - {OTHER})
    fresh = sorted(seen - tracks.classes.keys() - {OTHER})
    rest = frozenset(fresh[room:]) | (seen & {OTHER})
    named = sorted((tracks.classes.keys() - {OTHER}) | set(fresh[:room]))
    told = {name: frozenset((name,)) for name in named}
    if rest or OTHER in tracks.classes:
        told[OTHER] = rest
    return told


def _take_late(state: FeaturesState, tracks: PoolTracks, pool: PoolState) -> None:
    """Let the windows know a state that came late; its counters have no rate."""
    readings = compute.of_pool(pool, (None, None))
    taken = compute.take(tracks.pool, pool.tick_us, readings)
    if taken != "taken":
        state.dropped[taken] = state.dropped.get(taken, 0) + 1
        return
    for name in tracks.classes.keys() - {OTHER}:
        track = tracks.classes[name]
        compute.take(track, pool.tick_us, compute.of_class(pool, frozenset((name,)), None))


def _output(vector: FeatureVector, cause: str) -> Output:
    return Output(
        topic="insight.features",
        key=vector.pool,
        message=vector,
        event_id=derived_event_id("insight.features", [cause, vector.job_class]),
        time_us=vector.tick_us,
    )


def over(events: Iterable[Received], seed: int = 0) -> Iterator[Output]:
    """Yield the features of recorded pool states, in their order: the offline form of the fold."""
    component = Features()
    state = component.initial()
    for event in events:
        if isinstance(event.message, PoolState):
            now_us = event.message.tick_us
            context = Context(now_us=now_us, wall_us=now_us, seed=seed)
            state, outputs = component.step(state, event, context)
            yield from outputs
