"""What was noticed, why it happened, what comes next and what may break."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from gpuloop.schemas.messages.base import Message, Part
from gpuloop.schemas.units import Count, Digest, DurationUs, Name, Positive, Ratio, Text, TimeUs

AnomalyKind = Literal["level", "sensor", "peer", "joint", "drift"]


class Anomaly(Message, frozen=True, kw_only=True):
    """A subject departed from what was expected; it opens once and closes once, under one id.

    A `level` departed from the subject's own past, a `peer` from its pool; a `sensor` is not to be
    believed; a `joint` combination was hardly ever seen; a `drift` is a lasting change of a mean.
    `score` had reached the detector's `threshold` when it opened; `since_us` is when it
    began, as far as is known.
    """

    TYPE: ClassVar[str] = "insight.anomalies"

    anomaly_id: Digest
    subject: Name
    pool: Name
    metric: Name
    event_time_us: TimeUs
    value: float
    expected: float
    score: float
    state: Literal["open", "closed"]
    kind: AnomalyKind = "level"
    detector: str = ""
    threshold: float = 0.0
    since_us: TimeUs | None = None
    evidence: Text = ""


class Suspect(Part, frozen=True, kw_only=True):
    """A candidate culprit and its share of the evidence."""

    subject: Name
    metric: Name
    score: float


class Cause(Message, frozen=True, kw_only=True):
    """Why a symptom happened: suspects best first, and which tier found them by when."""

    TYPE: ClassVar[str] = "insight.causes"

    cause_id: Digest
    anomaly_id: Digest
    symptom: Name
    pool: Name
    symptom_metric: Name
    event_time_us: TimeUs
    suspects: Annotated[tuple[Suspect, ...], Meta(max_length=32)]
    tier: Literal["fast", "causal"]
    method: Name
    elapsed_us: DurationUs
    timed_out: bool
    summary: Text


class Quantiles(Part, frozen=True, kw_only=True):
    """A forecast distribution at one horizon."""

    horizon_us: DurationUs
    p10: Positive
    p50: Positive
    p90: Positive


class Forecast(Message, frozen=True, kw_only=True):
    """GPUs demanded of a pool at each horizon, and how the model fares against its rival.

    `skill` is 1 - MAE / MAE of the rival on past forecasts; a model with skill <= 0 is not used.
    """

    TYPE: ClassVar[str] = "insight.forecasts"

    forecast_id: Digest
    pool: Name
    metric: Name
    tick_us: TimeUs
    horizons: Annotated[tuple[Quantiles, ...], Meta(max_length=16)]
    model: Name
    rival: Name
    skill: float
    samples: Count


class FeatureVector(Message, frozen=True, kw_only=True):
    """The features of a pool, or of one of its job classes, as they were known at `tick_us`.

    `definitions` is the digest of the set of definitions that names the numbers, in order;
    `gpuloop features list` tells them. `job_class` is empty for the pool itself. Null is not known.
    """

    TYPE: ClassVar[str] = "insight.features"

    pool: Name
    job_class: Annotated[str, Meta(max_length=200)] = ""
    tick_us: TimeUs
    definitions: Digest
    values: Annotated[tuple[float | None, ...], Meta(max_length=1024)]
    ages_us: Annotated[tuple[DurationUs, ...], Meta(max_length=1024)]
    quality: Annotated[tuple[Ratio, ...], Meta(max_length=1024)]


class Risk(Message, frozen=True, kw_only=True):
    """The chance that a node fails within a horizon, beside the base rate it must beat."""

    TYPE: ClassVar[str] = "insight.risks"

    subject: Name
    pool: Name
    tick_us: TimeUs
    horizon_us: DurationUs
    probability: Ratio
    base_rate: Ratio
