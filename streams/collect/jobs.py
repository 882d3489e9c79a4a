"""Batch jobs as gauges to batch jobs as events: what changed between two answers.

Prometheus says which jobs hold GPUs and which wait; what began, moved or ended follows from the
difference. A job that is missing once may only have been scraped late, so an end is told after
`GONE_AFTER` answers without it, and never for want of an answer. What ran before the first answer
is told as running and not as an arrival, so that a restart makes no demand. An attempt is numbered
by the second at which it was first seen: a collector that starts again knows of no earlier ones,
and what it says must not stand behind them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gpuloop.schemas.messages import JobEvent
from gpuloop.schemas.messages.telemetry import JobKind
from gpuloop.schemas.units import (
    INT64_MAX,
    MAX_GPUS_PER_NODE,
    MAX_NODES_PER_JOB,
    MINUTE_US,
    SECOND_US,
)
from gpuloop.streams.collect.answers import NO_POOL, Series

GONE_AFTER: Final = 3
PROGRESS_EVERY_US: Final = MINUTE_US
MAX_JOBS: Final = 50_000


@dataclass(slots=True)
class Gauge:
    """A job in one answer."""

    pool: str
    tenant: str
    job_class: str
    gpus: float = 0
    nodes: set[str] = field(default_factory=set)

    @property
    def whole_gpus(self) -> int:
        """Return the GPUs of the job as a message can hold them."""
        return min(max(round(self.gpus), 1), MAX_GPUS_PER_NODE * MAX_NODES_PER_JOB)


@dataclass(slots=True)
class _Job:
    gauge: Gauge
    running: bool
    since_us: int
    submitted_us: int
    told_us: int
    attempt: int
    done_us: int = 0
    missing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What the expressions answered at one time."""

    running: Mapping[str, Gauge]
    queued: Mapping[str, Gauge]
    failed: Collection[str]
    gpu_us_done: Mapping[str, int]


def gauges(series: Sequence[Series]) -> tuple[dict[str, Gauge], int]:
    """Return the jobs in an answer by id, and how many series name none."""
    found: dict[str, Gauge] = {}
    nameless = 0
    for one in series:
        job, gpus = one.name("job_id"), one.number
        if not job or gpus is None or gpus <= 0 or (job not in found and len(found) >= MAX_JOBS):
            nameless += not job or gpus is None or gpus < 0
            continue
        gauge = found.setdefault(
            job,
            Gauge(
                pool=one.name("pool", NO_POOL),
                tenant=one.name("tenant", "unknown"),
                job_class=one.name("job_class", "unknown"),
            ),
        )
        gauge.gpus += gpus
        if node := one.name("node"):
            gauge.nodes.add(node)
    return found, nameless


class Jobs:
    """What each job last was."""

    def __init__(self, fleet: str, boot: int) -> None:
        self._fleet: Final = fleet
        self._boot: Final = boot
        self._seq = 0
        self._jobs: dict[str, _Job] = {}
        self._begun = False

    def hear(self, answered: Answered, now_us: int) -> list[JobEvent]:
        """Return what happened since the last answer."""
        events = [*self._waiting(answered, now_us), *self._running(answered, now_us)]
        events += self._gone(answered, now_us)
        self._begun = True
        return events

    def _waiting(self, answered: Answered, now_us: int) -> Iterator[JobEvent]:
        for name in sorted(set(answered.queued) - set(answered.running)):
            job, gauge = self._jobs.get(name), answered.queued[name]
            if job is None:
                self._jobs[name] = _Job(gauge, False, now_us, now_us, now_us, _attempt(now_us))
                yield self._event(name, "submitted", now_us)
                continue
            job.missing, job.gauge = 0, gauge
            if job.running:
                self._worked(name, job, answered, now_us)
                job.running, job.attempt = False, _attempt(now_us)
                yield self._event(name, "preempted", now_us)

    def _running(self, answered: Answered, now_us: int) -> Iterator[JobEvent]:
        for name in sorted(answered.running):
            job, gauge = self._jobs.get(name), answered.running[name]
            if job is None:
                job = self._jobs[name] = _Job(gauge, True, now_us, now_us, now_us, _attempt(now_us))
                if self._begun:
                    yield self._event(name, "submitted", now_us)
                    yield self._event(name, "started", now_us)
                else:
                    yield self._event(name, "progress", now_us)
                continue
            moved = job.gauge.nodes != gauge.nodes or job.gauge.gpus != gauge.gpus
            self._worked(name, job, answered, now_us)
            job.missing, job.gauge = 0, gauge
            if not job.running:
                job.running, job.told_us = True, now_us
                yield self._event(name, "started", now_us)
            elif moved or now_us - job.told_us >= PROGRESS_EVERY_US:
                job.told_us = now_us
                yield self._event(name, "progress", now_us)

    def _gone(self, answered: Answered, now_us: int) -> Iterator[JobEvent]:
        present = set(answered.running) | set(answered.queued)
        for name in sorted(set(self._jobs) - present):
            job = self._jobs[name]
            job.missing += 1
            failed = name in answered.failed
            if job.missing < GONE_AFTER and not failed:
                continue
            kind: JobKind = "finished" if job.running else "cancelled"
            yield self._event(name, "failed" if failed else kind, now_us)
            del self._jobs[name]

    def _worked(self, name: str, job: _Job, answered: Answered, now_us: int) -> None:
        """Add what a job did since it was last seen, or believe what is measured."""
        if job.running:
            done_us = job.done_us + round(job.gauge.gpus * (now_us - job.since_us))
            job.done_us = min(done_us, INT64_MAX)
        job.done_us = answered.gpu_us_done.get(name, job.done_us)
        job.since_us = now_us

    def _event(self, name: str, kind: JobKind, now_us: int) -> JobEvent:
        job = self._jobs[name]
        self._seq += 1
        return JobEvent(
            fleet=self._fleet,
            job=name,
            kind=kind,
            pool=job.gauge.pool,
            tenant=job.gauge.tenant,
            job_class=job.gauge.job_class,
            event_time_us=now_us,
            boot=self._boot,
            seq=self._seq,
            gpus=job.gauge.whole_gpus,
            nodes=tuple(sorted(job.gauge.nodes))[:MAX_NODES_PER_JOB] if job.running else (),
            submitted_us=job.submitted_us,
            gpu_us_done=job.done_us,
            attempt=job.attempt,
        )


def _attempt(now_us: int) -> int:
    return now_us // SECOND_US
