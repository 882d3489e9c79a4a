"""Commands: desired state, addressed once, guarded by generation, epoch and expiry.

A command is readable without joins. An executor applies each `command_id` at most once and only
while `generation` and `epoch` are still those of the target.
"""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from gpuloop.schemas.messages.base import Message, StrictMessage, StrictPart
from gpuloop.schemas.units import Count, Digest, Name, Price, Text, TimeUs, UsdMicros

Actuator = Literal["scaling", "pricing", "migration", "remediation", "sharing"]
ACTUATORS: tuple[Actuator, ...] = ("scaling", "pricing", "migration", "remediation", "sharing")
Mode = Literal["off", "shadow", "advise", "auto"]


class ScaleTo(StrictPart, frozen=True, kw_only=True, tag="scale", tag_field="kind"):
    """Rent this many nodes of a pool under each kind of billing."""

    on_demand_nodes: Annotated[int, Meta(ge=0, le=100_000)]
    spot_nodes: Annotated[int, Meta(ge=0, le=100_000)]


class PriceTo(StrictPart, frozen=True, kw_only=True, tag="price", tag_field="kind"):
    """Quote this price for new work on a pool."""

    usd_micros_per_gpu_hour: Price


class MigrateTo(StrictPart, frozen=True, kw_only=True, tag="migrate", tag_field="kind"):
    """Restart a job from its last checkpoint in `pool`, away from `avoid_nodes`."""

    pool: Name
    avoid_nodes: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()


class RemediateTo(StrictPart, frozen=True, kw_only=True, tag="remediate", tag_field="kind"):
    """Bring a node to this state; `draining` lets running work finish or move first."""

    state: Literal["schedulable", "cordoned", "draining", "reset", "rebooted", "replaced"]


class ShareTo(StrictPart, frozen=True, kw_only=True, tag="share", tag_field="kind"):
    """Partition a node's GPUs: a MIG profile, or time slices per GPU."""

    mig_profile: str = ""
    time_slices: Annotated[int, Meta(ge=1, le=64)] = 1


DesiredState = ScaleTo | PriceTo | MigrateTo | RemediateTo | ShareTo


class Command(StrictMessage, frozen=True, kw_only=True):
    """One change to one target.

    `generation` is the target's generation the change was computed from; `inverse` restores what
    was there before; `gpus` is the number of GPUs touched and `usd_micros_per_hour` the change in
    running cost. `expires_at_us` is fleet time and counts from the release of the command.
    """

    TYPE: ClassVar[str] = "actions.command"

    command_id: Digest
    decision_id: Name
    actuator: Actuator
    target: Name
    pool: Name
    mode: Mode
    before: DesiredState | None
    to: DesiredState
    inverse: DesiredState | None
    generation: Count
    epoch: Count
    issued_at_us: TimeUs
    expires_at_us: TimeUs
    gpus: Count
    usd_micros_per_hour: UsdMicros
    summary: Text
    reason: Text
    digest: Digest


class Proposal(StrictMessage, frozen=True, kw_only=True):
    """A command that is only shown (`shadow`) or waits for a person's yes (`awaiting`).

    `answer_by_wall_us` is wall time: a person reads a wall clock. When a proposal has ended, the
    reason of its command begins with why it ended so.
    """

    TYPE: ClassVar[str] = "proposals"

    command: Command
    state: Literal["shadow", "awaiting", "approved", "vetoed", "lapsed", "stale"]
    answer_by_wall_us: TimeUs


class Approval(StrictMessage, frozen=True, kw_only=True):
    """A person's yes or no to one command, bound to what was shown by its digest."""

    TYPE: ClassVar[str] = "approvals"

    command_id: Digest
    digest: Digest
    approve: bool
    by: Name
    reason: Text = ""


OutcomeStatus = Literal["accepted", "rejected", "started", "applied", "failed", "expired", "undone"]
OutcomeReason = Literal[
    "ok",
    "duplicate",
    "expired",
    "stale_epoch",
    "stale_generation",
    "unknown_target",
    "wrong_fleet",
    "killed",
    "out_of_bounds",
    "no_capacity",
    "unsupported",
    "inconsistent",
    "superseded",
    "error",
]


class Outcome(Message, frozen=True, kw_only=True):
    """What an executor did about one command; `generation` is the target's afterwards."""

    TYPE: ClassVar[str] = "actions.outcomes"

    command_id: Digest
    decision_id: Name
    actuator: Actuator
    target: Name
    pool: Name
    status: OutcomeStatus
    reason: OutcomeReason
    detail: Text = ""
    generation: Count
    epoch: Count
    event_time_us: TimeUs
    observed: DesiredState | None = None
