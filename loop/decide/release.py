"""From executed actions to commands: arbitration, modes, and what becomes a proposal.

Only `auto` sends. Shadow and advise pass the same arbiter against the same leases but take none,
start no real cooldown and spend no real budget.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from gpuloop.actuators.arbiter import Lease, Purpose, Wish, arbitrate
from gpuloop.actuators.commands import release
from gpuloop.loop.decide.memory import TELEMETRY_LAG_US, Change, Flight, PoolMemory
from gpuloop.loop.decide.vetoes import Veto, lasting, refuse, said_no
from gpuloop.schemas.catalogue import action_topic
from gpuloop.schemas.component import Context, Output, State
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import Command, Outcome, Proposal
from gpuloop.schemas.messages.actions import ScaleTo
from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.schemas.units import MINUTE_US

ANSWER_WALL_US: Final = 10 * MINUTE_US
"""How long a person has, in wall time."""

SHOWN_AGAIN_US: Final = 15 * MINUTE_US
"""Shadow shows the same wish for the same target only this often."""

MOVE_AGAIN_US: Final = 15 * MINUTE_US
"""A job that was moved is left alone for this long."""

NO_ROOM_US: Final = 5 * MINUTE_US
"""A job that found no room elsewhere is left alone for this long."""

MOOT: Final = frozenset({"superseded", "unknown_target"})
"""Reasons that say there is nothing left to move."""

Ending = Literal["approved", "vetoed", "lapsed", "stale"]

MAX_WAITING: Final = 256
MAX_SHOWN: Final = 4096


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A command that waits for a person."""

    command: Command
    change: Change
    answer_by_wall_us: int


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """The last wish that shadow mode showed for a target."""

    what: str
    at_us: int


class Desk(State):
    """What has left the decider or lies on its desk."""

    leases: dict[str, Lease] = {}
    waiting: dict[str, Waiting] = {}
    shown: dict[str, Shown] = {}
    vetoes: dict[str, Veto] = {}
    """By actuator, target and direction."""
    spared: dict[str, int] = {}
    """Until when each job is not to be moved again, by fleet time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A command that may be sent, shown or dropped."""

    command: Command
    change: Change
    purpose: Purpose
    resources: tuple[str, ...]

    @property
    def key(self) -> str:
        """Return the actuator and target."""
        return f"{self.command.actuator}/{self.command.target}"


@dataclass(slots=True)
class Settled:
    """What became of a tick's drafts: outputs in order, and by draft why it was not carried out."""

    outputs: list[Output] = field(default_factory=list)
    listed: set[str] = field(default_factory=set)
    """Ids of commands that were sent or shown."""
    sent: set[str] = field(default_factory=set)
    held: dict[str, tuple[bool, str]] = field(default_factory=dict)
    """Command id to (whether the arbiter did it, reason), for what was not sent."""


def draft(command: Command) -> Draft:
    """Return a command with what the arbiter and the budgets need to know of it."""
    started = stopped = 0
    purpose: Purpose = "revenue"
    resources: tuple[str, ...] = (f"price/{command.pool}",)
    if isinstance(command.to, ScaleTo) and isinstance(command.before, ScaleTo):
        steps = (
            command.to.on_demand_nodes - command.before.on_demand_nodes,
            command.to.spot_nodes - command.before.spot_nodes,
        )
        started = sum(step for step in steps if step > 0)
        stopped = -sum(step for step in steps if step < 0)
        purpose = "service" if started else "cost"
        resources = (f"room/{command.pool}",) if stopped else ()
    elif command.actuator == "migration":
        purpose = "mitigation"
        resources = (f"room/{command.pool}", f"job/{command.target}")
    change = Change(
        at_us=command.issued_at_us,
        command_id=command.command_id,
        actuator=command.actuator,
        started=started,
        stopped=stopped,
    )
    return Draft(command=command, change=change, purpose=purpose, resources=resources)


def settle(
    desk: Desk,
    pools: Mapping[str, PoolMemory],
    drafts: Sequence[Draft],
    ctx: Context,
    obstacle: str | None,
) -> Settled:
    """Send, propose or hold each draft; `obstacle` says why nothing may be sent, if so."""
    settled = Settled()
    real = [one for one in drafts if one.command.mode == "auto" and obstacle is None]
    granted, desk.leases = _grant(real, desk.leases, ctx.now_us, settled)
    shown, _ = _grant(
        [one for one in drafts if one.command.mode != "auto"], desk.leases, ctx.now_us, settled
    )
    for one in drafts:
        identity = one.command.command_id
        if identity in granted:
            send(desk, pools[one.command.pool], one.command, one.change)
            settled.sent.add(identity)
            settled.listed.add(identity)
            settled.outputs.append(command_output(one.command, ctx))
        elif identity in shown:
            settled.held[identity] = (False, f"{one.command.mode}: shown, not done")
            _propose(desk, pools[one.command.pool], one, ctx, settled, obstacle)
        elif identity not in settled.held:
            settled.held[identity] = (False, obstacle or one.command.mode)
    return settled


def send(desk: Desk, memory: PoolMemory, command: Command, change: Change) -> None:
    """Book a command that leaves: it is under way, and its change counts from now on."""
    memory.changes.append(msgspec.structs.replace(change, at_us=command.issued_at_us))
    memory.flights[command.command_id] = Flight(
        actuator=command.actuator,
        target=command.target,
        until_us=command.expires_at_us + TELEMETRY_LAG_US,
        grows=_growing(command),
        usd_micros_per_hour=command.usd_micros_per_hour,
    )
    if command.actuator == "migration":
        desk.spared[command.target] = command.issued_at_us + MOVE_AGAIN_US


def unbook(desk: Desk, memory: PoolMemory, outcome: Outcome) -> None:
    """Take back what was booked for a command that was not done: its move, and its leases.

    A job that is gone or away already needs no other move, so it is left alone as if moved. What is
    leased for the pool as a whole stays while others of the same actuator are under way.
    """
    actuator, pool = outcome.actuator, outcome.pool
    if actuator == "migration" and outcome.reason == "no_capacity":
        desk.spared[outcome.target] = outcome.event_time_us + NO_ROOM_US
    elif actuator == "migration" and outcome.reason not in MOOT:
        desk.spared.pop(outcome.target, None)
    names = [f"job/{outcome.target}"]
    if not any(flight.actuator == actuator for flight in memory.flights.values()):
        names += [f"room/{pool}", f"price/{pool}"]
    for name in names:
        lease = desk.leases.get(name)
        if lease is not None and lease.actuator == actuator:
            del desk.leases[name]


def _growing(command: Command) -> tuple[Billing, ...]:
    before, to = command.before, command.to
    if not (isinstance(before, ScaleTo) and isinstance(to, ScaleTo)):
        return ()
    steps: tuple[tuple[Billing, int], ...] = (
        ("on_demand", to.on_demand_nodes - before.on_demand_nodes),
        ("spot", to.spot_nodes - before.spot_nodes),
    )
    return tuple(billing for billing, step in steps if step > 0)


def command_output(command: Command, ctx: Context) -> Output:
    """Return the record that makes a command executable."""
    return Output(
        topic=action_topic(command.actuator),
        key=command.target,
        message=command,
        event_id=derived_event_id("actions.command", [command.command_id]),
        time_us=ctx.now_us,
    )


def proposal_output(proposal: Proposal, ctx: Context) -> Output:
    """Return the record that shows a proposal."""
    identity = [proposal.command.command_id, proposal.state]
    return Output(
        topic="proposals",
        key=proposal.command.target,
        message=proposal,
        event_id=derived_event_id("proposals", identity),
        time_us=ctx.now_us,
    )


def tidy(desk: Desk, now_us: int, wall_us: int) -> None:
    """Forget what no longer matters."""
    desk.vetoes = lasting(desk.vetoes, wall_us)
    desk.shown = {
        key: one for key, one in desk.shown.items() if one.at_us > now_us - SHOWN_AGAIN_US
    }
    desk.spared = {job: until for job, until in desk.spared.items() if until > now_us}


def _grant(
    drafts: Sequence[Draft], leases: dict[str, Lease], now_us: int, settled: Settled
) -> tuple[set[str], dict[str, Lease]]:
    wishes = {_name(one): one for one in drafts}
    granted, refused, held = arbitrate(
        (
            Wish(
                actuator=one.command.actuator,
                target=one.command.target,
                purpose=one.purpose,
                resources=one.resources,
                until_us=one.command.expires_at_us,
            )
            for one in drafts
        ),
        leases,
        now_us,
    )
    for refusal in refused:
        loser = wishes[refusal.wish.actuator, refusal.wish.target]
        reason = f"{refusal.resource} is held for {refusal.holder}"
        settled.held[loser.command.command_id] = (True, reason)
    return {wishes[one.actuator, one.target].command.command_id for one in granted}, held


def _name(one: Draft) -> tuple[str, str]:
    return one.command.actuator, one.command.target


def _propose(
    desk: Desk,
    memory: PoolMemory,
    one: Draft,
    ctx: Context,
    settled: Settled,
    obstacle: str | None,
) -> None:
    if one.command.mode == "shadow":
        if not _show(desk, one, ctx.now_us):
            return
        memory.virtual.append(one.change)
        proposal = Proposal(
            fleet=one.command.fleet, command=one.command, state="shadow", answer_by_wall_us=0
        )
    else:
        refused = obstacle or said_no(desk.vetoes, one.command, ctx.wall_us)
        if refused is not None:
            settled.held[one.command.command_id] = (False, refused)
            return
        stale = _supersede(desk.waiting.values(), one)
        if stale is None:
            return
        if len(desk.waiting) >= MAX_WAITING:
            settled.held[one.command.command_id] = (False, "too many proposals wait already")
            return
        for gone in stale:
            why = "another proposal takes its place"
            settled.outputs.append(close(desk, gone, "stale", ctx, why))
        answer_by = ctx.wall_us + ANSWER_WALL_US
        desk.waiting[one.command.command_id] = Waiting(
            command=one.command, change=one.change, answer_by_wall_us=answer_by
        )
        proposal = Proposal(
            fleet=one.command.fleet,
            command=one.command,
            state="awaiting",
            answer_by_wall_us=answer_by,
        )
    settled.listed.add(one.command.command_id)
    settled.outputs.append(proposal_output(proposal, ctx))


def _show(desk: Desk, one: Draft, now_us: int) -> bool:
    what = msgspec.json.encode(one.command.to, order="deterministic").decode()
    last = desk.shown.get(one.key)
    if last is not None and last.what == what and now_us - last.at_us < SHOWN_AGAIN_US:
        return False
    if last is None and len(desk.shown) >= MAX_SHOWN:
        return False
    desk.shown[one.key] = Shown(what=what, at_us=now_us)
    return True


def _supersede(waiting: Iterable[Waiting], one: Draft) -> list[Waiting] | None:
    """Return the proposals that a draft replaces; None when one that still holds waits already.

    A person needs time to read, so a waiting proposal is only replaced by one of another
    generation or in the other direction.
    """
    rivals = [
        other for other in waiting if (other.command.actuator, other.command.target) == _name(one)
    ]
    for other in rivals:
        same_way = (other.change.started > 0) == (one.change.started > 0)
        if same_way and other.command.generation == one.command.generation:
            return None
    return rivals


def close(desk: Desk, one: Waiting, state: Ending, ctx: Context, reason: str) -> Output:
    """Take a proposal off the desk and return the record that says how and why it ended."""
    desk.waiting.pop(one.command.command_id, None)
    reason = f"{reason}; proposed for: {one.command.reason}"[:4000]
    proposal = Proposal(
        fleet=one.command.fleet,
        command=msgspec.structs.replace(one.command, reason=reason),
        state=state,
        answer_by_wall_us=one.answer_by_wall_us,
    )
    return proposal_output(proposal, ctx)


def veto(desk: Desk, one: Waiting, by: str, reason: str, ctx: Context) -> Output:
    """End a proposal by a person's no, and keep the no in mind."""
    words = refuse(desk.vetoes, one.command, by, reason, ctx.wall_us)
    return close(desk, one, "vetoed", ctx, words)


def release_waiting(
    desk: Desk, memory: PoolMemory, one: Waiting, by: str, ctx: Context
) -> list[Output]:
    """Send an approved command: first the record that it was approved, then the command.

    It takes its leases only now, so what was promised to something else meanwhile stays with that.
    """
    command = release(one.command, now_us=ctx.now_us, by=by)
    tried = Settled()
    granted, leases = _grant([draft(command)], desk.leases, ctx.now_us, tried)
    if not granted:
        _, why = tried.held[command.command_id]
        return [close(desk, one, "stale", ctx, why)]
    desk.leases = leases
    closed = close(desk, one, "approved", ctx, f"approved by {by}")
    send(desk, memory, command, one.change)
    return [closed, command_output(command, ctx)]
