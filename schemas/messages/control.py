"""What people and claims impose on the loop. Compacted by scope: the last word per scope holds."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta

from gpuloop.schemas.messages.actions import Actuator, Mode
from gpuloop.schemas.messages.base import StrictMessage, StrictPart
from gpuloop.schemas.units import MINUTE_US, Count, Name, Price, Ratio, Text, TimeUs, WallUs

EVERY: Final = "*"
"""Every pool, where a control names one."""

LONGEST_LEASE_US: Final = MINUTE_US
"""How long after it was read a kill lease may hold: a longer one would disarm the switch.

Three renewals of the keeper last 45 s; the rest is for clocks that do not agree."""

EPOCH_LEAP: Final = 1_000_000
"""How far above the highest known epoch another may stand; claims rise by one each."""


class SetMode(StrictPart, frozen=True, kw_only=True, tag="mode", tag_field="kind"):
    """Grant a mode to one actuator on one pool; `*` means every pool."""

    pool: Name
    actuator: Actuator
    mode: Mode


class Freeze(StrictPart, frozen=True, kw_only=True, tag="freeze", tag_field="kind"):
    """Hold one target, pool or `*` as it is until fleet time `until_us`."""

    target: Name
    until_us: TimeUs


class Kill(StrictPart, frozen=True, kw_only=True, tag="kill", tag_field="kind"):
    """Stop starting anything. Clearing (`engaged` false) needs a person and a new epoch."""

    engaged: bool


class KillLease(StrictPart, frozen=True, kw_only=True, tag="lease", tag_field="kind"):
    """Permission to start effects, renewed by the keeper; it ends at a wall time.

    Whoever reads it lets it hold for `LONGEST_LEASE_US` at most.
    """

    expires_wall_us: WallUs


class Claim(StrictPart, frozen=True, kw_only=True, tag="claim", tag_field="kind"):
    """A decider owns the fleet from `epoch` on; on a tie the lower offset wins.

    `owner` names one start of one process, so that no two can take the same claim for theirs.
    """

    owner: Name
    epoch: Count


class Objectives(StrictPart, frozen=True, kw_only=True, tag="objectives", tag_field="kind"):
    """What people want of a pool: ceilings, budget, service level. `*` means every pool."""

    pool: Name
    nodes_max: Count | None = None
    usd_micros_per_hour_max: Price | None = None
    price_floor_usd_micros: Price | None = None
    price_ceiling_usd_micros: Price | None = None
    wait_target_us: TimeUs | None = None
    utilisation_target: Ratio | None = None


class PolicyStage(StrictPart, frozen=True, kw_only=True, tag="policy", tag_field="kind"):
    """Let a policy version act on a pool with this share of its offset; `*` means every pool.

    A version with stage `shadow` is evaluated beside the champion and its wish is recorded. Stage
    `retired` takes a version from every part it has on the pool, and leaves other versions theirs.
    """

    pool: Name
    policy_id: Name
    stage: Literal["shadow", "canary", "champion", "retired"]
    alpha: Ratio
    exploration: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.0


class Assignment(StrictPart, frozen=True, kw_only=True, tag="assignment", tag_field="kind"):
    """Which arm of an experiment decides for a pool in a time bucket, and with what chance."""

    experiment: Name
    pool: Name
    arm: Name
    probability: Ratio
    from_us: TimeUs
    until_us: TimeUs


class BreakerReset(StrictPart, frozen=True, kw_only=True, tag="breaker", tag_field="kind"):
    """A person closes a tripped breaker."""

    pool: Name


ControlBody = (
    SetMode
    | Freeze
    | Kill
    | KillLease
    | Claim
    | Objectives
    | PolicyStage
    | Assignment
    | BreakerReset
)


class Control(StrictMessage, frozen=True, kw_only=True):
    """One control, who set it and why."""

    TYPE: ClassVar[str] = "controls"

    by: Name
    reason: Text = ""
    body: ControlBody


def lease_end(known_us: int, lease: KillLease, wall_us: int) -> int:
    """Return when permission ends, given when it ended so far and a lease that is read now."""
    latest = wall_us + LONGEST_LEASE_US
    return min(max(known_us, lease.expires_wall_us), latest)


def epoch_after(known: int, read: int) -> int:
    """Return the highest epoch known once another is read of.

    One that no count of claims can have come to is passed over: above the largest number there is
    nobody could ever claim the fleet again.
    """
    return max(known, read) if read <= known + EPOCH_LEAP else known


def scope(body: ControlBody) -> str:
    """Return the key under which a control replaces its predecessor."""
    match body:
        case SetMode(pool=pool, actuator=actuator):
            return f"mode/{pool}/{actuator}"
        case Freeze(target=target):
            return f"freeze/{target}"
        case Kill():
            return "kill"
        case KillLease():
            return "lease"
        case Claim():
            return "claim"
        case Objectives(pool=pool):
            return f"objectives/{pool}"
        case PolicyStage(pool=pool, stage="shadow", policy_id=policy_id):
            return f"policy/{pool}/shadow/{policy_id}"
        case PolicyStage(pool=pool, stage="retired", policy_id=policy_id):
            return f"policy/{pool}/retired/{policy_id}"
        case PolicyStage(pool=pool):
            return f"policy/{pool}"
        case Assignment(experiment=experiment, pool=pool):
            return f"assignment/{experiment}/{pool}"
        case BreakerReset(pool=pool):
            return f"breaker/{pool}"


def ended_by(body: ControlBody, held: Mapping[str, ControlBody]) -> list[str]:
    """Return the scopes, of those that hold, whose word a control ends beside its own.

    A version's retirement ends its parts, and a new part its retirement.
    """
    if not isinstance(body, PolicyStage):
        return []
    gone = body.stage == "retired"
    return [
        name
        for name, one in held.items()
        if isinstance(one, PolicyStage)
        and one.policy_id == body.policy_id
        and body.pool in (one.pool, EVERY)
        and (gone or one.stage == "retired")
    ]
