"""The executor: carries out each command at most once, or says why it does not.

Every guard is checked at the moment of effect, against the fleet as it is then. The executor's
state and the fleet's must be saved together (in the twin, one transaction); nothing here knows how.
It trusts nothing a decider says beyond what a command's own digest covers.
"""

from typing import Final

from gpuloop.schemas.component import State
from gpuloop.schemas.fleet import Fleet, Refused, Target
from gpuloop.schemas.identity import command_digest, command_id
from gpuloop.schemas.messages import Command, Control, Outcome
from gpuloop.schemas.messages.actions import (
    DesiredState,
    MigrateTo,
    OutcomeReason,
    OutcomeStatus,
    PriceTo,
    RemediateTo,
    ScaleTo,
    ShareTo,
)
from gpuloop.schemas.messages.control import Claim, Kill, KillLease, epoch_after, lease_end
from gpuloop.schemas.units import HOUR_US

REMEMBERED_US: Final = HOUR_US
"""How long after its expiry a command's id is kept; from the expiry on it cannot start anyway."""

LONGEST_LIFETIME_US: Final = 2 * HOUR_US
MAX_REMEMBERED: Final = 50_000

_KIND: Final[dict[str, type[DesiredState]]] = {
    "scaling": ScaleTo,
    "pricing": PriceTo,
    "migration": MigrateTo,
    "remediation": RemediateTo,
    "sharing": ShareTo,
}


class ExecutorState(State):
    """What an executor must not forget: ids, the highest epoch, the kill switch, its clock."""

    epoch: int = 0
    clock_us: int = 0
    killed: bool = False
    barred_epoch: int = -1
    lease_expires_wall_us: int = 0
    forget_at_us: dict[str, int] = {}
    refused: dict[str, int] = {}


def control(state: ExecutorState, message: Control, wall_us: int) -> None:
    """Follow the kill switch, its lease and claims; other controls concern the decider.

    `wall_us` is wall time: a lease is bounded from when it is read.
    After a kill the epochs up to then stay barred: going on takes a clearing and a new claim.
    """
    match message.body:
        case Kill(engaged=True):
            state.killed = True
            state.barred_epoch = max(state.barred_epoch, state.epoch)
        case Kill(engaged=False):
            state.killed = False
        case KillLease() as lease:
            state.lease_expires_wall_us = lease_end(state.lease_expires_wall_us, lease, wall_us)
        case Claim(epoch=epoch):
            state.epoch = epoch_after(state.epoch, epoch)
        case _:
            pass


def handle(
    state: ExecutorState, command: Command, fleet: Fleet, now_us: int, wall_us: int
) -> list[Outcome]:
    """Apply a command if every guard lets it, and return its outcomes in order.

    `now_us` is fleet time, `wall_us` wall time. A clock that goes back revives nothing.
    """
    state.clock_us = max(state.clock_us, now_us)
    _forget(state)
    report = _Report(state, command)
    if command.fleet != fleet.name:
        return [report.refuse("wrong_fleet", f"this executor serves {fleet.name}")]
    if command.command_id in state.forget_at_us:
        return [report.refuse("duplicate", "seen before")]
    reason, detail = _inconsistency(command, state.clock_us)
    if reason is not None:
        return [report.refuse(reason, detail)]
    if len(state.forget_at_us) >= MAX_REMEMBERED:
        return [report.refuse("error", f"{MAX_REMEMBERED} commands are remembered, no room")]
    if state.clock_us >= command.expires_at_us:
        return [report.make("expired", "expired", "not started in time")]
    state.forget_at_us[command.command_id] = command.expires_at_us + REMEMBERED_US
    if state.killed or command.epoch <= state.barred_epoch:
        return [report.refuse("killed", "the kill switch is on, or the epoch was killed")]
    if wall_us >= state.lease_expires_wall_us:
        return [report.refuse("killed", "the kill switch's lease has lapsed")]
    if command.epoch < state.epoch:
        return [report.refuse("stale_epoch", f"epoch {state.epoch} has taken over")]
    if command.epoch > epoch_after(state.epoch, command.epoch):
        return [report.refuse("inconsistent", f"no claim comes to that epoch after {state.epoch}")]
    state.epoch = command.epoch
    target = fleet.read(command.actuator, command.target)
    if target is None:
        return [report.refuse("unknown_target", "no such target")]
    report.target = target
    if target.pool != command.pool:
        return [report.refuse("inconsistent", f"the target belongs to {target.pool}")]
    if target.generation != command.generation:
        return [report.refuse("stale_generation", f"generation is {target.generation}")]
    return _apply(report, command, fleet, state.clock_us)


def _apply(report: "_Report", command: Command, fleet: Fleet, now_us: int) -> list[Outcome]:
    accepted = report.make("accepted", "ok", "")
    try:
        report.target = fleet.apply(command.actuator, command.target, command.to, now_us)
    except Refused as refusal:
        report.count(refusal.reason)
        return [accepted, report.make("failed", refusal.reason, refusal.detail)]
    return [accepted, report.make("applied", "ok", "")]


def _inconsistency(command: Command, now_us: int) -> tuple[OutcomeReason | None, str]:
    """Return why a command is not what it claims to be, if it is not."""
    if command.mode != "auto":
        return "unsupported", f"mode {command.mode} is not to be executed"
    if not isinstance(command.to, _KIND[command.actuator]):
        return "inconsistent", f"{command.actuator} cannot bring about {type(command.to).__name__}"
    if command.command_id != command_id(command.decision_id, command.actuator, command.target):
        return "inconsistent", "the id does not follow from decision, actuator and target"
    digest = command_digest(command.command_id, command.target, command.to, command.generation)
    if command.digest != digest:
        return "inconsistent", "the digest does not match the content"
    if command.expires_at_us > now_us + LONGEST_LIFETIME_US:
        return "inconsistent", "expires later than any command may"
    if isinstance(command.to, ScaleTo) and not (
        command.to.on_demand_nodes or command.to.spot_nodes
    ):
        return "out_of_bounds", "an empty plan is refused"
    return None, ""


def _forget(state: ExecutorState) -> None:
    gone = [one for one, until in state.forget_at_us.items() if until <= state.clock_us]
    for one in gone:
        del state.forget_at_us[one]


class _Report:
    """Makes the outcomes of one command."""

    def __init__(self, state: ExecutorState, command: Command) -> None:
        self.state = state
        self.command = command
        self.target: Target | None = None

    def count(self, reason: str) -> None:
        self.state.refused[reason] = self.state.refused.get(reason, 0) + 1

    def refuse(self, reason: OutcomeReason, detail: str) -> Outcome:
        self.count(reason)
        return self.make("rejected", reason, detail)

    def make(self, status: OutcomeStatus, reason: OutcomeReason, detail: str) -> Outcome:
        command, target = self.command, self.target
        return Outcome(
            fleet=command.fleet,
            command_id=command.command_id,
            decision_id=command.decision_id,
            actuator=command.actuator,
            target=command.target,
            pool=command.pool,
            status=status,
            reason=reason,
            detail=detail[:4000],
            generation=command.generation if target is None else target.generation,
            epoch=self.state.epoch,
            event_time_us=self.state.clock_us,
            observed=None if target is None else target.state,
        )
