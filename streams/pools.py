"""Partial sums and samples of capacity and services, merged into one state per pool and tick.

A partial replaces what its shard said before and is never added to it, and shards are summed in
the order of their names: whatever the order of arrival, the same partials give the same bytes.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

import msgspec
from msgspec.structs import replace

from gpuloop.schemas.component import Output, State
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import Partial, PoolState, ResourceSample, ServiceSample
from gpuloop.schemas.messages.internal import Capacity, FeatureSum
from gpuloop.schemas.messages.state import FEATURES, ClassState, Feature, QueueState, ServiceState
from gpuloop.schemas.units import INT64_MAX
from gpuloop.streams.horizon import REMEMBER_US
from gpuloop.streams.job_sums import WHOLE_GPU
from gpuloop.streams.jobs import OTHER_CLASSES, DropReason
from gpuloop.streams.node_ticks import PoolNodes

EVERY_POOL: Final = "*"
"""The pool of a partial that only says: this shard has said all it has to say at this tick."""
MAX_QUEUES: Final = 64
MAX_SERVICES: Final = 64

_SILENT: Final = FeatureSum(total=0.0, present=0, expected=0, newest_us=0)


# Capacity and services: the newest sample of each resource speaks.


class CapacityShard(State):
    """The newest capacity sample of each pool, with its version."""

    pools: dict[str, tuple[int, int, Capacity]] = {}


def absorb_resource(shard: CapacityShard, sample: ResourceSample) -> DropReason | None:
    """Take a sample in; storage, networks and databases are not part of a pool's state."""
    if sample.kind != "capacity":
        return None
    version = (sample.boot, sample.seq)
    known = shard.pools.get(sample.pool)
    if known is not None and version <= known[:2]:
        return "duplicate" if version == known[:2] else "late"
    capacity = Capacity(
        event_time_us=sample.event_time_us,
        gpu_model=sample.gpu_model,
        gpus_per_node=sample.gpus_per_node,
        nodes_min=sample.nodes_min,
        nodes_max=sample.nodes_max,
        tranches=sample.tranches,
        quote_usd_micros_per_gpu_hour=sample.quote_usd_micros_per_gpu_hour,
        energy_usd_micros_per_kwh=sample.energy_usd_micros_per_kwh,
        generations=sample.generations,
        loyalty_ratio=sample.loyalty_ratio,
    )
    shard.pools[sample.pool] = (*version, capacity)
    return None


def capacity_partials(shard: CapacityShard, fleet: str, name: str, tick_us: int) -> list[Partial]:
    """Return the capacity of each pool."""
    return [
        Partial(fleet=fleet, pool=pool, shard=name, tick_us=tick_us, capacity=capacity)
        for pool, (_, _, capacity) in sorted(shard.pools.items())
    ]


class ServiceShard(State):
    """The newest sample of each service, its version and pool."""

    services: dict[str, tuple[int, int, str, ServiceState]] = {}


def absorb_service(shard: ServiceShard, sample: ServiceSample) -> DropReason | None:
    """Take a sample in; a service that was silent for an hour leaves."""
    version = (sample.boot, sample.seq)
    known = shard.services.get(sample.service)
    if known is not None and version <= known[:2]:
        return "duplicate" if version == known[:2] else "late"
    state = ServiceState(
        service=sample.service,
        gpus=sample.gpus,
        requests_per_second=sample.requests_per_second,
        utilisation=sample.utilisation,
        first_token_p95_us=sample.first_token_p95_us,
        violated=sample.violated,
        event_time_us=sample.event_time_us,
    )
    shard.services[sample.service] = (*version, sample.pool, state)
    horizon = sample.event_time_us - REMEMBER_US
    for name in [n for n, row in shard.services.items() if row[3].event_time_us < horizon]:
        del shard.services[name]
    return None


def service_partials(
    shard: ServiceShard, pools: Iterable[str], fleet: str, name: str, tick_us: int
) -> list[Partial]:
    """Return the services of each of `pools`, none included: a service may have left a pool."""
    return [
        Partial(
            fleet=fleet,
            pool=pool,
            shard=name,
            tick_us=tick_us,
            services=tuple(
                state for _, (_, _, at, state) in sorted(shard.services.items()) if at == pool
            ),
        )
        for pool in sorted(pools)
    ]


def node_partials(
    pools: Mapping[str, PoolNodes], fleet: str, name: str, tick_us: int
) -> list[Partial]:
    """Return what a shard of nodes knows about each pool."""
    return [
        Partial(
            fleet=fleet,
            pool=pool,
            shard=name,
            tick_us=tick_us,
            nodes_heard=nodes.nodes_heard,
            features=nodes.features,
        )
        for pool, nodes in sorted(pools.items())
    ]


def done(fleet: str, name: str, tick_us: int) -> Partial:
    """Return the partial that closes a shard's tick."""
    return Partial(fleet=fleet, pool=EVERY_POOL, shard=name, tick_us=tick_us)


def output(partial: Partial) -> Output:
    """Return a partial as something to write."""
    # A tick told again after a crash may know more jobs: the content is part of the identity.
    identity = msgspec.msgpack.encode(partial).hex()
    return Output(
        topic="internal.partials",
        key=partial.pool,
        message=partial,
        event_id=derived_event_id("internal.partials", [identity]),
        time_us=partial.tick_us,
    )


# The book: which partials stand, and which ticks can be told.


class PoolBook(State):
    """The partials that stand per pool and shard, how far each shard is, the last tick told.

    Partials of shards that tick wait in `ahead` until their tick is told; others stand at once.
    """

    standing: dict[str, dict[str, Partial]] = {}
    ahead: list[Partial] = []
    reported_us: dict[str, int] = {}
    told_us: int = -1


def receive(book: PoolBook, partial: Partial, ticking: frozenset[str]) -> None:
    """Take a partial in. An old one changes nothing, so deliveries may repeat."""
    if partial.shard not in ticking:
        _stand(book, partial)
    elif partial.pool == EVERY_POOL:
        reported = book.reported_us.get(partial.shard, -1)
        book.reported_us[partial.shard] = max(reported, partial.tick_us)
    elif partial.tick_us <= book.told_us:
        # Late, or come again: it counts unless its shard has closed a later tick that was told.
        if partial.tick_us >= min(book.reported_us.get(partial.shard, -1), book.told_us):
            _stand(book, partial)
    else:
        book.ahead.append(partial)


def _stand(book: PoolBook, partial: Partial) -> None:
    shards = book.standing.setdefault(partial.pool, {})
    known = shards.get(partial.shard)
    if known is None or known.tick_us <= partial.tick_us:
        shards[partial.shard] = partial


def _leave(book: PoolBook, shard: str, tick_us: int) -> None:
    """Drop what a shard said of pools that it no longer mentions at a tick it has closed."""
    for pool in sorted(book.standing):
        shards = book.standing[pool]
        if shard in shards and shards[shard].tick_us < tick_us:
            del shards[shard]
            if not shards:
                del book.standing[pool]


def next_tick(book: PoolBook, ticking: frozenset[str]) -> int | None:
    """Return the tick to tell now, or None: a tick waits for all shards, but for two ticks only."""
    seen = {*book.reported_us.values(), *(partial.tick_us for partial in book.ahead)}
    untold = sorted(tick_us for tick_us in seen if tick_us > book.told_us)
    if not untold:
        return None
    complete = all(book.reported_us.get(name, -1) >= untold[0] for name in ticking)
    return untold[0] if complete or len(untold) > 2 else None


def tell(book: PoolBook, fleet: str, tick_us: int, ticking: frozenset[str]) -> list[Output]:
    """Return every pool's state at a tick and remember that it was told."""
    waiting, book.ahead = book.ahead, []
    for partial in waiting:
        if partial.tick_us <= tick_us:
            _stand(book, partial)
        else:
            book.ahead.append(partial)
    book.told_us = tick_us
    for name in ticking:
        if book.reported_us.get(name, -1) >= tick_us:
            _leave(book, name, tick_us)
    reported = sum(book.reported_us.get(name, -1) >= tick_us for name in ticking)
    return [
        state_output(
            merge(
                [book.standing[pool][shard] for shard in sorted(book.standing[pool])],
                tick_us,
                reported=reported,
                expected=len(ticking),
            )
        )
        for pool in sorted(book.standing)
    ]


# One pool.


def merge(partials: Sequence[Partial], tick_us: int, *, reported: int, expected: int) -> PoolState:
    """Return the state of the pool that `partials` are about, given in the order of shards.

    A feature is the mean over GPUs that had a value; null, with its age, when none had. Quality is
    the share of the pool's rented GPUs behind it; without a capacity sample, of the known ones.
    """
    capacity = max(
        (p.capacity for p in partials if p.capacity is not None),
        key=lambda found: found.event_time_us,
        default=None,
    )
    rented = None
    if capacity is not None:
        nodes = sum(tranche.nodes_ready for tranche in capacity.tranches)
        rented = nodes * capacity.gpus_per_node
    services = tuple(service for p in partials for service in p.services)
    return PoolState(
        fleet=partials[0].fleet,
        pool=partials[0].pool,
        tick_us=tick_us,
        gpu_model=capacity.gpu_model if capacity else "",
        gpus_per_node=capacity.gpus_per_node if capacity else 0,
        nodes_min=capacity.nodes_min if capacity else 0,
        nodes_max=capacity.nodes_max if capacity else 0,
        tranches=capacity.tranches if capacity else (),
        capacity_age_us=max(tick_us - capacity.event_time_us, 0) if capacity else tick_us,
        quote_usd_micros_per_gpu_hour=capacity.quote_usd_micros_per_gpu_hour if capacity else 0,
        energy_usd_micros_per_kwh=capacity.energy_usd_micros_per_kwh if capacity else 0,
        generations=capacity.generations if capacity else {},
        nodes_heard=sum(p.nodes_heard for p in partials),
        gpus_allocated=sum(p.gpus_allocated for p in partials)
        + _whole(sum(p.allocated_milli for p in partials))
        + sum(s.gpus for s in services),
        running_jobs=sum(p.running_jobs for p in partials),
        queues=_queues(partials),
        services=services[:MAX_SERVICES],
        arrived_gpus=sum(p.arrived_gpus for p in partials)
        + _whole(sum(p.arrived_milli for p in partials)),
        arrived_jobs=sum(p.arrived_jobs for p in partials),
        refused_jobs=sum(p.refused_jobs for p in partials),
        features={name: _feature(name, partials, tick_us, rented) for name in FEATURES},
        shards_reported=reported,
        shards_expected=expected,
        demand_age_us=_demand_age_us(partials, tick_us),
        classes=_classes(partials),
        quotes=tuple(one for p in partials for one in p.quotes)[:MAX_QUEUES],
        loyalty_ratio=capacity.loyalty_ratio if capacity else 0.0,
    )


def _demand_age_us(partials: Sequence[Partial], tick_us: int) -> int | None:
    """Return the age of what is known of demand, by the source that was silent for longest.

    Where jobs run, each shard of them must go on to speak, and so must each service; a shard
    without running jobs may well have nothing to say.
    """
    heard = [p.heard_us for p in partials if p.heard_us is not None]
    heard += [service.event_time_us for p in partials for service in p.services]
    return max(tick_us - min(heard), 0) if heard else None


def state_output(state: PoolState) -> Output:
    """Return a pool's state as something to write."""
    identity = (state.fleet, state.pool, str(state.tick_us))
    return Output(
        topic="state.pools",
        key=state.pool,
        message=state,
        event_id=derived_event_id("state.pools", identity),
        time_us=state.tick_us,
    )


def _feature(
    name: str, partials: Sequence[Partial], tick_us: int, rented_gpus: int | None
) -> Feature:
    sums = [p.features.get(name, _SILENT) for p in partials]
    present = sum(s.present for s in sums)
    expected = sum(s.expected for s in sums) if rented_gpus is None else rented_gpus
    newest_us = max(s.newest_us for s in sums)
    return Feature(
        value=sum(s.total for s in sums) / present if present else None,
        age_us=max(tick_us - newest_us, 0),
        quality=min(present / expected, 1.0) if expected else float(rented_gpus == 0),
    )


def _queues(partials: Sequence[Partial]) -> tuple[QueueState, ...]:
    """Return the queues by class; past `MAX_QUEUES` the last names share one queue.

    A class whose sum of times does not fit 64 bits has several entries, which readers add up.
    """
    kept = _kept({queue.job_class for p in partials for queue in p.queues})
    found: dict[str, list[QueueState]] = {}
    for queue in (queue for p in partials for queue in p.queues):
        name = queue.job_class if queue.job_class in kept else OTHER_CLASSES
        entries = found.setdefault(name, [])
        if entries and entries[-1].submitted_sum_us + queue.submitted_sum_us <= INT64_MAX:
            entries[-1] = _together(name, [entries[-1], queue])
        else:
            entries.append(_together(name, [queue]))
    told = [entry for name in sorted(found) for entry in found[name]]
    if len(told) > MAX_QUEUES:
        told[MAX_QUEUES - 1 :] = [_together(OTHER_CLASSES, told[MAX_QUEUES - 1 :])]
    return tuple(replace(q, gpus=q.gpus + _whole(q.milli), milli=0) if q.milli else q for q in told)


def _whole(milli: int) -> int:
    """Return the GPUs that jobs which share devices need at least."""
    return -(-milli // WHOLE_GPU)


def _classes(partials: Sequence[Partial]) -> tuple[ClassState, ...]:
    """Return the jobs by class; past `MAX_QUEUES` the last names are told as one."""
    kept = _kept({one.job_class for p in partials for one in p.classes})
    found: dict[str, list[ClassState]] = {}
    for one in (one for p in partials for one in p.classes):
        found.setdefault(one.job_class if one.job_class in kept else OTHER_CLASSES, []).append(one)
    return tuple(
        ClassState(
            job_class=name,
            running_jobs=sum(one.running_jobs for one in found[name]),
            running_gpus=sum(one.running_gpus for one in found[name])
            + _whole(sum(one.running_milli for one in found[name])),
            arrived_jobs=sum(one.arrived_jobs for one in found[name]),
            arrived_gpus=sum(one.arrived_gpus for one in found[name])
            + _whole(sum(one.arrived_milli for one in found[name])),
        )
        for name in sorted(found)
    )


def _kept(classes: Set[str]) -> frozenset[str]:
    """Return the classes that are told by name."""
    named = sorted(classes)
    return frozenset(named if len(named) <= MAX_QUEUES else named[: MAX_QUEUES - 1])


def _together(name: str, queues: Sequence[QueueState]) -> QueueState:
    return QueueState(
        job_class=name,
        jobs=sum(q.jobs for q in queues),
        gpus=sum(q.gpus for q in queues),
        oldest_submitted_us=min(q.oldest_submitted_us for q in queues),
        submitted_sum_us=min(sum(q.submitted_sum_us for q in queues), INT64_MAX),
        milli=sum(q.milli for q in queues),
    )
