"""Partials merged into pool states, and the book that knows when."""

from itertools import permutations

import msgspec

from gpuloop.schemas.component import Output
from gpuloop.schemas.messages import (
    JobEvent,
    Partial,
    PoolState,
    ResourceSample,
    ServiceSample,
)
from gpuloop.schemas.messages.internal import Capacity, FeatureSum
from gpuloop.schemas.messages.state import ClassState, QueueState, ServiceState
from gpuloop.schemas.messages.telemetry import Tranche
from gpuloop.schemas.units import INT64_MAX
from gpuloop.streams import jobs, pools
from gpuloop.streams.jobs import JobShard
from gpuloop.streams.pools import PoolBook

MINUTE = 60_000_000
T = 1_000_000 * MINUTE
TICKING = frozenset({"gpu/0", "gpu/1"})


def partial(shard: str, tick: int = T, *, pool: str = "h100", **fields: object) -> Partial:
    basis = Partial(fleet="local", pool=pool, shard=shard, tick_us=tick)
    return msgspec.structs.replace(basis, **fields)


def load(total: float, present: int, expected: int, newest: int = T) -> dict[str, FeatureSum]:
    found = FeatureSum(total=total, present=present, expected=expected, newest_us=newest)
    return {"utilisation": found}


def capacity(nodes: int, at: int = T) -> Capacity:
    return Capacity(
        event_time_us=at,
        gpu_model="H100",
        gpus_per_node=8,
        nodes_min=0,
        nodes_max=9,
        tranches=(Tranche(billing="spot", nodes_ready=nodes),),
        quote_usd_micros_per_gpu_hour=5,
        energy_usd_micros_per_kwh=6,
        generations={"scaling": 3},
    )


def merged(*partials: Partial, tick: int = T) -> PoolState:
    return pools.merge(partials, tick, reported=2, expected=2)


def test_features_are_means_over_gpus_with_age_and_quality() -> None:
    state = merged(
        partial("gpu/0", nodes_heard=1, features=load(6.0, 8, 8, T - MINUTE)),
        partial("gpu/1", nodes_heard=1, features=load(2.0, 8, 8, T - 2 * MINUTE)),
        partial("resources/0", capacity=capacity(4)),
    )
    feature = state.features["utilisation"]
    assert (feature.value, feature.age_us, feature.quality) == (0.5, MINUTE, 0.5)
    assert state.features["power_watts"].value is None
    assert (state.nodes_heard, state.gpu_model, state.generations) == (2, "H100", {"scaling": 3})


def test_a_pool_without_fresh_nodes_shows_age_and_no_quality_instead_of_zeros() -> None:
    feature = merged(partial("gpu/0", features=load(0.0, 0, 16, T - 9 * MINUTE))).features
    assert feature["utilisation"].value is None
    assert (feature["utilisation"].age_us, feature["utilisation"].quality) == (9 * MINUTE, 0.0)


def test_a_pool_scaled_to_zero_misses_nothing() -> None:
    state = merged(partial("resources/0", capacity=capacity(0)))
    assert state.features["utilisation"].quality == 1.0


def test_a_pool_never_heard_of_by_capacity_is_as_old_as_time() -> None:
    state = merged(partial("gpu/0"))
    assert (state.capacity_age_us, state.tranches, state.gpu_model) == (T, (), "")


def test_queues_past_the_limit_share_one() -> None:
    many = tuple(
        QueueState(job_class=f"c{n:03}", jobs=1, gpus=2, oldest_submitted_us=n, submitted_sum_us=n)
        for n in range(100)
    )
    queues = merged(partial("jobs/0", queues=many)).queues
    assert len(queues) == pools.MAX_QUEUES
    assert sum(queue.jobs for queue in queues) == 100
    assert queues[-1].job_class == "other"
    assert queues[-1].oldest_submitted_us == 63


def test_classes_add_up_over_shards_and_past_the_limit_share_one() -> None:
    def jobs_of(name: str) -> ClassState:
        return ClassState(
            job_class=name, running_jobs=1, running_gpus=8, arrived_jobs=2, arrived_gpus=16
        )

    both = merged(
        partial("jobs/0", classes=(jobs_of("eval"), jobs_of("train"))),
        partial("jobs/1", classes=(jobs_of("train"),)),
    )
    assert [(c.job_class, c.running_gpus, c.arrived_jobs) for c in both.classes] == [
        ("eval", 8, 2),
        ("train", 16, 4),
    ]
    many = merged(partial("jobs/0", classes=tuple(jobs_of(f"c{n:03}") for n in range(100))))
    assert len(many.classes) == pools.MAX_QUEUES
    assert sum(one.running_jobs for one in many.classes) == 100


def test_parts_of_gpus_become_gpus_only_when_all_shards_are_together() -> None:
    def half(shard: str) -> Partial:
        queue = QueueState(
            job_class="a", jobs=1, gpus=2, oldest_submitted_us=T, submitted_sum_us=T, milli=500
        )
        one = ClassState(
            job_class="a", running_jobs=1, running_gpus=0, arrived_jobs=1, arrived_gpus=0,
            running_milli=500, arrived_milli=500,
        )  # fmt: skip
        return partial(
            shard, gpus_allocated=3, allocated_milli=500, arrived_gpus=4, arrived_milli=250,
            queues=(queue,), classes=(one,),
        )  # fmt: skip

    state = merged(half("jobs/0"), half("jobs/1"))
    assert (state.gpus_allocated, state.arrived_gpus) == (7, 9)
    assert [(queue.gpus, queue.milli) for queue in state.queues] == [(5, 0)]
    assert [(one.running_gpus, one.arrived_gpus) for one in state.classes] == [(1, 1)]


def test_a_long_queue_can_still_be_read_and_its_waiting_is_exact() -> None:
    now, shards = 1_760_000_000_000_000, [JobShard(), JobShard()]
    for number in range(9_000):
        submitted = JobEvent(
            fleet="local",
            job=f"j{number}",
            kind="submitted",
            pool="h100",
            tenant="t1",
            job_class="train",
            event_time_us=now - number,
            boot=1,
            seq=number,
            gpus=8,
        )
        jobs.absorb(shards[number % 2], submitted, f"id-{number}")
    told = [p for n, shard in enumerate(shards) for p in jobs.partials(shard, "f", f"jobs/{n}", T)]
    read = [msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=Partial) for one in told]
    state = msgspec.json.decode(msgspec.json.encode(merged(*read)), type=PoolState)
    assert sum(queue.jobs for queue in state.queues) == 9_000
    assert sum(queue.gpus for queue in state.queues) == 72_000
    waited = sum(queue.jobs * now - queue.submitted_sum_us for queue in state.queues)
    assert waited == sum(range(9_000))


def test_times_that_fit_no_entry_do_not_make_a_state_unreadable() -> None:
    queue = QueueState(
        job_class="c",
        jobs=1,
        gpus=1,
        oldest_submitted_us=INT64_MAX,
        submitted_sum_us=INT64_MAX,
    )
    state = merged(partial("jobs/0", queues=(queue,) * 100))
    read = msgspec.json.decode(msgspec.json.encode(state), type=PoolState)
    assert sum(entry.jobs for entry in read.queues) == 100


def receive(book: PoolBook, *partials: Partial) -> list[tuple[int, int, float | None]]:
    """Feed partials; return (tick, shards reported, mean load) of every state told."""
    told: list[Output] = []
    for one in partials:
        pools.receive(book, one, TICKING)
        while (tick := pools.next_tick(book, TICKING)) is not None:
            told += pools.tell(book, "local", tick, TICKING)
    states = [output.message for output in told]
    return [
        (s.tick_us, s.shards_reported, s.features["utilisation"].value)
        for s in states
        if isinstance(s, PoolState)
    ]


def report(shard: str, tick: int, total: float) -> list[Partial]:
    return [partial(shard, tick, features=load(total, 10, 10)), pools.done("local", shard, tick)]


def test_a_tick_is_told_when_all_shards_have_reported_it() -> None:
    book = PoolBook()
    assert receive(book, *report("gpu/0", T, 4.0)) == []
    assert receive(book, *report("gpu/1", T, 6.0)) == [(T, 2, 0.5)]


def test_a_shard_that_runs_ahead_does_not_enter_an_earlier_tick() -> None:
    book = PoolBook()
    fast = [*report("gpu/0", T, 4.0), *report("gpu/0", T + MINUTE, 10.0)]
    assert receive(book, *fast) == []
    assert receive(book, *report("gpu/1", T, 6.0)) == [(T, 2, 0.5)]
    assert receive(book, *report("gpu/1", T + MINUTE, 10.0)) == [(T + MINUTE, 2, 1.0)]


def test_a_silent_shard_holds_a_tick_up_for_two_ticks_only_and_shows() -> None:
    book = PoolBook()
    receive(book, *report("gpu/0", T, 4.0), *report("gpu/1", T, 6.0))
    ticks = [T + n * MINUTE for n in (1, 2, 3)]
    assert receive(book, *report("gpu/0", ticks[0], 5.0)) == []
    assert receive(book, *report("gpu/0", ticks[1], 5.0)) == []
    assert receive(book, *report("gpu/0", ticks[2], 5.0)) == [(ticks[0], 1, 0.55)]


def test_partials_that_come_again_after_a_restart_replace_and_never_add() -> None:
    book = PoolBook()
    first = [*report("gpu/0", T, 4.0), *report("gpu/1", T, 6.0)]
    receive(book, *first)
    before = msgspec.msgpack.encode(book)
    assert receive(book, *first, *reversed(first)) == []
    assert msgspec.msgpack.encode(book) == before


def test_a_pool_that_a_shard_no_longer_mentions_is_dropped_at_its_next_tick() -> None:
    book = PoolBook()
    moved = partial("gpu/0", T, pool="a100", nodes_heard=1)
    receive(book, moved, *report("gpu/0", T, 4.0), *report("gpu/1", T, 6.0))
    assert set(book.standing) == {"a100", "h100"}
    receive(book, *report("gpu/0", T + MINUTE, 4.0), *report("gpu/1", T + MINUTE, 6.0))
    assert set(book.standing) == {"h100"}


def test_whatever_order_shards_report_in_their_sums_are_the_same_to_the_last_bit() -> None:
    totals = {"gpu/0": 1e16, "gpu/1": 1.0, "gpu/2": -1e16, "gpu/3": 1.0}  # No sum is associative.
    ticking, told = frozenset(totals), set()
    for order in permutations(totals):
        book = PoolBook()
        for shard in order:
            for one in report(shard, T, totals[shard]):
                pools.receive(book, one, ticking)
        assert pools.next_tick(book, ticking) == T
        (state,) = pools.tell(book, "local", T, ticking)
        assert state.message is not None
        told.add(msgspec.msgpack.encode(state.message))
    assert len(told) == 1


def test_an_older_partial_never_replaces_a_newer_one() -> None:
    book = PoolBook()
    receive(book, partial("resources/0", T, capacity=capacity(5)))
    receive(book, partial("resources/0", T - MINUTE, capacity=capacity(1)))
    standing = book.standing["h100"]["resources/0"].capacity
    assert standing is not None
    assert standing.tranches[0].nodes_ready == 5


def test_capacity_and_services_keep_their_newest_sample() -> None:
    room = pools.CapacityShard()

    def resource(seq: int, kind: str = "capacity") -> ResourceSample:
        return ResourceSample(
            fleet="local",
            resource="h100",
            kind=kind,  # type: ignore[arg-type]
            pool="h100",
            event_time_us=T + seq,
            boot=1,
            seq=seq,
            load=0.5,
            capacity=1.0,
        )

    steps = [resource(2), resource(1), resource(2), resource(3, "storage")]
    dropped = [pools.absorb_resource(room, step) for step in steps]
    assert dropped == [None, "late", "duplicate", None]
    (told,) = pools.capacity_partials(room, "local", "resources/0", T)
    assert told.capacity is not None
    assert told.capacity.event_time_us == T + 2


def test_a_service_that_leaves_a_pool_is_told_as_gone_and_a_silent_one_forgotten() -> None:
    shard = pools.ServiceShard()

    def service(name: str, seq: int, pool: str, at: int = T) -> ServiceSample:
        return ServiceSample(
            fleet="local",
            service=name,
            pool=pool,
            event_time_us=at,
            window_us=MINUTE,
            boot=1,
            seq=seq,
            gpus=4,
            requests_per_second=1.0,
            queue_depth=0.0,
            utilisation=0.5,
            first_token_p50_us=1,
            first_token_p95_us=2,
            error_ratio=0.0,
            violated=False,
            revenue_usd_micros=0,
        )

    for sample in (service("chat", 1, "l4"), service("chat", 2, "a100"), service("code", 1, "l4")):
        assert pools.absorb_service(shard, sample) is None
    found = pools.service_partials(shard, {"l4", "a100", "h100"}, "local", "services/0", T)
    assert [(p.pool, [s.service for s in p.services]) for p in found] == [
        ("a100", ["chat"]),
        ("h100", []),
        ("l4", ["code"]),
    ]
    pools.absorb_service(shard, service("code", 2, "l4", at=T + 61 * MINUTE))
    assert set(shard.services) == {"code"}


def test_demand_is_as_old_as_the_running_jobs_that_were_silent_for_longest() -> None:
    state = merged(
        partial("jobs/0", running_jobs=1, heard_us=T - MINUTE),
        partial("jobs/1", running_jobs=2, heard_us=T - 9 * MINUTE),
    )
    assert state.demand_age_us == 9 * MINUTE


def test_a_shard_without_running_jobs_may_be_quiet() -> None:
    quiet = partial("jobs/1", arrived_jobs=3)
    assert merged(quiet).demand_age_us is None
    assert merged(partial("jobs/0", running_jobs=1, heard_us=T), quiet).demand_age_us == 0


def test_a_shard_that_does_not_say_when_it_heard_of_jobs_has_no_age() -> None:
    assert merged(partial("jobs/0", running_jobs=1)).demand_age_us is None


def test_a_service_that_falls_silent_makes_demand_old() -> None:
    state = ServiceState(
        service="chat",
        gpus=8,
        requests_per_second=1.0,
        utilisation=0.5,
        first_token_p95_us=1,
        violated=False,
        event_time_us=T - 7 * MINUTE,
    )
    running = partial("jobs/0", running_jobs=1, heard_us=T)
    assert merged(running, partial("services/0", services=(state,))).demand_age_us == 7 * MINUTE
