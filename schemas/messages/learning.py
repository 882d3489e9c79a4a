"""Rewards and policy versions: what the learner reads, and what it writes."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from gpuloop.schemas.messages.base import Message, Part
from gpuloop.schemas.units import Count, Name, Positive, Ratio, Text, TimeUs, UsdMicros

COMPONENTS: tuple[str, ...] = (
    "revenue",
    "capacity_cost",
    "energy_cost",
    "waiting_penalty",
    "service_penalty",
    "disruption_penalty",
)


class Reward(Message, frozen=True, kw_only=True):
    """The ledger's flow of one pool in [start_us, end_us), credited to the decision at its start.

    Components are signed (costs and penalties are negative) and sum to `total_usd_micros`; summed
    over pools and windows they equal the fleet's ledger. `overlap` names other decisions whose
    effects fall into the window; `censored` says the window was cut short. Energy and carbon are
    what the pool took in the window: quantities beside the money, which has its own component.
    """

    TYPE: ClassVar[str] = "rewards"

    pool: Name
    decision_id: Name
    start_us: TimeUs
    end_us: TimeUs
    components: dict[str, UsdMicros]
    total_usd_micros: UsdMicros
    overlap: Count
    censored: bool
    definition: Name
    energy_milliwatt_hours: Count = 0
    carbon_milligrams: Count = 0


class Normaliser(Part, frozen=True, kw_only=True):
    """Frozen observation statistics: (x - mean) / scale, clipped to +-clip."""

    mean: Annotated[tuple[float, ...], Meta(max_length=256)]
    scale: Annotated[tuple[Positive, ...], Meta(max_length=256)]
    clip: Positive


class ActorSpec(Part, frozen=True, kw_only=True):
    """The shape of a deterministic actor: ReLU hidden layers and a tanh output.

    Weights are safetensors named `layer.<i>.weight` (outputs x inputs) and `layer.<i>.bias`.
    """

    observation_size: Annotated[int, Meta(ge=1, le=256)]
    action_size: Annotated[int, Meta(ge=1, le=16)]
    hidden: Annotated[tuple[Annotated[int, Meta(ge=1, le=1024)], ...], Meta(max_length=4)]
    activation: Literal["relu"] = "relu"


class OffsetRange(Part, frozen=True, kw_only=True):
    """Records [first, last] of one partition."""

    topic: Name
    partition: Count
    first: Count
    last: Count


class PolicyVersion(Message, frozen=True, kw_only=True):
    """An immutable policy: where its weights are, what made it, what it expects to see.

    `signature` is Ed25519 over the canonical JSON of this message with an empty signature, in hex.
    `gate` holds the figures of the check that earned `alpha`, the most that any pool of `alphas`
    earned; in a pool that is not named there nothing was earned, unless none is.
    """

    TYPE: ClassVar[str] = "policies"

    policy_id: Name
    algorithm: Literal["rule", "sac", "td3", "matd3"]
    version: Count
    parent: str
    created_wall_us: TimeUs
    feature_version: Name
    dimensions: Annotated[tuple[Name, ...], Meta(max_length=16)]
    actor: ActorSpec | None
    normaliser: Normaliser | None
    weights_digest: str
    alpha: Ratio
    seed: Count
    config: dict[str, float | int | str | bool]
    trained_on: Annotated[tuple[OffsetRange, ...], Meta(max_length=256)]
    gate: dict[str, float]
    public_key: str = ""
    signature: str = ""
    summary: Text = ""
    alphas: dict[Name, Ratio] = {}
