"""Messages between our own processes: columnar frames, partial sums, journals, snapshots.

These are msgpack, not JSON: no outsider reads them, and a frame is mostly float32 columns.
"""

from typing import Annotated, ClassVar

from msgspec import Meta

from gpuloop.schemas.messages.base import Message, Part
from gpuloop.schemas.messages.state import ClassState, QueueState, QuoteState, ServiceState
from gpuloop.schemas.messages.telemetry import Tranche
from gpuloop.schemas.units import Count, Digest, Name, Price, Ratio, TimeUs, WallUs

FRAME_COLUMNS: tuple[str, ...] = (
    "utilisation",
    "sm_active",
    "tensor_active",
    "memory_used",
    "temperature_celsius",
    "power_watts",
    "sm_clock_mhz",
    "throttled",
    "nvlink_bytes_per_second",
    "pcie_bytes_per_second",
    "ecc_corrected",
    "ecc_uncorrected",
)


class Frame(Message, frozen=True, kw_only=True):
    """Samples of one `telemetry.gpu` partition, packed by column; or a tick when there are none.

    `columns[c]` is little-endian float32, one value per GPU in sample order, NaN where missing;
    sample i owns the next `gpus[i]` values. `tick_us` is fleet time and null on a data frame.
    """

    TYPE: ClassVar[str] = "internal.frames"

    partition: Count
    tick_us: TimeUs | None
    nodes: tuple[Name, ...] = ()
    pools: tuple[Name, ...] = ()
    racks: tuple[Name, ...] = ()
    gpu_models: tuple[Name, ...] = ()
    billings: tuple[str, ...] = ()
    event_time_us: tuple[TimeUs, ...] = ()
    boots: tuple[Count, ...] = ()
    seqs: tuple[Count, ...] = ()
    gpus: tuple[Count, ...] = ()
    columns: dict[str, bytes] = {}


class FeatureSum(Part, frozen=True, kw_only=True):
    """Enough to merge a mean over shards: sum, count present, count expected, newest event."""

    total: float
    present: Count
    expected: Count
    newest_us: TimeUs


class Capacity(Part, frozen=True, kw_only=True):
    """The last `telemetry.resources` sample of a pool's rented capacity."""

    event_time_us: TimeUs
    gpu_model: str
    gpus_per_node: Count
    nodes_min: Count
    nodes_max: Count
    tranches: Annotated[tuple[Tranche, ...], Meta(max_length=2)]
    quote_usd_micros_per_gpu_hour: Price
    energy_usd_micros_per_kwh: Price
    generations: dict[str, Count]
    loyalty_ratio: Ratio = 0.0


class Partial(Message, frozen=True, kw_only=True):
    """What one shard (a partition of one source topic) knows about one pool; it replaces the last.

    A shard fills only the parts its topic feeds; `tick_us` is the tick it was written at and
    `heard_us` the time of the newest event about the pool's running jobs. `*_milli` are the
    thousandths of jobs that share devices, which the counts of GPUs leave out.
    """

    TYPE: ClassVar[str] = "internal.partials"

    pool: Name
    shard: Name
    tick_us: TimeUs
    nodes_heard: Count = 0
    features: dict[str, FeatureSum] = {}
    gpus_allocated: Count = 0
    running_jobs: Count = 0
    queues: tuple[QueueState, ...] = ()
    arrived_gpus: Count = 0
    arrived_jobs: Count = 0
    refused_jobs: Count = 0
    services: tuple[ServiceState, ...] = ()
    capacity: Capacity | None = None
    heard_us: TimeUs | None = None
    classes: tuple[ClassState, ...] = ()
    quotes: tuple[QuoteState, ...] = ()
    allocated_milli: Count = 0
    arrived_milli: Count = 0


class Segment(Part, frozen=True, kw_only=True):
    """Records [first, last] of one partition, consumed in this order within a cut."""

    topic: Name
    partition: Count
    first: Count
    last: Count


class Cut(Message, frozen=True, kw_only=True):
    """What a component consumed in one step of its shell, written before its outputs leave.

    Segments are applied in order, then `ticks_us`. `outputs` and `outputs_sha256` let a replay
    prove itself cut by cut.
    """

    TYPE: ClassVar[str] = "internal.journal"

    component: Name
    run: Name
    number: Count
    now_us: TimeUs
    wall_us: WallUs
    segments: tuple[Segment, ...]
    ticks_us: tuple[TimeUs, ...]
    outputs: Count
    outputs_sha256: Digest


class Snapshot(Message, frozen=True, kw_only=True):
    """A component's state after cut `number`; chunked, because a record has a size limit.

    `positions` are the next offsets to consume per `topic/partition`; `journal_offset` is the next
    journal record to follow.
    """

    TYPE: ClassVar[str] = "internal.snapshots"

    component: Name
    state_version: Count
    number: Count
    now_us: TimeUs
    wall_us: WallUs
    positions: dict[str, Count]
    journal_offset: Count
    state_sha256: Digest
    chunk: Count
    chunks: Count
    state: bytes
