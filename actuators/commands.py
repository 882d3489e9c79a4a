"""The making of commands: desired state, identity, guards, inverse and one readable line.

Whether a command may be sent is settled before this module is asked; it only says it well.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from gpuloop.schemas.identity import command_digest, command_id
from gpuloop.schemas.messages import Command, JobState
from gpuloop.schemas.messages.actions import (
    Actuator,
    DesiredState,
    MigrateTo,
    Mode,
    PriceTo,
    ScaleTo,
)
from gpuloop.schemas.units import MINUTE_US, USD_MICROS

LIFETIME_US: Final[dict[Actuator, int]] = {
    "scaling": 10 * MINUTE_US,
    "pricing": 10 * MINUTE_US,
    "migration": 15 * MINUTE_US,
}
"""How long after its release a command may still start, in fleet time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The decision that commands come from."""

    fleet: str
    decision_id: str
    pool: str
    epoch: int
    now_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """What a pool's nodes hold and cost, to say what a change is worth."""

    gpus_per_node: int
    on_demand_usd_per_hour: float
    spot_usd_per_hour: float


def scale(
    origin: Origin,
    *,
    before: ScaleTo,
    to: ScaleTo,
    generation: int,
    tariff: Tariff,
    mode: Mode,
    reason: str,
) -> Command:
    """Return the command that rents `to` instead of `before`."""
    on_demand = to.on_demand_nodes - before.on_demand_nodes
    spot = to.spot_nodes - before.spot_nodes
    usd = on_demand * tariff.on_demand_usd_per_hour + spot * tariff.spot_usd_per_hour
    steps = [
        f"{old} -> {new} {billing} nodes"
        for billing, old, new in (
            ("on-demand", before.on_demand_nodes, to.on_demand_nodes),
            ("spot", before.spot_nodes, to.spot_nodes),
        )
        if old != new
    ]
    gpus = (on_demand + spot) * tariff.gpus_per_node
    return _command(
        origin,
        actuator="scaling",
        target=origin.pool,
        before=before,
        to=to,
        inverse=before,
        generation=generation,
        mode=mode,
        gpus=(abs(on_demand) + abs(spot)) * tariff.gpus_per_node,
        usd_micros_per_hour=round(usd * USD_MICROS),
        headline=f"{origin.pool}: {', '.join(steps)} ({gpus:+d} GPUs, {usd:+.2f} USD/h)",
        reason=reason,
    )


def price(
    origin: Origin, *, before: PriceTo, to: PriceTo, generation: int, mode: Mode, reason: str
) -> Command:
    """Return the command that quotes `to` instead of `before` for new work."""
    old, new = (one.usd_micros_per_gpu_hour / USD_MICROS for one in (before, to))
    change = f" ({new / old - 1:+.1%})" if old else ""
    return _command(
        origin,
        actuator="pricing",
        target=origin.pool,
        before=before,
        to=to,
        inverse=before,
        generation=generation,
        mode=mode,
        gpus=0,
        usd_micros_per_hour=0,
        headline=f"{origin.pool}: {old:.4f} -> {new:.4f} USD per GPU-hour{change}",
        reason=reason,
    )


def migrate(
    origin: Origin, *, job: JobState, avoid: tuple[str, ...], mode: Mode, reason: str
) -> Command:
    """Return the command that restarts a job from its checkpoint away from some nodes.

    It has no inverse: moving the job again would not bring the first move back.
    """
    nodes = ", ".join(node for node in job.nodes if node in avoid) or "its nodes"
    return _command(
        origin,
        actuator="migration",
        target=job.job,
        before=MigrateTo(pool=job.pool),
        to=MigrateTo(pool=job.pool, avoid_nodes=avoid),
        inverse=None,
        generation=job.generation,
        mode=mode,
        gpus=job.gpus,
        usd_micros_per_hour=0,
        headline=f"{origin.pool}: move {job.job} ({job.gpus} GPUs) off {nodes}",
        reason=reason,
    )


def release(command: Command, *, now_us: int, by: str) -> Command:
    """Return an approved command as it is sent: its lifetime starts now."""
    return msgspec.structs.replace(
        command,
        mode="auto",
        issued_at_us=now_us,
        expires_at_us=now_us + LIFETIME_US[command.actuator],
        reason=f"{command.reason}; approved by {by}"[:4000],
    )


def _command(
    origin: Origin,
    *,
    actuator: Actuator,
    target: str,
    before: DesiredState,
    to: DesiredState,
    inverse: DesiredState | None,
    generation: int,
    mode: Mode,
    gpus: int,
    usd_micros_per_hour: int,
    headline: str,
    reason: str,
) -> Command:
    identity = command_id(origin.decision_id, actuator, target)
    return Command(
        fleet=origin.fleet,
        command_id=identity,
        decision_id=origin.decision_id,
        actuator=actuator,
        target=target,
        pool=origin.pool,
        mode=mode,
        before=before,
        to=to,
        inverse=inverse,
        generation=generation,
        epoch=origin.epoch,
        issued_at_us=origin.now_us,
        expires_at_us=origin.now_us + LIFETIME_US[actuator],
        gpus=gpus,
        usd_micros_per_hour=usd_micros_per_hour,
        summary=f"{headline}: {reason}"[:4000],
        reason=reason[:4000],
        digest=command_digest(identity, target, to, generation),
    )
