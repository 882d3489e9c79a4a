"""What people allow, and who owns the fleet: modes, stages, freezes, objectives, kill, claims.

Controls arrive in the order of their topic; the last word per scope holds. Nothing here decides
anything about capacity or prices.
"""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from gpuloop.schemas.component import Context, State
from gpuloop.schemas.messages.actions import Actuator, Mode
from gpuloop.schemas.messages.control import (
    EVERY,
    Assignment,
    BreakerReset,
    Claim,
    ControlBody,
    Freeze,
    Kill,
    KillLease,
    Objectives,
    PolicyStage,
    SetMode,
    ended_by,
    epoch_after,
    lease_end,
    scope,
)

DEFAULT_MODES: dict[Actuator, Mode] = {
    "scaling": "shadow",
    "pricing": "off",
    "migration": "shadow",
    "remediation": "off",
    "sharing": "off",
}
DECIDED: tuple[Actuator, ...] = ("scaling", "pricing", "migration")
MAX_SCOPES = 4096
MAX_NAME = 200
"""What a message allows; the end of a run's name is what no other run has."""

T = TypeVar("T")


class Governance(State):
    """The controls in force, and the state of this decider's claim."""

    modes: dict[str, SetMode] = {}
    freezes: dict[str, Freeze] = {}
    objectives: dict[str, Objectives] = {}
    stages: dict[str, PolicyStage] = {}
    assignments: dict[str, Assignment] = {}
    killed: bool = False
    lease_expires_wall_us: int = 0
    highest_epoch: int = 0
    epoch: int = 0
    owns: bool = False
    silenced: bool = False
    """It owned the fleet until someone acted under a higher epoch than its own."""
    deposed: bool = False
    run: str = ""
    """The start of the process that made the claim."""
    ignored: int = 0
    """Controls that found no room."""
    leases_cut: int = 0
    """Leases that would have held for longer than any may."""


def follow(state: Governance, owner: str, body: ControlBody, ctx: Context) -> Claim | None:
    """Take in a control and return the claim that it calls for, if any."""
    match body:
        case SetMode():
            _put(state, state.modes, scope(body), body)
        case Freeze():
            _put(state, state.freezes, body.target, body)
        case Objectives():
            _put(state, state.objectives, body.pool, body)
        case PolicyStage():
            _restage(state, body)
        case Assignment():
            _put(state, state.assignments, scope(body), body)
        case Kill(engaged=engaged):
            cleared = state.killed and not engaged
            state.killed = engaged
            if cleared and state.owns:
                return claim(state, owner, ctx.run)
        case KillLease():
            state.lease_expires_wall_us = lease_end(state.lease_expires_wall_us, body, ctx.wall_us)
            state.leases_cut += body.expires_wall_us > state.lease_expires_wall_us
        case Claim():
            return _claimed(state, owner, body, ctx.run)
        case BreakerReset():
            pass
    return None


def claim(state: Governance, owner: str, run: str) -> Claim:
    """Return a claim one above the highest epoch known; it counts once it is read back."""
    state.epoch = state.highest_epoch + 1
    state.run = run
    state.owns = state.silenced = state.deposed = False
    return Claim(owner=claimant(owner, run), epoch=state.epoch)


def claimant(owner: str, run: str) -> str:
    """Return the name of one start of one decider: a claim is its own or somebody else's."""
    return f"{owner}@{run}"[-MAX_NAME:] if run else owner


def take_over(state: Governance, owner: str, run: str) -> Claim | None:
    """Return the claim of a process that goes on where another one stopped, or seemed to.

    What the other believes is in the state that this one was given; that it owns the fleet is not
    among the things that can be handed on.
    """
    if state.epoch == 0 or state.run == run:
        return None
    return claim(state, owner, run)


def acted(state: Governance, epoch: int) -> None:
    """Take in that an executor has followed a claim of this epoch.

    If it is above ours, someone else has acted, or the ledger remembers claims that `controls` has
    lost. We are silent until the next tick, by when the other's claim will have been read.
    """
    if state.epoch < epoch <= epoch_after(state.highest_epoch, epoch):
        state.highest_epoch = max(state.highest_epoch, epoch)
        state.owns, state.silenced = False, state.owns or state.silenced


def must_claim(state: Governance) -> bool:
    """Return whether a tick should claim: nothing is claimed yet, or it was not enough."""
    return not state.deposed and (state.epoch == 0 or state.highest_epoch > state.epoch)


def _claimed(state: Governance, owner: str, seen: Claim, run: str) -> Claim | None:
    """Follow the log of claims: its order decides, so all deciders agree on the owner.

    A claim that precedes ours in the log and is not lower was not known when we claimed: we claim
    again above it. One that follows ours and is higher takes the fleet from us for good.
    """
    if seen.epoch > epoch_after(state.highest_epoch, seen.epoch):
        return None
    first_of_epoch = seen.epoch > state.highest_epoch
    state.highest_epoch = max(state.highest_epoch, seen.epoch)
    if state.deposed or state.epoch == 0:
        return None
    ours = seen.owner == claimant(owner, state.run) and seen.epoch == state.epoch
    if ours and first_of_epoch:
        state.owns = True
        return None
    if state.owns or state.silenced:
        if seen.epoch > state.epoch:
            state.owns, state.deposed = False, True
        return None
    return claim(state, owner, run) if seen.epoch >= state.epoch else None


def obstacle(state: Governance, wall_us: int) -> str | None:
    """Return why nothing new may start, or None when it may."""
    if state.killed:
        return "the kill switch is on"
    if wall_us >= state.lease_expires_wall_us:
        return "nobody renewed the lease that lets things start: stopped, or without its keeper"
    if not state.owns:
        return "the fleet is not ours"
    return None


def mode_of(state: Governance, pool: str, actuator: Actuator) -> Mode:
    """Return the mode granted to an actuator on a pool."""
    for name in (pool, EVERY):
        granted = state.modes.get(f"mode/{name}/{actuator}")
        if granted is not None:
            return granted.mode
    return DEFAULT_MODES[actuator]


def modes_of(state: Governance, pool: str) -> dict[Actuator, Mode]:
    """Return the modes of the actuators that decisions move."""
    return {actuator: mode_of(state, pool, actuator) for actuator in DECIDED}


def is_frozen(state: Governance, targets: Iterable[str], now_us: int) -> bool:
    """Return whether any of these targets, or everything, is frozen now."""
    names = (EVERY, *targets)
    return any(name in state.freezes and state.freezes[name].until_us > now_us for name in names)


def objectives_of(state: Governance, pool: str) -> Objectives:
    """Return a pool's objectives; what it leaves open holds as for every pool, but the budget.

    The budget of `*` is the fleet's, not each pool's: see `fleet_budget`.
    """
    general, own = state.objectives.get(EVERY), state.objectives.get(pool)
    if general is None:
        return own or Objectives(pool=pool)
    base = msgspec.structs.replace(general, pool=pool, usd_micros_per_hour_max=None)
    if own is None:
        return base
    stated = {
        name: value
        for name in own.__struct_fields__
        if (value := getattr(own, name)) is not None and name != "pool"
    }
    return msgspec.structs.replace(base, **stated)


def fleet_budget(state: Governance) -> int | None:
    """Return what all pools together may cost, in USD micros per hour."""
    general = state.objectives.get(EVERY)
    return None if general is None else general.usd_micros_per_hour_max


def stage_of(state: Governance, pool: str) -> PolicyStage | None:
    """Return the policy that may act on a pool, with its share, if any."""
    for name in (pool, EVERY):
        stage = state.stages.get(f"policy/{name}")
        if stage is not None:
            acts = stage.stage in ("canary", "champion")
            return stage if acts and not is_retired(state, pool, stage.policy_id) else None
    return None


def is_retired(state: Governance, pool: str, policy_id: str) -> bool:
    """Return whether a version was retired on one pool while it has a part on all of them."""
    return f"policy/{pool}/retired/{policy_id}" in state.stages


def _restage(state: Governance, body: PolicyStage) -> None:
    """Give a version its part, or take from it those it has; the last word on a version holds.

    That it is retired on one pool is only kept in mind while it has a part on all of them.
    """
    for name in ended_by(body, state.stages):
        del state.stages[name]
    parts = {held.policy_id for held in state.stages.values() if held.pool == EVERY}
    if body.stage != "retired" or body.policy_id in parts:
        _put(state, state.stages, scope(body), body)


def assignment_of(state: Governance, pool: str, now_us: int) -> Assignment | None:
    """Return the arm of a running experiment that decides for the pool now, if any."""
    for name in sorted(state.assignments):
        one = state.assignments[name]
        if one.pool in (pool, EVERY) and one.from_us <= now_us < one.until_us:
            return one
    return None


def _put(state: Governance, scopes: dict[str, T], name: str, value: T) -> None:
    if name in scopes or len(scopes) < MAX_SCOPES:
        scopes[name] = value
    else:
        state.ignored += 1
