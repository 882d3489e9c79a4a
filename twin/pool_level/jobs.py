"""The life of a job: `twin.jobs` over arrays, for compiled code."""

from math import exp

import numpy as np

from gpuloop.schemas.units import HOUR_US, SECOND_US
from gpuloop.twin.config import MAX_ATTEMPTS, WAITING_GRACE_US, WORK_PER_WAIT
from gpuloop.twin.demand import accepted_jobs, told_quote
from gpuloop.twin.jobs import (
    BACKFILL_DEPTH,
    COLD_START_SECONDS,
    COLD_START_SIGMA,
    HEAD_PATIENCE_US,
    WARM_START_SECONDS,
)
from gpuloop.twin.pool_level.arrays import (
    ACCEPTED_SUM,
    ACCEPTS,
    ARRIVED,
    ARRIVED_GPUS,
    ATTEMPT,
    AVOID,
    BEGUN_US,
    CANCELLED,
    CHARGED,
    DISRUPTION,
    DONE_US,
    ENDED,
    FAILED,
    FIELD,
    FINISHED,
    FREE,
    GAVE_UP,
    GPUS,
    LATE,
    MARK_US,
    NEVER,
    NEXT_US,
    NODES,
    PREEMPTED,
    PRICE,
    QUEUED,
    QUEUED_US,
    READY,
    REFUSALS,
    REFUSED,
    REFUSED_SUM,
    REVENUE,
    RUNNING,
    SPEC,
    STARTED,
    STARTS,
    STATE,
    TURNED_AWAY,
    WAIT,
    WAIT_US,
    Ints,
    Rules,
    Specs,
    State,
)
from gpuloop.twin.pool_level.compiling import also_compiled, compiled
from gpuloop.twin.pool_level.placement import find, hold, occupy

also_compiled(told_quote, accepted_jobs)


@compiled
def is_late(specs: Specs, spec: int, now_us: int) -> bool:
    """Return whether a job that has not started by now has waited for too long."""
    waited_us: int = now_us - specs.at_us[spec]
    return waited_us > WAITING_GRACE_US and waited_us * WORK_PER_WAIT > specs.work_us[spec]


@compiled
def arrive(state: State, rules: Rules, specs: Specs, row: int) -> bool:
    """Quote a price to the next job of a row; return False when there is no slot for it."""
    spec = state.next_spec[row]
    state.next_spec[row] += 1
    state.counts[row, ARRIVED] += 1
    tenant, now = specs.tenant[spec], state.now_us[row]
    jobs, last_us = state.record_jobs[row, tenant], state.record_us[row, tenant]
    quote = told_quote(state.quote[row], state.loyalty[row], jobs, last_us, now)
    answers = state.answers[row, specs.kind[spec]]
    if specs.reservation[spec] < quote:
        state.counts[row, TURNED_AWAY] += 1
        answers[REFUSALS] += 1
        answers[REFUSED_SUM] += quote
        specs.fate[spec] = REFUSED
        return True
    slot = _slot(state, row)
    if slot < 0:
        return False
    state.counts[row, ARRIVED_GPUS] += specs.gpus[spec]
    answers[ACCEPTS] += 1
    answers[ACCEPTED_SUM] += quote
    state.record_jobs[row, tenant] = accepted_jobs(jobs, last_us, now)
    state.record_us[row, tenant] = now
    _admit(state, specs, row, slot, spec)
    state.job[row, slot, PRICE] = round(quote)
    _enqueue(state, specs, row, slot)
    schedule(state, rules, specs, row)
    return True


@compiled
def resume(state: State, rules: Rules, specs: Specs, row: int, spec: int) -> bool:
    """Place a job that runs when a row begins, or queue it; False when there is no slot."""
    slot = _slot(state, row)
    if slot < 0:
        return False
    _admit(state, specs, row, slot, spec)
    chosen = np.zeros(state.job.shape[2], dtype=np.int64)
    closed = np.zeros(state.phase.shape[1], dtype=np.int64)
    nodes = find(state, rules, specs, row, slot, closed, chosen)
    if nodes:
        _start(state, rules, specs, row, slot, chosen, nodes)
    else:
        _enqueue(state, specs, row, slot)
    return True


@compiled
def schedule(state: State, rules: Rules, specs: Specs, row: int) -> None:
    """Start whatever of a row's service and queue fits now."""
    grow_service(state, rules, row)
    if not state.queued[row]:
        return
    chosen = np.zeros(state.job.shape[2], dtype=np.int64)
    closed = np.zeros(state.phase.shape[1], dtype=np.int64)
    too_wide, holding, place = 1 << 30, False, 0
    for _ in range(BACKFILL_DEPTH):
        if place >= state.queued[row] or _room(state, row) == 0:
            return
        slot = state.queue[row, place]
        place += 1
        gpus = state.job[row, slot, GPUS]
        if gpus >= too_wide:
            continue
        nodes = find(state, rules, specs, row, slot, closed, chosen)
        if nodes:
            place -= 1
            _leave_queue(state, row, slot, place)
            _start(state, rules, specs, row, slot, chosen, nodes)
        elif not holding and state.now_us[row] - state.job[row, slot, QUEUED_US] >= (
            HEAD_PATIENCE_US
        ):
            hold(state, rules, row, gpus, closed)
            holding = True
        elif state.job[row, slot, AVOID] < 0:
            too_wide = min(too_wide, gpus)


@compiled
def grow_service(state: State, rules: Rules, row: int) -> None:
    """Give a service the GPUs it wants from those that are free, fullest nodes first."""
    missing = state.service_wanted[row] - state.service_gpus[row]
    if missing <= 0:
        return
    for free in range(1, rules.gpus_per_node[row] + 1):
        for node in range(state.phase.shape[1]):
            if state.phase[row, node] == READY and state.free[row, node] == free and missing > 0:
                count = min(free, missing)
                state.free[row, node] -= count
                state.serving[row, node] += count
                state.service_gpus[row] += count
                missing -= count


@compiled
def act(state: State, rules: Rules, specs: Specs, row: int) -> None:
    """Let the job whose time has come finish, lose patience or begin to be charged for."""
    slot = 0
    for one in range(state.high[row]):
        if state.job[row, one, NEXT_US] < state.job[row, slot, NEXT_US]:
            slot = one
    spec = state.job[row, slot, SPEC]
    if state.job[row, slot, STATE] == RUNNING:
        _vacate(state, specs, row, slot)
        specs.ended_us[spec] = state.now_us[row]
        specs.fate[spec] = FAILED if specs.fails[spec] else FINISHED
        state.counts[row, ENDED] += 1
        _forget(state, row, slot)
        schedule(state, rules, specs, row)
        return
    patience_us = state.job[row, slot, MARK_US]
    if state.job[row, slot, ATTEMPT] == 0 and state.now_us[row] >= patience_us:
        _leave_queue(state, row, slot, _place_of(state, row, slot))
        specs.ended_us[spec] = state.now_us[row]
        specs.fate[spec] = CANCELLED
        state.counts[row, GAVE_UP] += 1
        state.counts[row, LATE] += is_late(specs, spec, state.now_us[row])
        _forget(state, row, slot)
        return
    state.job[row, slot, CHARGED] = 1
    rate = state.job[row, slot, GPUS] * state.job[row, slot, PRICE]
    state.rates[row, WAIT] += rate / 2
    state.job[row, slot, NEXT_US] = patience_us if state.job[row, slot, ATTEMPT] == 0 else NEVER


@compiled
def interrupt(state: State, rules: Rules, specs: Specs, row: int, slot: int, node: int) -> None:
    """Throw a job back to its last checkpoint and into the queue, or give it up."""
    now, every = state.now_us[row], rules.checkpoint_us[row]
    job = state.job[row, slot]
    work = specs.work_us[job[SPEC]]
    done = min(job[DONE_US] + max(now - job[MARK_US], 0), work)
    saved = job[DONE_US]
    whole = (now - job[BEGUN_US]) // every
    if whole > 0:
        saved = min(saved + max(job[BEGUN_US] + whole * every - job[MARK_US], 0), work)
    lost = (done - saved) * job[GPUS]
    state.books[row, DISRUPTION] += lost * job[PRICE] / HOUR_US
    _vacate(state, specs, row, slot)
    job[DONE_US] = saved
    if job[ATTEMPT] >= MAX_ATTEMPTS:
        specs.ended_us[job[SPEC]] = now
        specs.fate[job[SPEC]] = FAILED
        state.counts[row, ENDED] += 1
        _forget(state, row, slot)
        return
    state.counts[row, PREEMPTED] += 1
    job[AVOID] = node
    _enqueue(state, specs, row, slot)


@compiled
def _slot(state: State, row: int) -> int:
    for slot in range(state.job.shape[1]):
        if state.job[row, slot, STATE] == FREE:
            state.high[row] = max(state.high[row], slot + 1)
            return slot
    return -1


@compiled
def _admit(state: State, specs: Specs, row: int, slot: int, spec: int) -> None:
    job = state.job[row, slot]
    job[:] = 0
    job[SPEC], job[GPUS], job[AVOID] = spec, specs.gpus[spec], -1
    job[PRICE] = round(state.quote[row])
    job[NEXT_US] = NEVER


@compiled
def _enqueue(state: State, specs: Specs, row: int, slot: int) -> None:
    """Queue a job by its submission; while it waits its mark is when its tenant gives up."""
    now, job = state.now_us[row], state.job[row, slot]
    job[STATE], job[QUEUED_US], job[CHARGED] = QUEUED, now, 0
    job[NEXT_US] = now + WAITING_GRACE_US
    if job[ATTEMPT] == 0:
        job[MARK_US] = now + specs.patience_us[job[SPEC]]
        job[NEXT_US] = min(job[NEXT_US], job[MARK_US])
    length = state.queued[row]
    place = length
    while place > 0:
        before = state.queue[row, place - 1]
        other = state.job[row, before, SPEC]
        mine = job[SPEC]
        if specs.at_us[other] < specs.at_us[mine] or (
            specs.at_us[other] == specs.at_us[mine] and other < mine
        ):
            break
        state.queue[row, place] = before
        place -= 1
    state.queue[row, place] = slot
    state.queued[row] = length + 1
    state.job_next_us[row] = min(state.job_next_us[row], job[NEXT_US])


@compiled
def _place_of(state: State, row: int, slot: int) -> int:
    for place in range(state.queued[row]):
        if state.queue[row, place] == slot:
            return place
    return -1


@compiled
def _leave_queue(state: State, row: int, slot: int, place: int) -> None:
    for after in range(place, state.queued[row] - 1):
        state.queue[row, after] = state.queue[row, after + 1]
    state.queued[row] -= 1
    job = state.job[row, slot]
    if job[CHARGED]:
        job[CHARGED] = 0
        state.rates[row, WAIT] -= job[GPUS] * job[PRICE] / 2


@compiled
def _start(
    state: State, rules: Rules, specs: Specs, row: int, slot: int, chosen: Ints, nodes: int
) -> None:
    now, job = state.now_us[row], state.job[row, slot]
    spec = job[SPEC]
    warm = occupy(state, row, slot, chosen, nodes, specs.tenant[spec])
    job[ATTEMPT] += 1
    if job[ATTEMPT] == 1:
        specs.started_us[spec] = now
        specs.fate[spec] = STARTED
        state.counts[row, STARTS] += 1
        if job[STATE] == QUEUED:
            state.counts[row, WAIT_US] += now - job[QUEUED_US]
            state.counts[row, LATE] += is_late(specs, spec, now)
    median = WARM_START_SECONDS if warm else COLD_START_SECONDS
    pause = round(median * exp(COLD_START_SIGMA * specs.start_normal[spec]) * SECOND_US)
    job[STATE], job[AVOID], job[BEGUN_US], job[MARK_US] = RUNNING, -1, now, now + pause
    job[NEXT_US] = job[MARK_US] + specs.work_us[spec] - job[DONE_US]
    state.held[row] += job[GPUS]
    state.rates[row, REVENUE] += job[GPUS] * job[PRICE]
    state.watts[row] += job[GPUS] * specs.watts[spec]
    state.job_next_us[row] = -1


@compiled
def _vacate(state: State, specs: Specs, row: int, slot: int) -> None:
    """Take a running job off its nodes."""
    job = state.job[row, slot]
    for index in range(job[NODES]):
        state.free[row, job[FIELD + 2 * index]] += job[FIELD + 2 * index + 1]
    job[NODES], job[STATE] = 0, QUEUED
    state.held[row] -= job[GPUS]
    state.rates[row, REVENUE] -= job[GPUS] * job[PRICE]
    state.watts[row] -= job[GPUS] * specs.watts[job[SPEC]]
    state.job_next_us[row] = -1


@compiled
def _forget(state: State, row: int, slot: int) -> None:
    state.job[row, slot, STATE], state.job[row, slot, NEXT_US] = FREE, NEVER
    while state.high[row] and state.job[row, state.high[row] - 1, STATE] == FREE:
        state.high[row] -= 1
    state.job_next_us[row] = -1


@compiled
def _room(state: State, row: int) -> int:
    room = 0
    for node in range(state.phase.shape[1]):
        if state.phase[row, node] == READY:
            room += state.free[row, node]
    return room
