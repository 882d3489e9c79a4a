"""Jobs and refusals: rows, phases, sums."""

import itertools

import msgspec
import pytest

from gpuloop.schemas.messages import JobEvent, JobState, TenantEvent
from gpuloop.schemas.messages.state import QuoteState
from gpuloop.streams import job_rows, jobs, tenants
from gpuloop.streams.jobs import JobChange, JobShard
from gpuloop.streams.tenants import TenantShard

MINUTE = 60_000_000
HOUR = 60 * MINUTE
T0 = 1_000 * HOUR


def event(kind: str, seq: int, *, job: str = "j1", **fields: object) -> JobEvent:
    basis = JobEvent(
        fleet="local",
        job=job,
        kind=kind,  # type: ignore[arg-type]
        pool="h100",
        tenant="t1",
        job_class="train",
        event_time_us=T0 + seq * MINUTE,
        boot=1,
        seq=seq,
        gpus=8,
        nodes=("n1",) if kind in ("started", "migrated", "progress") else (),
        submitted_us=T0,
        gpu_us_done=seq * 1000,
    )
    return msgspec.structs.replace(basis, **fields)


def absorb(shard: JobShard, *events: JobEvent) -> list[JobChange]:
    return [jobs.absorb(shard, e, f"id-{e.job}-{e.boot}-{e.seq}") for e in events]


def restored(shard: JobShard) -> JobShard:
    rows = {job_rows.row_key(0, n): job_rows.row_of(shard, n) for n in range(jobs.BLOCKS)}
    return job_rows.shard_from(rows, 0)


def state(shard: JobShard, job: str = "j1") -> JobState:
    return jobs.state_of(shard.blocks[jobs.block_of(job)].jobs[job])


LIFE = [
    event("submitted", 1, gpu_us_done=0),
    event("started", 2, attempt=1),
    event("checkpointed", 3, attempt=1),
    event("preempted", 4, attempt=1, gpu_us_done=3000),
    event("started", 5, attempt=2, nodes=("n2",), gpu_us_done=3000),
    event("migrated", 6, attempt=2, nodes=("n3",), generation=1),
]


def test_a_job_is_followed_through_its_life() -> None:
    shard, phases = JobShard(), []
    for step in [*LIFE, event("finished", 7, attempt=2, generation=1)]:
        absorb(shard, step)
        phases.append(state(shard).phase)
    expected = ["queued", "running", "running", "queued", "running", "running", "finished"]
    assert phases == expected
    last = state(shard)
    assert (last.started_us, last.checkpointed_us) == (T0 + 6 * MINUTE, T0 + 3 * MINUTE)
    assert (last.gpu_us_done, last.generation, last.nodes) == (7000, 1, ())


@pytest.mark.parametrize("order", list(itertools.permutations(range(6)))[::37])
def test_any_order_with_repeats_gives_the_same_rows(order: tuple[int, ...]) -> None:
    straight, shuffled = JobShard(), JobShard()
    absorb(straight, *LIFE)
    absorb(shuffled, *(LIFE[i] for i in order), *(LIFE[i] for i in reversed(order)))
    assert shuffled == straight


def test_an_ended_job_is_not_opened_again_and_a_failed_one_only_by_a_later_attempt() -> None:
    shard = JobShard()
    absorb(shard, event("finished", 5), event("started", 9))
    assert state(shard).phase == "finished"
    absorb(
        shard, event("failed", 5, job="j2", attempt=1), event("progress", 9, job="j2", attempt=1)
    )
    assert state(shard, "j2").phase == "failed"
    absorb(shard, event("started", 10, job="j2", attempt=2))
    assert state(shard, "j2").phase == "running"


def test_a_duplicate_changes_nothing_and_says_so() -> None:
    shard = JobShard()
    first, second = absorb(shard, LIFE[0], LIFE[0])
    assert first.output is not None
    assert (second.output, second.block, second.dropped) == (None, None, "duplicate")
    assert shard.pools["h100"].arrived["train"].jobs == 1


def test_partials_count_queues_by_class_running_jobs_and_arrivals() -> None:
    shard = JobShard()
    absorb(
        shard,
        event("submitted", 1, job="a", submitted_us=T0),
        event("submitted", 2, job="b", submitted_us=T0 + MINUTE),
        event("submitted", 3, job="c", job_class="eval", gpus=2),
        event("submitted", 4, job="d"),
        event("started", 5, job="d", gpus=8),
        event("submitted", 6, job="e", pool="a100"),
        event("finished", 7, job="e", pool="a100"),
    )
    a100, h100 = jobs.partials(shard, "local", "jobs/0", T0)
    assert (h100.running_jobs, h100.gpus_allocated) == (1, 8)
    assert (h100.arrived_jobs, h100.arrived_gpus) == (4, 26)
    assert [(q.job_class, q.jobs, q.gpus) for q in h100.queues] == [
        ("eval", 1, 2),
        ("train", 2, 16),
    ]
    assert h100.queues[1].oldest_submitted_us == T0
    assert h100.queues[1].submitted_sum_us == 2 * T0 + MINUTE
    assert (a100.arrived_jobs, a100.queues, a100.running_jobs) == (1, (), 0)


def test_partials_tell_what_runs_and_what_arrived_of_each_class() -> None:
    shard = JobShard()
    absorb(
        shard,
        event("submitted", 1, job="a", gpus=2, job_class="eval"),
        event("submitted", 2, job="b"),
        event("started", 3, job="b"),
        event("submitted", 4, job="c"),
        event("started", 5, job="c"),
        event("finished", 6, job="c"),
    )
    expected = [("eval", 0, 0, 1, 2), ("train", 1, 8, 2, 16)]
    for known in (shard, restored(shard)):
        (pool,) = jobs.partials(known, "local", "jobs/0", T0)
        assert [msgspec.structs.astuple(one)[:5] for one in pool.classes] == expected
        assert not any(one.running_milli or one.arrived_milli for one in pool.classes)


def test_parts_of_gpus_are_summed_apart_and_come_back_from_rows() -> None:
    shard, part = JobShard(), {"gpus": 1, "gpu_milli": 400}
    absorb(
        shard,
        event("submitted", 1, job="a", **part),
        event("started", 2, job="a", **part),
        event("submitted", 3, job="b", **part),
        event("submitted", 4, job="c"),
    )
    for known in (shard, restored(shard)):
        (pool,) = jobs.partials(known, "local", "jobs/0", T0)
        assert (pool.gpus_allocated, pool.allocated_milli) == (0, 400)
        assert (pool.arrived_gpus, pool.arrived_milli) == (8, 800)
        assert [(queue.gpus, queue.milli) for queue in pool.queues] == [(8, 400)]
        (one,) = pool.classes
        assert (one.running_gpus, one.running_milli) == (0, 400)
        assert (one.arrived_gpus, one.arrived_milli) == (8, 800)
    absorb(shard, event("finished", 5, job="a", **part))
    (pool,) = jobs.partials(shard, "local", "jobs/0", T0)
    assert (pool.gpus_allocated, pool.allocated_milli) == (0, 0)
    assert state(shard, "a").gpu_milli == 400


def test_ended_jobs_leave_after_an_hour_and_their_late_events_stay_out() -> None:
    shard = JobShard()
    absorb(shard, event("submitted", 1), event("finished", 2))
    neighbours = (f"k{n}" for n in itertools.count())
    neighbour = next(j for j in neighbours if jobs.block_of(j) == jobs.block_of("j1"))
    absorb(shard, event("submitted", 90, job=neighbour))
    assert set(shard.blocks[jobs.block_of("j1")].jobs) == {neighbour}
    (late,) = absorb(shard, event("started", 1))
    assert late.dropped == "late"
    assert shard.pools["h100"].arrived["train"].jobs == 2


def test_a_shard_survives_its_rows() -> None:
    shard = JobShard()
    absorb(shard, *LIFE, *(event("submitted", n, job=f"job-{n}") for n in range(10, 40)))
    rows = {job_rows.row_key(3, n): job_rows.row_of(shard, n) for n in range(jobs.BLOCKS)}
    assert job_rows.shard_from(rows | {job_rows.row_key(2, 0): b"not ours"}, 3) == shard


def test_rows_from_before_arrivals_had_classes_keep_jobs_and_sums() -> None:
    shard = JobShard()
    absorb(shard, event("submitted", 1), event("started", 2), event("submitted", 3, job="j2"))
    former = {}
    for number, block in enumerate(shard.blocks):
        row = msgspec.msgpack.decode(job_rows.row_of(shard, number))
        sums = {pool: sum(one.gpus for one in of.values()) for pool, of in block.arrived.items()}
        row["arrived"] = {pool: {"jobs": gpus // 8, "gpus": gpus} for pool, gpus in sums.items()}
        former[job_rows.row_key(0, number)] = msgspec.msgpack.encode(row)
    again = job_rows.shard_from(former, 0)
    [now], [then] = (jobs.partials(one, "local", "jobs/0", T0) for one in (again, shard))
    assert (now.arrived_jobs, now.arrived_gpus) == (then.arrived_jobs, then.arrived_gpus) == (2, 16)
    assert (now.running_jobs, now.queues) == (then.running_jobs, then.queues)
    (started,) = absorb(again, event("started", 4, job="j2"))
    assert started.output is not None


def test_however_many_classes_wait_their_queues_stay_few_and_count_every_job() -> None:
    shard = JobShard()
    for n in range(200):
        one = event("submitted", 1, job=f"j{n}", job_class=f"class-{n:03d}", submitted_us=T0 + n)
        jobs.absorb(shard, one, f"id-{n}")
    (partial,) = jobs.partials(shard, "local", "jobs/0", T0 + HOUR)
    assert len(partial.queues) == jobs.MAX_CLASSES
    last = partial.queues[-1]
    assert (last.job_class, last.jobs) == (jobs.OTHER_CLASSES, 200 - jobs.MAX_CLASSES + 1)
    assert sum(queue.jobs for queue in partial.queues) == 200
    assert sum(queue.gpus for queue in partial.queues) == 1600
    assert last.oldest_submitted_us == T0 + jobs.MAX_CLASSES - 1


def test_however_many_classes_people_name_rows_and_partials_stay_small() -> None:
    shard, many = JobShard(), 6000
    for n in range(many):
        named = {"job": f"j{n}", "job_class": f"experiment-{n:06}"}
        absorb(shard, event("submitted", 1, **named), event("finished", 2, **named))
    for arrived in (block.arrived["h100"] for block in shard.blocks):
        assert len(arrived) <= jobs.MAX_CLASSES + 1
    [partial] = jobs.partials(shard, "local", "jobs/0", T0)
    assert len(partial.classes) == jobs.MAX_CLASSES
    assert sum(one.arrived_jobs for one in partial.classes) == partial.arrived_jobs == many
    assert jobs.partials(restored(shard), "local", "jobs/0", T0) == [partial]


def test_answers_count_once_each_with_the_quotes_they_were_given_to() -> None:
    def tenant(seq: int, kind: str, *, at: int = T0) -> TenantEvent:
        return TenantEvent(
            fleet="local",
            tenant="t1",
            segment="s",
            kind=kind,  # type: ignore[arg-type]
            job=f"j{seq}",
            pool="h100",
            event_time_us=at,
            boot=1,
            seq=seq,
            gpus=8,
            quote_usd_micros_per_gpu_hour=seq,
        )

    shard = TenantShard()
    steps = [
        tenant(1, "refused"),
        tenant(2, "accepted"),
        tenant(1, "refused"),
        tenant(3, "refused"),
    ]
    dropped = [tenants.absorb_tenant(shard, step) for step in steps]
    assert dropped == [None, None, "duplicate", None]
    assert shard.refused == {"h100": 2}
    assert tenants.absorb_tenant(shard, tenant(9, "refused", at=T0 + 3 * HOUR)) is None
    assert len(shard.recent) == 1
    assert tenants.absorb_tenant(shard, tenant(4, "refused")) == "late"
    [told] = tenants.tenant_partials(shard, "local", "tenants/0", T0)
    assert told.refused_jobs == 3
    assert told.quotes == (
        QuoteState(
            segment="s",
            accepted_jobs=1,
            refused_jobs=3,
            accepted_quotes_sum_usd_micros=2,
            refused_quotes_sum_usd_micros=1 + 3 + 9,
        ),
    )


RUNNING = [event("submitted", 1), event("started", 2, attempt=1)]


def heard(shard: JobShard) -> dict[str, int | None]:
    return {one.pool: one.heard_us for one in jobs.partials(shard, "local", "jobs/0", T0)}


def rows(shard: JobShard) -> dict[bytes, bytes]:
    return {job_rows.row_key(0, n): job_rows.row_of(shard, n) for n in range(jobs.BLOCKS)}


def test_a_shard_tells_when_it_last_heard_of_running_jobs_of_each_pool() -> None:
    shard = JobShard()
    absorb(shard, *RUNNING, event("progress", 5, attempt=1))
    absorb(shard, event("started", 3, job="j2"), event("submitted", 9, job="j3", pool="a100"))
    assert heard(shard) == {"h100": T0 + 5 * MINUTE, "a100": None}
    absorb(shard, event("finished", 11, attempt=1))
    assert heard(shard)["h100"] == T0 + 3 * MINUTE
    absorb(shard, event("finished", 12, job="j2"))
    assert heard(shard)["h100"] is None


def test_what_comes_again_is_no_sign_of_life() -> None:
    shard = JobShard()
    absorb(shard, *RUNNING, event("progress", 5, attempt=1), *RUNNING)
    assert heard(shard) == {"h100": T0 + 5 * MINUTE}


def test_when_running_jobs_were_last_heard_of_survives_a_restart_and_a_move() -> None:
    shard = JobShard()
    absorb(shard, *RUNNING, event("started", 3, job="j2"), event("progress", 7, attempt=1))
    absorb(shard, event("migrated", 8, attempt=1, pool="a100", nodes=("n9",)))
    expected = {"h100": T0 + 3 * MINUTE, "a100": T0 + 8 * MINUTE}
    assert heard(shard) == heard(job_rows.shard_from(rows(shard), 0)) == expected


def test_rows_of_before_go_by_the_event_that_speaks_for_the_job() -> None:
    shard = JobShard()
    absorb(shard, *RUNNING)
    for block in shard.blocks:
        for row in block.jobs.values():
            row.heard_us = 0
    assert heard(job_rows.shard_from(rows(shard), 0)) == {"h100": T0 + 2 * MINUTE}
