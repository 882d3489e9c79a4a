"""Nodes under suspicion: what faults and causes say, once per cycle of trouble.

A node is suspected until it recovers or the suspicion lapses; while it is, further news about it
starts nothing new. Whether its jobs may be moved is for the envelope to say.
"""

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from gpuloop.actuators.triage import REPEATS, describe, triage
from gpuloop.schemas.component import State
from gpuloop.schemas.messages import Cause, Fault, JobState
from gpuloop.schemas.units import HOUR_US, MINUTE_US

SUSPICION_US: Final = 30 * MINUTE_US
REPEAT_WINDOW_US: Final = HOUR_US
CAUSE_SCORE: Final = 0.5
"""Share of the evidence that the first suspect must hold."""

MAX_SUSPECTS: Final = 1024
MAX_COUNTED: Final = 1024


class Suspicion(msgspec.Struct, frozen=True, kw_only=True):
    """Why a node should be relieved of its jobs, and from which event that is known."""

    node: str
    pool: str
    reason: str
    event_id: str
    until_us: int


class Suspects(State):
    """Suspected nodes, and applications' XIDs that may add up to a suspicion."""

    nodes: dict[str, Suspicion] = {}
    repeats: dict[str, list[int]] = {}


def on_fault(suspects: Suspects, fault: Fault, event_id: str, now_us: int) -> Suspicion | None:
    """Return the suspicion that a fault starts, if it starts one."""
    verdict = triage(fault)
    if verdict == "recovered":
        suspects.nodes.pop(fault.node, None)
        return None
    if verdict == "count":
        verdict = "evacuate" if _repeated(suspects, fault, now_us) else "ignore"
    if verdict == "ignore":
        return None
    found = Suspicion(
        node=fault.node,
        pool=fault.pool,
        reason=describe(fault),
        event_id=event_id,
        until_us=min(fault.event_time_us, now_us) + SUSPICION_US,
    )
    return _suspect(suspects, found, now_us)


def on_cause(
    suspects: Suspects, cause: Cause, jobs: Mapping[str, JobState], event_id: str, now_us: int
) -> Suspicion | None:
    """Return the suspicion that a cause starts: its first suspect must be a node with work."""
    if not cause.suspects or cause.suspects[0].score < CAUSE_SCORE:
        return None
    first = cause.suspects[0]
    pools = {job.pool for job in jobs.values() if first.subject in job.nodes}
    if not pools:
        return None
    reason = f"{first.subject} explains {cause.symptom_metric} of {cause.symptom}"
    reason = f"{reason} ({first.metric}, {first.score:.0%} of the evidence, {cause.tier})"
    found = Suspicion(
        node=first.subject,
        pool=min(pools),
        reason=reason,
        event_id=event_id,
        until_us=min(cause.event_time_us, now_us) + SUSPICION_US,
    )
    return _suspect(suspects, found, now_us)


def lapse(suspects: Suspects, now_us: int, asked_for: Collection[str] = ()) -> None:
    """Drop suspicions and counts that are over, but for nodes that a person is being asked about.

    A person lives in wall time and a suspicion in fleet time, which may be sixty times as fast: the
    reason of a question must not go before there was time to answer it.
    """
    suspects.nodes = {
        name: one
        for name, one in suspects.nodes.items()
        if one.until_us > now_us or name in asked_for
    }
    oldest = now_us - REPEAT_WINDOW_US
    suspects.repeats = {key: times for key, times in suspects.repeats.items() if times[-1] > oldest}


def at_risk(suspects: Suspects, job: JobState) -> bool:
    """Return whether a job runs on a suspected node."""
    return any(node in suspects.nodes for node in job.nodes)


def jobs_at_risk(suspects: Suspects, jobs: Mapping[str, JobState], pool: str) -> list[JobState]:
    """Return the running jobs of a pool on suspected nodes, the largest first."""
    if not suspects.nodes:
        return []
    found = [job for job in jobs.values() if job.pool == pool and at_risk(suspects, job)]
    return sorted(found, key=lambda job: (-job.gpus, job.job))


def _suspect(suspects: Suspects, found: Suspicion, now_us: int) -> Suspicion | None:
    """Keep a new suspicion and return it; news that arrives after it would have lapsed is none."""
    known = suspects.nodes.get(found.node)
    if found.until_us <= now_us or (known is not None and known.until_us > now_us):
        return None
    if known is None and len(suspects.nodes) >= MAX_SUSPECTS:
        return None
    suspects.nodes[found.node] = found
    return found


def _repeated(suspects: Suspects, fault: Fault, now_us: int) -> bool:
    key = f"{fault.node}/{fault.gpu_index}"
    oldest = now_us - REPEAT_WINDOW_US
    times = [at for at in suspects.repeats.get(key, []) if at > oldest]
    times = [*times, now_us][-REPEATS:]
    if key in suspects.repeats or len(suspects.repeats) < MAX_COUNTED:
        suspects.repeats[key] = times
    return len(times) >= REPEATS
