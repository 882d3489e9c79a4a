"""What each job last did, and what that adds up to per pool.

Merging events into a row does not depend on their order: the event of the highest rank speaks for
the job, and what rarer kinds add is kept beside it. A job stays for an hour after its end, so that
a late event finds it closed instead of opening it again. Block rows hold a job and the arrival it
was counted for together, because a table writes one row at a time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from zlib import crc32

from msgspec import field

from gpuloop.schemas.component import Output, State
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import JobEvent, JobState, Partial
from gpuloop.schemas.messages.state import ClassState, JobPhase, QueueState
from gpuloop.schemas.units import INT64_MAX
from gpuloop.streams.horizon import REMEMBER_US
from gpuloop.streams.job_sums import Jobs, Waiting, add, asked

BLOCKS: Final = 64
MAX_CLASSES: Final = 64
OTHER_CLASSES: Final = "other"
"""What classes beyond `MAX_CLASSES` are counted as: people name them, and no row may outgrow it."""
ENTRY_JOBS: Final = 4096
"""Jobs that one entry of a queue tells of: the sum of their times fits 64 bits until 2041."""

DropReason = Literal["duplicate", "late"]

_PHASE: Final[dict[str, JobPhase]] = {
    "submitted": "queued",
    "started": "running",
    "progress": "running",
    "checkpointed": "running",
    "preempted": "queued",
    "failed": "failed",
    "finished": "finished",
    "cancelled": "cancelled",
}
_KEEPS_WORK: Final = frozenset(
    {"progress", "checkpointed", "preempted", "migrated", "failed", "finished"}
)


class Placement(NamedTuple):
    """Where and since when a job runs, and the version of the event that said so."""

    version: tuple[int, int]
    time_us: int
    nodes: tuple[str, ...]


class JobRow(State):
    """A job: the event that speaks for it, and what other kinds of event added."""

    latest: JobEvent
    submitted_us: int | None = None
    placement: Placement | None = None
    checkpointed_us: int | None = None
    done: tuple[int, int, int] = (0, 0, 0)
    counted: bool = False
    heard_us: int = 0
    """The newest event, whichever it is; 0 in rows of before this was kept."""


def _rank(event: JobEvent) -> tuple[bool, int, bool, int, int]:
    """Order a job's events: its end is final, a failed attempt gives way to a later attempt."""
    ended = event.kind in ("finished", "cancelled")
    return ended, event.attempt, event.kind == "failed", event.boot, event.seq


def phase_of(event: JobEvent) -> JobPhase:
    """Return the phase a job is in after an event; a migrated job runs where it has nodes."""
    if event.kind == "migrated":
        return "running" if event.nodes else "queued"
    return _PHASE[event.kind]


def merge(row: JobRow | None, event: JobEvent) -> JobRow:
    """Return the row with an event taken in; the order of events does not matter."""
    if row is None:
        row = JobRow(latest=event)
    version = (event.boot, event.seq)
    submitted = event.submitted_us or (event.event_time_us if event.kind == "submitted" else None)
    known = [at for at in (row.submitted_us, submitted) if at is not None]
    placement = row.placement
    if event.kind in ("started", "migrated") and (placement is None or version > placement.version):
        placement = Placement(version, event.event_time_us, event.nodes)
    checkpointed = row.checkpointed_us
    if event.kind == "checkpointed":
        checkpointed = max(checkpointed or 0, event.event_time_us)
    done = row.done
    if event.kind in _KEEPS_WORK:
        done = max(done, (*version, event.gpu_us_done))
    return JobRow(
        latest=max(row.latest, event, key=_rank),
        submitted_us=min(known, default=None),
        placement=placement,
        checkpointed_us=checkpointed,
        done=done,
        counted=row.counted or event.kind == "submitted",
        heard_us=max(row.heard_us, event.event_time_us),
    )


def state_of(row: JobRow) -> JobState:
    """Return what is believed about a job."""
    event, placement = row.latest, row.placement
    phase = phase_of(event)
    running = phase == "running"
    return JobState(
        fleet=event.fleet,
        job=event.job,
        pool=event.pool,
        tenant=event.tenant,
        job_class=event.job_class,
        phase=phase,
        gpus=event.gpus,
        nodes=(event.nodes or (placement.nodes if placement else ())) if running else (),
        event_time_us=event.event_time_us,
        submitted_us=_submitted_us(row),
        started_us=placement.time_us if placement and phase != "queued" else None,
        checkpointed_us=row.checkpointed_us,
        gpu_us_done=row.done[2],
        attempt=event.attempt,
        generation=event.generation,
        price_usd_micros_per_gpu_hour=event.price_usd_micros_per_gpu_hour,
        gpu_milli=event.gpu_milli,
    )


def _submitted_us(row: JobRow) -> int:
    return row.latest.event_time_us if row.submitted_us is None else row.submitted_us


# A shard: the jobs of one partition, and their sums.


class JobBlock(State):
    """One table row: some jobs, what arrived among them, the newest event time."""

    jobs: dict[str, JobRow] = {}
    arrived: dict[str, dict[str, Jobs]] = {}
    """Jobs that were submitted since the start, by pool and class."""
    newest_us: int = 0


class PoolJobs(State):
    """Sums over the jobs of one pool, kept up to date event by event."""

    gpus_allocated: int = 0
    waiting: dict[str, Waiting] = {}
    at_work: dict[str, Jobs] = {}
    arrived: dict[str, Jobs] = {}
    running: dict[str, int] = {}
    """When each running job was last heard of."""
    milli_allocated: int = 0


class JobShard(State):
    """The jobs of one partition; `pools` follows from `blocks`."""

    blocks: list[JobBlock] = field(default_factory=lambda: [JobBlock() for _ in range(BLOCKS)])
    pools: dict[str, PoolJobs] = {}
    newest_us: int = 0


@dataclass(frozen=True, slots=True)
class JobChange:
    """What an event did: the state to publish and the block to write, or why it was dropped."""

    output: Output | None
    block: int | None
    dropped: DropReason | None


def block_of(job: str) -> int:
    """Return the block in which a job is kept."""
    return crc32(job.encode()) % BLOCKS


def absorb(shard: JobShard, event: JobEvent, event_id: str) -> JobChange:
    """Take an event into the shard."""
    number = block_of(event.job)
    block = shard.blocks[number]
    old = block.jobs.get(event.job)
    if old is None and event.event_time_us < shard.newest_us - REMEMBER_US:
        return JobChange(None, None, "late")
    new = merge(old, event)
    if new == old:
        version = (event.boot, event.seq)
        known = (old.latest.boot, old.latest.seq)
        return JobChange(None, None, "duplicate" if version == known else "late")
    if new.counted and not (old and old.counted):
        pool = shard.pools.setdefault(event.pool, PoolJobs())
        arrived = block.arrived.setdefault(event.pool, {})
        is_known = event.job_class in arrived or len(arrived) < MAX_CLASSES
        for sums in (arrived, pool.arrived):
            add(sums, event.job_class if is_known else OTHER_CLASSES, 1, *asked(event))
    if old is not None:
        _count(shard, old, -1)
    _count(shard, new, 1)
    block.jobs[event.job] = new
    block.newest_us = max(block.newest_us, event.event_time_us)
    shard.newest_us = max(shard.newest_us, event.event_time_us)
    _forget(block, shard.newest_us)
    state = state_of(new)
    output = Output(
        topic="state.jobs",
        key=event.job,
        message=state,
        event_id=derived_event_id("state.jobs", [event_id]),
        time_us=state.event_time_us,
    )
    return JobChange(output, number, None)


def _count(shard: JobShard, row: JobRow, sign: Literal[1, -1]) -> None:
    event = row.latest
    phase = phase_of(event)
    pool = shard.pools.setdefault(event.pool, PoolJobs())
    gpus, milli = asked(event)
    if phase == "running":
        pool.gpus_allocated += sign * gpus
        pool.milli_allocated += sign * milli
        add(pool.at_work, event.job_class, sign, sign * gpus, sign * milli)
        if not pool.at_work[event.job_class].jobs:
            del pool.at_work[event.job_class]
        if sign > 0:
            pool.running[event.job] = max(row.heard_us, event.event_time_us)
        else:
            del pool.running[event.job]
    elif phase == "queued":
        queue = pool.waiting.setdefault(event.job_class, Waiting())
        queue.gpus += sign * gpus
        queue.milli += sign * milli
        if sign > 0:
            queue.submitted_us[event.job] = _submitted_us(row)
        else:
            del queue.submitted_us[event.job]
        if not queue.submitted_us:
            del pool.waiting[event.job_class]


def _forget(block: JobBlock, newest_us: int) -> None:
    ended = [
        job
        for job, row in block.jobs.items()
        if phase_of(row.latest) in ("finished", "failed", "cancelled")
        and row.latest.event_time_us < newest_us - REMEMBER_US
    ]
    for job in ended:
        del block.jobs[job]


def partials(shard: JobShard, fleet: str, name: str, tick_us: int) -> list[Partial]:
    """Return what the shard adds to each pool that it adds anything to."""
    return [
        Partial(
            fleet=fleet,
            pool=pool,
            shard=name,
            tick_us=tick_us,
            gpus_allocated=jobs.gpus_allocated,
            running_jobs=len(jobs.running),
            queues=tuple(
                entry
                for job_class, queue in _queues(jobs.waiting)
                for entry in _queue_entries(job_class, queue)
            ),
            arrived_gpus=sum(arrived.gpus for arrived in jobs.arrived.values()),
            arrived_jobs=sum(arrived.jobs for arrived in jobs.arrived.values()),
            classes=tuple(_classes(jobs)),
            heard_us=max(jobs.running.values(), default=None),
            allocated_milli=jobs.milli_allocated,
            arrived_milli=sum(arrived.milli for arrived in jobs.arrived.values()),
        )
        for pool, jobs in sorted(shard.pools.items())
        if jobs.running or jobs.waiting or jobs.arrived
    ]


def _classes(jobs: PoolJobs) -> Iterator[ClassState]:
    """Yield the jobs by class, the last names as one where there are too many."""
    names = sorted(jobs.at_work.keys() | jobs.arrived.keys())
    room = len(names) if len(names) <= MAX_CLASSES else MAX_CLASSES - 1
    for name, members in [*((one, [one]) for one in names[:room]), (OTHER_CLASSES, names[room:])]:
        at_work = [jobs.at_work[one] for one in members if one in jobs.at_work]
        arrived = [jobs.arrived[one] for one in members if one in jobs.arrived]
        if members:
            yield ClassState(
                job_class=name,
                running_jobs=sum(one.jobs for one in at_work),
                running_gpus=sum(one.gpus for one in at_work),
                arrived_jobs=sum(one.jobs for one in arrived),
                arrived_gpus=sum(one.gpus for one in arrived),
                running_milli=sum(one.milli for one in at_work),
                arrived_milli=sum(one.milli for one in arrived),
            )


def _queues(waiting: Mapping[str, Waiting]) -> Iterator[tuple[str, Waiting]]:
    """Yield the queues by class, the last names as one where there are too many."""
    names = sorted(waiting)
    room = len(names) if len(names) <= MAX_CLASSES else MAX_CLASSES - 1
    yield from ((name, waiting[name]) for name in names[:room])
    if rest := [waiting[name] for name in names[room:]]:
        jobs = {job: at_us for queue in rest for job, at_us in queue.submitted_us.items()}
        gpus, milli = (sum(getattr(queue, name) for queue in rest) for name in ("gpus", "milli"))
        yield OTHER_CLASSES, Waiting(gpus=gpus, submitted_us=jobs, milli=milli)


def _queue_entries(job_class: str, queue: Waiting) -> Iterator[QueueState]:
    """Yield the queue, in as many entries as its sum of times needs; readers add entries up."""
    times = sorted(queue.submitted_us.values())
    for first in range(0, len(times), ENTRY_JOBS):
        part = times[first : first + ENTRY_JOBS]
        yield QueueState(
            job_class=job_class,
            jobs=len(part),
            gpus=0 if first else queue.gpus,
            oldest_submitted_us=part[0],
            submitted_sum_us=min(sum(part), INT64_MAX),
            milli=0 if first else queue.milli,
        )


def shard_of(blocks: Mapping[int, JobBlock]) -> JobShard:
    """Return the shard that blocks by number add up to."""
    shard = JobShard()
    for number, block in sorted(blocks.items()):
        shard.blocks[number] = block
        shard.newest_us = max(shard.newest_us, block.newest_us)
        for name, classes in block.arrived.items():
            pool = shard.pools.setdefault(name, PoolJobs())
            for job_class, arrived in classes.items():
                add(pool.arrived, job_class, arrived.jobs, arrived.gpus, arrived.milli)
        for row in block.jobs.values():
            _count(shard, row, 1)
    return shard
