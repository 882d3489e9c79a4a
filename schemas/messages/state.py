"""The current belief about the fleet, with the age and quality of what it rests on.

Written by the observe stage only and compacted: the last value of a key is the whole truth.
"""

from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta

from gpuloop.schemas.messages.base import Message, Part
from gpuloop.schemas.messages.telemetry import Billing, GpuMilli, Nodes, Tranche
from gpuloop.schemas.units import Count, DurationUs, Name, Positive, Price, Ratio, TimeUs

FEATURES: Final[tuple[str, ...]] = (
    "utilisation",
    "sm_active",
    "tensor_active",
    "memory_used",
    "temperature_celsius",
    "power_watts",
    "sm_clock_mhz",
    "throttled",
    "nvlink_bytes_per_second",
    "ecc_uncorrected",
)
"""What nodes and pools are described by, in the order of every feature axis."""


class Feature(Part, frozen=True, kw_only=True):
    """A number, how long ago its newest input was true, and the share of inputs present."""

    value: float | None
    age_us: DurationUs
    quality: Ratio


Doubt = Literal["out_of_range", "contradictory", "frozen"]


class NodeState(Message, frozen=True, kw_only=True):
    """A node as last heard of; `features` are means over its GPUs.

    `doubts` says which features are not to be believed and why: of one that is `out_of_range` the
    impossible values were left out; one that is `contradictory` or `frozen` has quality 0.
    """

    TYPE: ClassVar[str] = "state.nodes"

    node: Name
    pool: Name
    rack: Name
    gpu_model: Name
    billing: Billing
    gpus: Count
    event_time_us: TimeUs
    boot: Count
    seq: Count
    features: dict[str, Feature]
    doubts: dict[str, Doubt] = {}


JobPhase = Literal["queued", "running", "finished", "failed", "cancelled"]


class JobState(Message, frozen=True, kw_only=True):
    """A job as last heard of."""

    TYPE: ClassVar[str] = "state.jobs"

    job: Name
    pool: Name
    tenant: Name
    job_class: Name
    phase: JobPhase
    gpus: Count
    nodes: Nodes
    event_time_us: TimeUs
    submitted_us: TimeUs
    started_us: TimeUs | None
    checkpointed_us: TimeUs | None
    gpu_us_done: Count
    attempt: Count
    generation: Count
    price_usd_micros_per_gpu_hour: Price
    gpu_milli: GpuMilli = 1000


class QueueState(Part, frozen=True, kw_only=True):
    """Waiting work of one job class; `submitted_sum_us` makes the mean wait exact at any time.

    In a shard's part `milli` are the thousandths asked by jobs that share devices, and not among
    `gpus`; a pool's state has them there, rounded up to whole GPUs.
    """

    job_class: Name
    jobs: Count
    gpus: Count
    oldest_submitted_us: TimeUs
    submitted_sum_us: Count
    milli: Count = 0


class ClassState(Part, frozen=True, kw_only=True):
    """Jobs of one class: those that run, and those that have arrived since the start.

    `*_milli` are as in `QueueState`.
    """

    job_class: Name
    running_jobs: Count
    running_gpus: Count
    arrived_jobs: Count
    arrived_gpus: Count
    running_milli: Count = 0
    arrived_milli: Count = 0


class QuoteState(Part, frozen=True, kw_only=True):
    """What one segment of tenants said to its quotes since the start.

    The sums are of the quotes per GPU-hour that were accepted and refused, USD micros: over a
    while in which prices stood still their growth per job is the quote itself.
    """

    segment: Name
    accepted_jobs: Count
    refused_jobs: Count
    accepted_quotes_sum_usd_micros: Count
    refused_quotes_sum_usd_micros: Count


class ServiceState(Part, frozen=True, kw_only=True):
    """The last window of one inference service."""

    service: Name
    gpus: Count
    requests_per_second: Positive
    utilisation: Ratio
    first_token_p95_us: DurationUs
    violated: bool
    event_time_us: TimeUs


class PoolState(Message, frozen=True, kw_only=True):
    """One pool at one tick: the input of every decision about it.

    `shards_reported` of `shards_expected` partial sums were fresh at `tick_us`; a partial that was
    not is still summed and shows in the ages. `nodes_heard` counts nodes that sent within a minute.
    `demand_age_us` is for how long a source of demand that should report has not: one that has
    running jobs, or a service. It is null while nothing should, so that a quiet hour is no silence.
    """

    TYPE: ClassVar[str] = "state.pools"

    pool: Name
    tick_us: TimeUs
    gpu_model: str
    gpus_per_node: Count
    nodes_min: Count
    nodes_max: Count
    tranches: Annotated[tuple[Tranche, ...], Meta(max_length=2)]
    capacity_age_us: DurationUs
    quote_usd_micros_per_gpu_hour: Price
    energy_usd_micros_per_kwh: Price
    generations: dict[str, Count]
    nodes_heard: Count
    gpus_allocated: Count
    running_jobs: Count
    queues: Annotated[tuple[QueueState, ...], Meta(max_length=64)]
    services: Annotated[tuple[ServiceState, ...], Meta(max_length=64)]
    arrived_gpus: Count
    arrived_jobs: Count
    refused_jobs: Count
    features: dict[str, Feature]
    shards_reported: Count
    shards_expected: Count
    demand_age_us: DurationUs | None = None
    classes: Annotated[tuple[ClassState, ...], Meta(max_length=64)] = ()
    quotes: Annotated[tuple[QuoteState, ...], Meta(max_length=64)] = ()
    loyalty_ratio: Ratio = 0.0
