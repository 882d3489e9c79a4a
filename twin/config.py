"""What kind of world the twin is: fleet, workload, demand, service, faults and cadences.

Every number that is not measured from a trace stands here with where it comes from, or is called
an assumption. Frozen, and refused when a key is unknown, so that a run is named by its config.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gpuloop.schemas.messages.telemetry import BILLINGS, Billing
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US, Count, Name, Positive, Price, Ratio

MAX_LOYALTY: Final = 0.2
"""The most that a quote may be lower to tenants with a record of use."""

DEFAULT_START_US: Final = 1_508_112_000 * SECOND_US
"""2017-10-16T00:00:00Z, the Monday whose week has most of Philly's queueing."""

JobClass = Literal["interactive", "batch", "training"]
SizeClass = Literal["small", "long", "gang"]
FaultClass = Literal["thermal", "link", "ecc", "lost", "reclaim"]
Shape = Literal["bursty", "cyclical", "flash", "steady"]
PlacementStrategy = Literal["binpack", "spread", "affinity", "fragmentation"]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of configuration structs."""


class PoolConfig(_Part, frozen=True, kw_only=True):
    """One pool of equal nodes.

    `weights` says how much of each size class of work prefers this pool. The first quote is
    `quote_over_list` times the on-demand list price at the start, and prices may be set between
    the floor and ceiling ratios of it. Tenants with a record of use are told `loyalty_ratio` less
    than what is quoted.
    """

    name: Name
    gpu_model: Name
    gpus_per_node: Annotated[int, Meta(ge=1, le=64)] = 8
    nodes_per_rack: Annotated[int, Meta(ge=1)] = 8
    billings: tuple[Billing, ...] = BILLINGS
    on_demand_nodes: Count = 0
    spot_nodes: Count = 0
    nodes_min: Count
    nodes_max: Count
    quote_over_list: Positive
    price_floor: Positive = 0.25
    price_ceiling: Positive = 4.0
    loyalty_ratio: Annotated[float, Meta(ge=0.0, le=MAX_LOYALTY)] = 0.0
    spot_reclaims_per_node_hour: Positive = 0.0
    spot_availability: Ratio = 1.0
    weights: dict[SizeClass, float] = {}


class SegmentConfig(_Part, frozen=True, kw_only=True):
    """How a kind of tenant answers price.

    Reservation prices are lognormal around `median` times the pool's first quote. At that quote
    the share accepting is Phi(ln(median)/sigma) and the elasticity -phi(z)/(sigma (1 - Phi(z)))
    with z = -ln(median)/sigma; the defaults give -0.39 (interactive), -1.1 (batch) and -0.6
    (training), inside the published range of -0.3 to -2. `patience_us` is the median wait after
    which a tenant gives up.
    """

    median: Positive
    sigma: Positive
    patience_us: Count


class ServiceConfig(_Part, frozen=True, kw_only=True):
    """An inference service: M/M/c servers of one GPU each behind a diurnal stream of requests.

    Mean request: 1,155 prompt and 211 generated tokens (the hour of the Azure conversation trace
    of 2023). That an L4 generates about 350 tokens a second, hence 0.6 s per request, and reads a
    prompt in 0.45 s, are assumptions, as is the price (USD 0.15 and 0.60 per million tokens).
    """

    name: Name
    pool: Name
    requests_per_second: Positive
    diurnal: Ratio = 0.5
    burst_share: Ratio = 0.04
    burst_factor: Positive = 1.6
    service_seconds: Positive = 0.6
    prefill_us: Count = 450_000
    target_utilisation: Ratio = 0.7
    first_token_p95_us: Count = 2_000_000
    timeout_seconds: Positive = 30.0
    usd_micros_per_request: Price = 300


class FaultRates(_Part, frozen=True, kw_only=True):
    """Faults per node-hour of 8 GPUs before `fault_rate_factor`.

    Llama 3 405B: 148 GPU and 72 HBM3 failures in 54 days on 2,048 nodes give `lost` and `ecc`.
    Slowdowns are not counted there; that thermal and link faults are as frequent as HBM3 failures
    is an assumption.
    """

    lost: Positive = 5.6e-5
    ecc: Positive = 2.7e-5
    thermal: Positive = 2.7e-5
    link: Positive = 2.7e-5


OPENB_SHARES: Final[tuple[tuple[int, float], ...]] = (
    (810, 0.350), (470, 0.244), (320, 0.107), (650, 0.082), (230, 0.045), (460, 0.042),
    (590, 0.024), (160, 0.024), (550, 0.023), (220, 0.020), (370, 0.015), (110, 0.008),
)  # fmt: skip
"""Thousandths of a GPU and the share of pods that ask for them, among those of openb that ask for a
part of one; sizes of less than half a per cent are left out."""


class SharesConfig(_Part, frozen=True, kw_only=True):
    """Jobs that ask for a part of one GPU, where the workload itself does not say so.

    `sizes` are thousandths and their weights. Of openb's pods with one GPU 44 % ask for a part.
    """

    of_single_gpu_jobs: Ratio = 0.44
    sizes: Annotated[tuple[tuple[Annotated[int, Meta(ge=1, le=999)], Positive], ...],
                     Meta(min_length=1)] = OPENB_SHARES  # fmt: skip


class TenantConfig(_Part, frozen=True, kw_only=True):
    """What one tenant may have: `gpus` at once by pool, `usd_per_day` over all of them.

    Where nothing is said there is no limit. Jobs of a higher `priority` queue before others.
    """

    name: Name
    priority: int = 0
    gpus: dict[Name, Count] = {}
    usd_per_day: Positive | None = None


class FacilityConfig(_Part, frozen=True, kw_only=True):
    """Something that jobs share beside GPUs; no `pools` means all.

    `capacity` is in bytes per second, for a database in operations per second, and `per_gpu` what a
    job takes of it on average for each GPU at full speed: of storage for input and checkpoints, of
    the network only where it spans racks. `latency_us` is that of an idle one.
    """

    name: Name
    kind: Literal["storage", "network", "database"]
    pools: tuple[Name, ...] = ()
    capacity: Annotated[float, Meta(gt=0.0)]
    per_gpu: Positive
    latency_us: Count = 1_000
    usd_micros_per_hour: Price = 0


class CarbonConfig(_Part, frozen=True, kw_only=True):
    """The carbon of the region's electricity (`carbon`), and what it costs, by default nothing.

    `grams_per_kwh` replaces the region's published average. `swing` is by how much the dirtiest and
    the cleanest hour of a day differ from it. A price is added to that of energy.
    """

    grams_per_kwh: Positive | None = None
    swing: Ratio = 0.15
    usd_per_tonne: Positive = 0.0


class Injection(_Part, frozen=True, kw_only=True):
    """A fault that happens whatever the draws say; `subject` is a node, or a rack for `link`."""

    fault: FaultClass
    subject: Name
    after_us: Count


POOLS: Final[tuple[PoolConfig, ...]] = (
    PoolConfig(
        name="h100",
        gpu_model="h100-80gb",
        billings=("on_demand",),
        on_demand_nodes=24,
        nodes_min=8,
        nodes_max=40,
        quote_over_list=1.4,
        weights={"gang": 0.65, "long": 0.1},
    ),
    PoolConfig(
        name="a100",
        gpu_model="a100",
        on_demand_nodes=16,
        spot_nodes=8,
        nodes_min=8,
        nodes_max=48,
        quote_over_list=1.3,
        spot_reclaims_per_node_hour=0.01,
        spot_availability=0.95,
        weights={"gang": 0.35, "long": 0.6, "small": 0.1},
    ),
    PoolConfig(
        name="l4",
        gpu_model="l4",
        billings=("spot",),
        spot_nodes=16,
        nodes_min=4,
        nodes_max=32,
        quote_over_list=0.9,
        spot_reclaims_per_node_hour=0.01,
        spot_availability=0.97,
        weights={"long": 0.3, "small": 0.9},
    ),
)

SEGMENTS: Final[dict[JobClass, SegmentConfig]] = {
    "interactive": SegmentConfig(median=2.0, sigma=0.6, patience_us=HOUR_US),
    "batch": SegmentConfig(median=1.3, sigma=0.35, patience_us=6 * HOUR_US),
    "training": SegmentConfig(median=1.6, sigma=0.45, patience_us=24 * HOUR_US),
}

SERVICES: Final[tuple[ServiceConfig, ...]] = (
    ServiceConfig(name="chat", pool="l4", requests_per_second=32.0),
)


class TwinConfig(_Part, frozen=True, kw_only=True):
    """A world.

    `start_us` is moved to the trace's first midnight when it lies outside the trace.
    `arrival_share` keeps that share of the trace's jobs, chosen by job. `market_start` is the date
    in the price history at which the fleet clock starts; by default the price step of 30 January
    2025 falls three hours into a run. A cadence of 0 emits nothing. `placement` is how jobs that
    need part of a node find one: `affinity` looks for their tenant's warm nodes, `fragmentation`
    expects jobs like those that the pool now runs and queues. `shares` lets jobs ask for parts of a
    GPU; without it only those do whose trace says so. `service_parts` are the thousandths of a GPU
    that each server of a service takes, beside jobs and other servers; of all others it is whole
    ones. Tenants that are not among `tenants` have no limits and priority 0.
    """

    fleet: Name = "local"
    seed: Count = 0
    start_us: Count = DEFAULT_START_US
    shape: Shape = "bursty"
    arrival_share: Ratio = 0.85
    placement: PlacementStrategy = "binpack"
    pools: tuple[PoolConfig, ...] = POOLS
    segments: dict[JobClass, SegmentConfig] = msgspec.field(default_factory=lambda: dict(SEGMENTS))
    services: tuple[ServiceConfig, ...] = SERVICES
    provider: Name = "gcp"
    region: Name = "us-central1"
    market_start: str = "2025-01-29T21:00:00+00:00"
    energy_usd_micros_per_kwh: Price = 80_000
    job_failure_share: Ratio = 0.305
    fault_rates: FaultRates = FaultRates()
    fault_rate_factor: Positive = 100.0
    injections: tuple[Injection, ...] = ()
    gpu_sample_every_us: Count = 10 * SECOND_US
    blank_share: Ratio = 0.002
    progress_every_us: Count = 5 * MINUTE_US
    checkpoint_every_us: Count = 30 * MINUTE_US
    migration_pause_us: Count = 60 * SECOND_US
    migration_failure_share: Ratio = 0.02
    shares: SharesConfig | None = None
    service_parts: dict[Name, Annotated[int, Meta(ge=1, le=999)]] = {}
    tenants: tuple[TenantConfig, ...] = ()
    facilities: tuple[FacilityConfig, ...] = ()
    carbon: CarbonConfig = CarbonConfig()

    def pool(self, name: str) -> PoolConfig | None:
        """Return a pool by name."""
        return next((pool for pool in self.pools if pool.name == name), None)


MAX_ATTEMPTS: Final = 8
"""Starts after which a job that keeps losing its nodes is given up."""

RECLAIM_NOTICE_US: Final = 120 * SECOND_US
WAITING_GRACE_US: Final = 5 * MINUTE_US
WORK_PER_WAIT: Final = 10
"""A job is late when it waits for its first start beyond the grace and this part of its work."""

OFFER_VALID_US: Final = 2 * HOUR_US
