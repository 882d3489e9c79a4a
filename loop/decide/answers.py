"""What comes back: a person's answers to proposals, and outcomes of commands.

An approval is bound to what was shown; what it was shown for is checked again before anything is
released. Outcomes give back budgets that were not used and count towards the breaker.
"""

from math import ceil
from typing import Final

import msgspec

from gpuloop.loop.decide.deliberate import Mind
from gpuloop.loop.decide.governance import is_frozen, mode_of, obstacle
from gpuloop.loop.decide.memory import PoolMemory
from gpuloop.loop.decide.observation import freshness
from gpuloop.loop.decide.recheck import objection
from gpuloop.loop.decide.release import MOOT, Waiting, close, release_waiting, unbook, veto
from gpuloop.loop.decide.state import DeciderState
from gpuloop.loop.decide.suspects import at_risk
from gpuloop.schemas.component import Context, Output
from gpuloop.schemas.messages import Approval, JobState, Outcome, PoolState
from gpuloop.schemas.messages.actions import DesiredState, ScaleTo
from gpuloop.schemas.units import MINUTE_US

BREAKER_FAILURES: Final = 5
"""Consecutive failures of a pool's commands that open its breaker."""

NO_CAPACITY_US: Final = 10 * MINUTE_US
"""How long a billing kind that had no capacity is not asked for more."""

HARMLESS: Final = frozenset(
    {
        "duplicate",
        "expired",
        "killed",
        "no_capacity",
        "stale_epoch",
        "stale_generation",
        "superseded",
    }
)
"""Reasons that say the guards work, the market is empty or the fleet has moved on meanwhile, not
that our commands are wrong."""

UNANSWERED: Final = "nobody answered in time"
NOT_DONE: Final = frozenset({"rejected", "failed", "expired"})


def on_approval(mind: Mind, state: DeciderState, approval: Approval, ctx: Context) -> list[Output]:
    """Release, veto or retire the proposal that an approval answers.

    One that answers nothing that waits, or something other than what was shown, does nothing.
    """
    desk = state.desk
    one = desk.waiting.get(approval.command_id)
    if one is None or one.command.digest != approval.digest:
        return []
    if ctx.wall_us >= one.answer_by_wall_us:
        return [close(desk, one, "lapsed", ctx, UNANSWERED)]
    if not approval.approve:
        return [veto(desk, one, approval.by, approval.reason, ctx)]
    changed = _changed(one, state, ctx) or objection(mind, state, one.command, ctx)
    if changed is not None:
        return [close(desk, one, "stale", ctx, changed)]
    return release_waiting(desk, state.pools[one.command.pool], one, approval.by, ctx)


def expire(state: DeciderState, ctx: Context) -> list[Output]:
    """Retire proposals whose time is up or whose target has moved on."""
    outputs = []
    for one in list(state.desk.waiting.values()):
        if ctx.wall_us >= one.answer_by_wall_us:
            outputs.append(close(state.desk, one, "lapsed", ctx, UNANSWERED))
        elif (changed := _changed(one, state, ctx)) is not None:
            outputs.append(close(state.desk, one, "stale", ctx, changed))
    return outputs


def _changed(one: Waiting, state: DeciderState, ctx: Context) -> str | None:
    """Return what is no longer as it was when a command was proposed, or None."""
    governance, command = state.governance, one.command
    memory = state.pools.get(command.pool)
    if memory is None:
        return f"{command.pool} is not known any more"
    if (why := obstacle(governance, ctx.wall_us)) is not None:
        return why
    if command.epoch != governance.epoch:
        return f"it was proposed under epoch {command.epoch}, now is {governance.epoch}"
    if memory.breaker_open:
        return "the breaker is open until a person resets it"
    mode = mode_of(governance, command.pool, command.actuator)
    if mode not in ("advise", "auto"):
        return f"{command.actuator} is in mode {mode} now"
    if is_frozen(governance, (command.pool, command.target), ctx.now_us):
        return "frozen by a person"
    if command.actuator == "migration":
        job = state.jobs.get(command.target)
        generation = None if job is None else job.generation
        if job is not None and (why := _stays(state, memory, job)) is not None:
            return why
    else:
        generation = memory.latest.generations.get(command.actuator, 0)
        if any(flight.actuator == command.actuator for flight in memory.flights.values()):
            return "another command is under way"
    if generation is None:
        return f"{command.target} runs no more"
    if generation != command.generation:
        return f"it was made for generation {command.generation}, now is {generation}"
    if one.change.stopped and not _may_shrink(command.to, memory.latest, ctx.now_us):
        return "work runs on nodes it would take, or what is known is not fresh"
    return None


def _stays(state: DeciderState, memory: PoolMemory, job: JobState) -> str | None:
    """Return why a job is not to be moved any more, or None: its reason must still hold."""
    if not at_risk(state.suspects, job):
        return f"no node that {job.job} runs on is under suspicion any more"
    moving = any(
        flight.actuator == "migration" and flight.target == job.job
        for flight in memory.flights.values()
    )
    tried = moving or job.job in state.desk.spared
    return f"a move of {job.job} was tried a moment ago" if tried else None


def _may_shrink(to: DesiredState, pool: PoolState, now_us: int) -> bool:
    """Return whether what is known now still lets nodes go: a yes is no fresh observation."""
    if not isinstance(to, ScaleTo) or not all(freshness(pool, now_us)):
        return False
    needed = ceil(pool.gpus_allocated / max(1, pool.gpus_per_node))
    return to.on_demand_nodes + to.spot_nodes >= needed


def on_outcome(state: DeciderState, outcome: Outcome) -> None:
    """Settle the account of a command that has run its course."""
    memory = state.pools.get(outcome.pool)
    if memory is None or outcome.reason == "duplicate":
        return
    if isinstance(outcome.observed, ScaleTo) and outcome.generation >= memory.desired_generation:
        memory.desired, memory.desired_generation = outcome.observed, outcome.generation
    flight = memory.flights.get(outcome.command_id)
    if flight is None:
        return
    if outcome.status == "applied":
        memory.failures = 0
        if outcome.actuator == "migration":
            del memory.flights[outcome.command_id]
        else:
            landed = msgspec.structs.replace(flight, generation=outcome.generation)
            memory.flights[outcome.command_id] = landed
    elif outcome.status in NOT_DONE:
        del memory.flights[outcome.command_id]
        memory.changes = [
            change for change in memory.changes if change.command_id != outcome.command_id
        ]
        unbook(state.desk, memory, outcome)
        if outcome.reason == "no_capacity" and flight.grows:
            memory.closed_until_us[flight.grows[-1]] = outcome.event_time_us + NO_CAPACITY_US
        gone = outcome.actuator == "migration" and outcome.reason in MOOT
        if outcome.reason not in HARMLESS and not gone:
            memory.failures += 1
            memory.breaker_open |= memory.failures >= BREAKER_FAILURES
