"""What the fleet says about itself. Written by the world (twin, collectors), never by the loop.

A sample carries its own event time and its source's `(boot, seq)`: boot rises when the source
restarts and seq rises within a boot, so duplicates and reordering are recognisable anywhere.
"""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from gpuloop.schemas.messages.base import Message, Part
from gpuloop.schemas.units import (
    MAX_GPUS_PER_NODE,
    MAX_NODES_PER_JOB,
    Count,
    DurationUs,
    Name,
    Positive,
    Price,
    Ratio,
    Text,
    TimeUs,
    WallUs,
)

Billing = Literal["on_demand", "spot"]
BILLINGS: tuple[Billing, ...] = ("on_demand", "spot")

_PerGpu = Meta(max_length=MAX_GPUS_PER_NODE)
Ratios = Annotated[tuple[Ratio | None, ...], _PerGpu]
Levels = Annotated[tuple[Positive | None, ...], _PerGpu]
Celsius = Annotated[tuple[Annotated[float, Meta(ge=-50, le=200)] | None, ...], _PerGpu]
Counters = Annotated[tuple[Count | None, ...], _PerGpu]
GpuMilli = Annotated[int, Meta(ge=1, le=1000)]
Nodes = Annotated[tuple[Name, ...], Meta(max_length=MAX_NODES_PER_JOB)]


GPU_ARRAYS: tuple[str, ...] = (
    "utilisation",
    "sm_active",
    "tensor_active",
    "memory_used",
    "temperature_celsius",
    "power_watts",
    "sm_clock_mhz",
    "throttle_reasons",
    "nvlink_bytes_per_second",
    "pcie_bytes_per_second",
    "ecc_corrected",
    "ecc_uncorrected",
)


class GpuDetail(Part, frozen=True, kw_only=True, omit_defaults=True):
    """What is read more rarely than a sample, for diagnosis and for the trend of a device.

    Arrays are as in the sample that carries it. Counters end in what they count and never fall but
    by a reset or a reloaded driver; `*_ns` count nanoseconds of held-back clocks, `*_lifetime` is
    kept by the board. `rows_remapped_*` are of Ampere and later, `pages_retired_*` of before.
    `recovery_action` is NVML's (see `Fault`), flags are 0 or 1.
    """

    gr_engine_active: Ratios = ()
    sm_occupancy: Ratios = ()
    dram_active: Ratios = ()
    memory_copy_utilisation: Ratios = ()
    memory_clock_mhz: Levels = ()
    memory_temperature_celsius: Celsius = ()
    memory_total_bytes: Counters = ()
    power_limit_watts: Levels = ()
    energy_millijoules: Counters = ()
    power_violation_ns: Counters = ()
    thermal_violation_ns: Counters = ()
    sync_boost_violation_ns: Counters = ()
    board_limit_violation_ns: Counters = ()
    reliability_violation_ns: Counters = ()
    software_thermal_ns: Counters = ()
    hardware_thermal_ns: Counters = ()
    power_brake_ns: Counters = ()
    pcie_replays: Counters = ()
    nvlink_flit_errors: Counters = ()
    nvlink_data_errors: Counters = ()
    nvlink_replays: Counters = ()
    nvlink_recoveries: Counters = ()
    ecc_corrected_lifetime: Counters = ()
    ecc_uncorrected_lifetime: Counters = ()
    pages_retired_corrected: Counters = ()
    pages_retired_uncorrected: Counters = ()
    pages_pending: Counters = ()
    rows_remapped_corrected: Counters = ()
    rows_remapped_uncorrected: Counters = ()
    row_remap_pending: Counters = ()
    row_remap_failed: Counters = ()
    memory_unrepairable: Counters = ()
    fabric_state: Counters = ()
    recovery_action: Counters = ()


class GpuSample(Message, frozen=True, kw_only=True):
    """One node's GPUs at one instant; every array is in the order of `gpu_ids` or empty.

    Field meanings and units follow NVML and DCGM: activity ratios are 0 to 1, `throttle_reasons`
    is NVML's clock event bitmask, ECC counts are volatile counters since the driver loaded. Where
    a GPU is partitioned (MIG) each of its instances stands for itself, under its own id.
    """

    TYPE: ClassVar[str] = "telemetry.gpu"

    node: Name
    pool: Name
    rack: Name
    gpu_model: Name
    billing: Billing
    event_time_us: TimeUs
    boot: Count
    seq: Count
    gpu_ids: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_GPUS_PER_NODE)]
    utilisation: Ratios = ()
    sm_active: Ratios = ()
    tensor_active: Ratios = ()
    memory_used: Ratios = ()
    temperature_celsius: Celsius = ()
    power_watts: Levels = ()
    sm_clock_mhz: Levels = ()
    throttle_reasons: Counters = ()
    nvlink_bytes_per_second: Levels = ()
    pcie_bytes_per_second: Levels = ()
    ecc_corrected: Counters = ()
    ecc_uncorrected: Counters = ()
    detail: GpuDetail | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not line up with `gpu_ids`."""
        gpus = len(self.gpu_ids)
        # Every sample of the fleet comes through here, and nearly all are of one length.
        if not (
            gpus == len(self.utilisation) == len(self.sm_active) == len(self.tensor_active)
            == len(self.memory_used) == len(self.temperature_celsius) == len(self.power_watts)
            == len(self.sm_clock_mhz) == len(self.throttle_reasons)
            == len(self.nvlink_bytes_per_second) == len(self.pcie_bytes_per_second)
            == len(self.ecc_corrected) == len(self.ecc_uncorrected)
        ):  # fmt: skip
            _refuse_uneven(self, GPU_ARRAYS, gpus)
        if self.detail is not None:
            _refuse_uneven(self.detail, self.detail.__struct_fields__, gpus)


def _refuse_uneven(part: Part | Message, names: Iterable[str], gpus: int) -> None:
    for name in names:
        length = len(getattr(part, name))
        if length not in (0, gpus):
            raise ValueError(f"inconsistent: {name} has {length} values for {gpus} GPUs")


JobKind = Literal[
    "submitted",
    "started",
    "progress",
    "checkpointed",
    "preempted",
    "migrated",
    "failed",
    "finished",
    "cancelled",
]


class JobEvent(Message, frozen=True, kw_only=True):
    """Something that happened to a batch job.

    `gpu_us_done` is useful work kept so far, `gpu_us_lost` what this event threw away; both are
    GPU-microseconds. `generation` counts the migrations applied to the job. A running job reports
    `progress` at least every five minutes: when none does, the source is taken for silent. A job
    that shares a device has one GPU and `gpu_milli` thousandths of it; `gpu_us_*` count its part,
    and it pays its part of the price, rounded down to whole USD micros an hour.
    """

    TYPE: ClassVar[str] = "telemetry.jobs"

    job: Name
    kind: JobKind
    pool: Name
    tenant: Name
    job_class: Name
    event_time_us: TimeUs
    boot: Count
    seq: Count
    gpus: Annotated[int, Meta(ge=1, le=MAX_GPUS_PER_NODE * MAX_NODES_PER_JOB)]
    nodes: Nodes = ()
    price_usd_micros_per_gpu_hour: Price = 0
    submitted_us: TimeUs = 0
    gpu_us_done: Count = 0
    gpu_us_lost: Count = 0
    attempt: Count = 0
    generation: Count = 0
    reason: Text = ""
    gpu_milli: GpuMilli = 1000


class ServiceSample(Message, frozen=True, kw_only=True):
    """An inference service over the window that ends at `event_time_us`.

    `first_token_*_us` are quantiles of the time to first token; `violated` says that the window's
    p95 exceeded the service level, `revenue_usd_micros` is what its requests earned.
    """

    TYPE: ClassVar[str] = "telemetry.services"

    service: Name
    pool: Name
    event_time_us: TimeUs
    window_us: DurationUs
    boot: Count
    seq: Count
    gpus: Count
    requests_per_second: Positive
    queue_depth: Positive
    utilisation: Ratio
    first_token_p50_us: DurationUs
    first_token_p95_us: DurationUs
    error_ratio: Ratio
    violated: bool
    revenue_usd_micros: Price


class Tranche(Part, frozen=True, kw_only=True):
    """Nodes of one pool rented under one kind of billing.

    `pending_arrival_us` holds one expected arrival per node that was ordered and is not ready.
    `usd_micros_per_node_hour` is charged from the moment a node is ready.
    """

    billing: Billing
    nodes_ready: Count
    pending_arrival_us: Annotated[tuple[TimeUs, ...], Meta(max_length=MAX_NODES_PER_JOB)] = ()
    usd_micros_per_node_hour: Price = 0


class ResourceSample(Message, frozen=True, kw_only=True):
    """Load and capacity of something jobs depend on: rented GPUs, storage, network, databases.

    For `kind="capacity"` the resource is the pool, `tranches` says what is rented, `quote` what
    new work is offered at, `loyalty_ratio` how much less tenants with a record of use are told,
    `power_watts` what it draws, `carbon_milligrams_per_kwh` what that stands for (0: unknown), and
    `generations` how many changes each actuator has applied. Billing that the pool cannot use has
    no tranche. The other kinds are what jobs share beside GPUs: capacity in bytes or operations a
    second, `latency_us` of one access, what it costs. One that serves several pools has the pool
    "*".
    """

    TYPE: ClassVar[str] = "telemetry.resources"

    resource: Name
    kind: Literal["capacity", "storage", "network", "database"]
    pool: Name
    event_time_us: TimeUs
    boot: Count
    seq: Count
    load: Ratio
    capacity: Positive
    latency_us: DurationUs = 0
    gpu_model: str = ""
    gpus_per_node: Count = 0
    nodes_min: Count = 0
    nodes_max: Count = 0
    tranches: Annotated[tuple[Tranche, ...], Meta(max_length=len(BILLINGS))] = ()
    quote_usd_micros_per_gpu_hour: Price = 0
    energy_usd_micros_per_kwh: Price = 0
    power_watts: Positive = 0.0
    generations: dict[str, Count] = {}
    loyalty_ratio: Ratio = 0.0
    usd_micros_per_hour: Price = 0
    carbon_milligrams_per_kwh: Annotated[int, Meta(ge=0, le=10_000_000)] = 0


class TenantEvent(Message, frozen=True, kw_only=True):
    """A tenant saw a quote, the one it was told, and accepted or refused it, or cancelled work.

    With a `reason` the job was refused for its tenant's quota whatever the quote, or was accepted
    and is held back by quota or budget: it becomes demand when it is submitted.
    """

    TYPE: ClassVar[str] = "telemetry.tenants"

    tenant: Name
    segment: Name
    kind: Literal["accepted", "refused", "cancelled"]
    job: Name
    pool: Name
    event_time_us: TimeUs
    boot: Count
    seq: Count
    gpus: Count
    quote_usd_micros_per_gpu_hour: Price
    gpu_milli: GpuMilli = 1000
    reason: Text = ""


class ClockAnchor(Message, frozen=True, kw_only=True):
    """The fleet clock: fleet time = `anchor_us` + `speed` x (wall time - `anchor_wall_us`)."""

    TYPE: ClassVar[str] = "telemetry.clock"

    world: Name
    anchor_us: TimeUs
    anchor_wall_us: WallUs
    speed: Annotated[float, Meta(ge=0.0, le=100_000.0)]


FaultKind = Literal["xid", "thermal", "ecc", "lost", "reclaim_notice", "recovered"]


class Fault(Message, frozen=True, kw_only=True):
    """An edge: something broke, will be taken away at `deadline_us`, or came back.

    `recovery_action` is NVML's: 0 none, 1 reset, 2 reboot, 3 drain peers, 4 drain and reset.
    """

    TYPE: ClassVar[str] = "telemetry.faults"

    node: Name
    pool: Name
    kind: FaultKind
    event_time_us: TimeUs
    boot: Count
    seq: Count
    gpu_index: Count | None = None
    xid: Count | None = None
    recovery_action: Count | None = None
    deadline_us: TimeUs | None = None
    detail: Text = ""


class Offer(Message, frozen=True, kw_only=True):
    """What a provider asks for one GPU-hour, and for how long that may be believed."""

    TYPE: ClassVar[str] = "market.offers"

    provider: Name
    region: Name
    gpu_model: Name
    billing: Billing
    usd_micros_per_gpu_hour: Price
    availability: Ratio
    interruptions_per_node_hour: Positive = 0.0
    fetched_at_us: TimeUs
    valid_for_us: DurationUs
    source: Text = ""
