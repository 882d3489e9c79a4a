"""Everything needed to judge a decision later, written before it acts."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from gpuloop.schemas.messages.actions import Actuator, Mode
from gpuloop.schemas.messages.base import Message, Part
from gpuloop.schemas.units import Count, Digest, Name, Positive, Ratio, Text, TimeUs

MAX_FEATURES = 256
MAX_ACTIONS = 16
MAX_COMMANDS = 256
"""Commands that one decision may lead to: it names them all."""

Vector = Annotated[tuple[float, ...], Meta(max_length=MAX_FEATURES)]
Action = Annotated[tuple[float, ...], Meta(max_length=MAX_ACTIONS)]

Stage = Literal[
    "freshness",
    "bounds",
    "delta",
    "hysteresis",
    "disruption",
    "projection",
    "out_of_range",
    "breaker",
    "fallback",
    "arbiter",
    "mode",
]


class Adjustment(Part, frozen=True, kw_only=True):
    """One change that a guard made to a wished-for value, and why."""

    stage: Stage
    dimension: Name
    before: float
    after: float
    reason: Text


class Influence(Part, frozen=True, kw_only=True):
    """How far one feature moved the policy's action from where its mean would have put it."""

    feature: Name
    effect: float


class CurveNote(Part, frozen=True, kw_only=True):
    """How one segment is believed to answer price: its elasticity with the 95 % interval.

    `low` is the most elastic; a curve is `trusted` once it beats the segment's acceptance share.
    """

    segment: Name
    elasticity: float
    low: float
    high: float
    answers: Positive
    trusted: bool


class PriceNote(Part, frozen=True, kw_only=True):
    """What a learned price rests on, US dollars per GPU-hour.

    `target_usd` is where the price is on its way to, `best_usd` what trusted curves alone call for,
    `cost_usd` what the next GPU-hour costs, `explored_log` by how much, as a logarithm, the target
    is off so that something is learned.
    """

    target_usd: Positive
    best_usd: Positive | None
    cost_usd: Positive
    trusted_share: Ratio
    explored_log: float
    curves: Annotated[tuple[CurveNote, ...], Meta(max_length=MAX_FEATURES)] = ()


class Decision(Message, frozen=True, kw_only=True):
    """What was seen, wished, allowed and done for one pool at one tick.

    Vectors named `*_action` are in the order of `dimensions`. `rule_action` and `executed_action`
    are in the dimension's own unit (nodes, US dollars, share); `policy_action` is the learned
    offset in [-1, 1] before `alpha` and exploration, `joint_action` after both: the wish that the
    envelope received equals rule_action + joint_action x delta limit, and joint_action is what is
    learned from. `observation` is raw, in the order of `feature_names` of the feature version.
    """

    TYPE: ClassVar[str] = "decisions"

    decision_id: Name
    pool: Name
    level: Literal["node", "cluster", "continuum"]
    epoch: Count
    tick_us: TimeUs
    dimensions: Annotated[tuple[Name, ...], Meta(max_length=MAX_ACTIONS)]
    feature_version: Name
    observation: Vector
    feature_ages_us: Annotated[tuple[Count, ...], Meta(max_length=MAX_FEATURES)]
    feature_quality: Vector
    feasible_low: Action
    feasible_high: Action
    delta_limit: Action
    rule_action: Action
    policy_action: Action
    joint_action: Action
    executed_action: Action
    alpha: Ratio
    exploration: Action
    log_probability: float
    policy_id: Name
    policy_digest: Digest
    normaliser_digest: Digest
    envelope_digest: Digest
    arm: Name
    assignment_probability: Ratio
    forecast_id: str
    modes: dict[Actuator, Mode]
    adjustments: Annotated[tuple[Adjustment, ...], Meta(max_length=256)]
    command_ids: Annotated[tuple[Digest, ...], Meta(max_length=MAX_COMMANDS)]
    stale_inputs: Annotated[tuple[Name, ...], Meta(max_length=MAX_FEATURES)]
    influences: Annotated[tuple[Influence, ...], Meta(max_length=8)]
    shadow_actions: dict[str, Action] = {}
    summary: Text
    why_not: Text
    pricing: PriceNote | None = None
