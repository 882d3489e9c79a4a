"""From the configuration and workload of node-level worlds to the arrays of this level.

Jobs meet the same luck at both levels: prices they accept, patience, pool, failure. What befalls
nodes is drawn anew.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.messages.telemetry import BILLINGS
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin import machines
from gpuloop.twin.capacity import COLD_START_SECONDS, MARKS, cold_start_us
from gpuloop.twin.config import PoolConfig, ServiceConfig, TwinConfig
from gpuloop.twin.demand import choose_pool, job_class, patience_us, profile, reservation_price
from gpuloop.twin.draws import hash64, normal, uniform
from gpuloop.twin.fit import WHOLE_GPU
from gpuloop.twin.hardware import SERVICE_ACTIVITY
from gpuloop.twin.market import Market, build_market
from gpuloop.twin.pool_level.arrays import SPARE_NODES, Rules, Specs
from gpuloop.twin.pool_level.worlds import PoolWorlds
from gpuloop.twin.services import request_rate
from gpuloop.twin.workload import JobSpec, Workload, build_workload, kept

KINDS: Final = ("interactive", "batch", "training")
BOOTS: Final = 16
"""How many cold starts a node slot has until they come again."""


def build_pool_worlds(
    configs: Sequence[TwinConfig],
    *,
    hours: int,
    traces: Path | None,
    workload: str | Workload | list[Workload] = "auto",
    slots: int = 4096,
    paired: bool = False,
    copies: int = 1,
    requests: NDArray[np.float64] | None = None,
) -> PoolWorlds:
    """Return worlds side by side that live for `hours`; row w x pools + p is pool p of world w.

    All of them come `copies` times, one set after the other: the same jobs and the same luck.

    They live on the same workload, or each on its own of a list. Where they are `paired` their
    nodes meet the luck they have at the other level, which takes longer to look up than to draw.
    `requests` (minutes,) come to every service per second in the minute that ends so many minutes
    after the start, instead of those that it draws; where it is NaN, and after it, those hold.

    Raises:
        ValueError: the workload does not exist, or a world has what this level does not know:
            a placement other than binpack, jobs that share GPUs, limited tenants, shared
            facilities, a price of carbon, faults that are called for, two services of one pool. Or
            the requests last longer than the worlds.
        SlotsFull: more jobs run when a world begins than there are slots.

    """
    for config in configs:
        _refuse_what_is_unknown(config)
    jobs = workload if isinstance(workload, list) else [workload] * len(configs)
    worlds = [_World(config, traces, one, hours) for config, one in zip(configs, jobs, strict=True)]
    specs = _specs([pool for world in worlds for pool in world.jobs])
    rules = _rules(configs, worlds, hours, paired)
    if requests is not None:
        rules = _requested(rules, requests)
    rules = _copied(rules, copies, jobs=len(specs.at_us))
    columns: dict[str, NDArray[Any]] = {
        name: np.tile(column, copies) for name, column in specs._asdict().items()
    }
    specs = Specs(**columns)
    found = PoolWorlds(rules, specs, slots=slots)
    loyalty = [pool.loyalty_ratio for config in configs for pool in config.pools] * copies
    found.price(found.state.quote, np.array(loyalty))
    return found


def _refuse_what_is_unknown(config: TwinConfig) -> None:
    """Raise ValueError where a world asks for what would silently not happen at this level."""
    if config.placement != "binpack":
        raise ValueError(f"jobs are placed by {config.placement}; this level knows binpack only")
    if config.shares is not None or config.service_parts:
        raise ValueError("GPUs are shared; this level knows whole GPUs only")
    if config.tenants:
        raise ValueError("tenants have limits or priorities; this level knows neither")
    if config.facilities:
        names = ", ".join(facility.name for facility in config.facilities)
        raise ValueError(f"jobs depend on {names}; this level knows no shared facilities")
    if config.carbon.usd_per_tonne:
        raise ValueError("carbon costs money hour by hour; this level has one price of energy")
    if config.injections:
        faults = ", ".join(f"{one.fault} of {one.subject}" for one in config.injections)
        raise ValueError(
            f"this level knows drawn faults only, and none that is called for: {faults}"
        )
    for pool, services in Counter(service.pool for service in config.services).items():
        if services > 1:
            raise ValueError(f"{pool} serves more than one service; this level knows one")


class _World:
    """One world's inputs, by pool."""

    def __init__(
        self, config: TwinConfig, traces: Path | None, workload: str | Workload, hours: int
    ) -> None:
        jobs = build_workload(
            traces, workload, start_us=config.start_us, seed=config.seed, shape=config.shape
        )
        self.start_us: Final = jobs.start_us
        self.market: Final = build_market(
            traces,
            region=config.region,
            fleet_start_us=jobs.start_us,
            market_start=config.market_start,
        )
        self.quotes: Final = [
            round(self.market.price(pool.gpu_model, "on_demand", jobs.start_us)
                  * pool.quote_over_list, -4)
            for pool in config.pools
        ]  # fmt: skip
        self.jobs: Final = _jobs_by_pool(config, jobs, hours, self.quotes)


Pair = tuple[TwinConfig, _World, int, PoolConfig]
Numbers = tuple[float, ...]
PoolJobs = tuple[list[Numbers], list[Numbers]]
"""The jobs that run when a pool begins, widest first, and those that arrive."""


def _jobs_by_pool(
    config: TwinConfig, workload: Workload, hours: int, quotes: Sequence[float]
) -> list[PoolJobs]:
    start_us = workload.start_us
    places = {pool.name: place for place, pool in enumerate(config.pools)}
    found: list[PoolJobs] = [([], []) for _ in config.pools]
    tenants: dict[str, int] = {}

    def add(spec: JobSpec, running: bool) -> None:
        place = places[choose_pool(config.seed, spec, config.pools).name]
        tenant = tenants.setdefault(spec.tenant, len(tenants))
        found[place][0 if running else 1].append(
            _numbers(config, config.pools[place], spec, tenant, quotes[place])
        )

    running = kept(workload.running_at(start_us), config.arrival_share, config.seed)
    for spec in sorted(running, key=lambda s: (-s.gpus, s.submitted_us, s.job)):
        add(spec, running=True)
    first = start_us // HOUR_US
    for hour in range(first, first + hours + 1):
        for spec in kept(workload.arrivals(hour), config.arrival_share, config.seed):
            if spec.submitted_us >= start_us:
                add(spec, running=False)
    return found


def _numbers(
    config: TwinConfig, pool: PoolConfig, spec: JobSpec, tenant: int, quote: float
) -> Numbers:
    """Return a job as the row of `Specs` it becomes, but for what becomes of it."""
    if spec.gpu_milli != WHOLE_GPU:
        raise ValueError(f"{spec.job} asks for a part of a GPU; this level knows whole GPUs only")
    kind, seed = job_class(spec), config.seed
    segment, model = config.segments[kind], machines.GPU_MODELS[pool.gpu_model]
    activity = machines.activity(profile(seed, spec.job).utilisation)
    return (
        spec.submitted_us,
        spec.gpus,
        spec.work_us,
        KINDS.index(kind),
        tenant,
        reservation_price(seed, spec.job, segment, round(quote)),
        patience_us(seed, spec.job, segment),
        normal(seed, "start", spec.job, 1),
        uniform(seed, "fails", spec.job) < config.job_failure_share,
        machines.gpu_watts(model, activity, 1.0, 1.0) - model.idle_watts,
    )


def _specs(pools: Sequence[PoolJobs]) -> Specs:
    rows = [one for running, arriving in pools for one in (*running, *arriving)]
    columns: list[NDArray[Any]] = [np.array(column) for column in zip(*rows, strict=True)]
    if not rows:
        columns = [np.zeros(0) for _ in range(10)]
    types = (*("i8",) * 5, "f8", "i8", "f8", "?", "f8")
    told = [column.astype(kind) for column, kind in zip(columns, types, strict=True)]
    nothing_yet = [np.full(len(rows), -1), np.full(len(rows), -1), np.zeros(len(rows), np.int64)]
    return Specs(*told, *nothing_yet)


def _rules(
    configs: Sequence[TwinConfig], worlds: Sequence[_World], hours: int, paired: bool
) -> Rules:
    pairs = [
        (config, world, place, pool)
        for config, world in zip(configs, worlds, strict=True)
        for place, pool in enumerate(config.pools)
    ]

    def ints(values: Sequence[Any]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)

    def floats(values: Sequence[Any]) -> NDArray[np.float64]:
        return np.array(values, dtype=np.float64)

    counts = [tuple(map(len, world.jobs[place])) for _, world, place, _ in pairs]
    ends = np.cumsum([running + arriving for running, arriving in counts])
    first = ends - ints([running + arriving for running, arriving in counts])
    services = [_service_of(config, pool) for config, _, _, pool in pairs]
    models = [machines.GPU_MODELS[pool.gpu_model] for *_, pool in pairs]
    busy = machines.activity(SERVICE_ACTIVITY)
    slots = max((pool.nodes_max for *_, pool in pairs), default=0) + SPARE_NODES
    named = [(pair, _names(pair[3], slots)) for pair in pairs]
    return Rules(
        seed=np.array([hash64(c.seed, p.name) for c, _, _, p in pairs], dtype=np.uint64),
        start_us=ints([world.start_us for _, world, _, _ in pairs]),
        first=first,
        arrivals=first + ints([running for running, _ in counts]),
        last=ends.astype(np.int64),
        gpus_per_node=ints([p.gpus_per_node for *_, p in pairs]),
        nodes_per_rack=ints([p.nodes_per_rack for *_, p in pairs]),
        billings=np.array([[b in p.billings for b in BILLINGS] for *_, p in pairs]),
        initial=ints([[p.on_demand_nodes, p.spot_nodes] for *_, p in pairs]),
        nodes_min=ints([p.nodes_min for *_, p in pairs]),
        nodes_max=ints([p.nodes_max for *_, p in pairs]),
        price=ints([_prices(w.market, p, w.start_us, hours) for _, w, _, p in pairs]),
        shortage=np.array([_shortages(c, p, w.start_us, hours) for c, w, _, p in pairs]),
        reference=floats([world.quotes[place] for _, world, place, _ in pairs]),
        price_floor=floats([p.price_floor for *_, p in pairs]),
        price_ceiling=floats([p.price_ceiling for *_, p in pairs]),
        reclaims=floats([p.spot_reclaims_per_node_hour for *_, p in pairs]),
        lost=floats([c.fault_rates.lost * c.fault_rate_factor for c, *_ in pairs]),
        ecc=floats([c.fault_rates.ecc * c.fault_rate_factor for c, *_ in pairs]),
        cold_start_us=ints([_cold_starts(c, p, names) for (c, _, _, p), names in named]),
        luck=_luck(pairs, [names for _, names in named], hours if paired else 0),
        checkpoint_us=ints([c.checkpoint_every_us for c, *_ in pairs]),
        idle_watts=floats([model.idle_watts for model in models]),
        node_watts=floats([model.node_watts for model in models]),
        energy_price=floats([c.energy_usd_micros_per_kwh for c, *_ in pairs]),
        service=ints([service is not None for service in services]),
        service_seconds=floats([s.service_seconds if s else 1.0 for s in services]),
        service_target=floats([s.target_utilisation if s else 1.0 for s in services]),
        service_prefill_us=ints([s.prefill_us if s else 0 for s in services]),
        service_p95_us=ints([s.first_token_p95_us if s else 0 for s in services]),
        service_timeout=floats([s.timeout_seconds if s else 1.0 for s in services]),
        service_price=floats([s.usd_micros_per_request if s else 0.0 for s in services]),
        service_watts=floats([(m.limit_watts - m.idle_watts) * busy for m in models]),
        service_rate=_request_rates(pairs, services, hours),
    )


def _requested(rules: Rules, requests: NDArray[np.float64]) -> Rules:
    """Return rules whose services get these requests where they are known."""
    minutes = len(requests)
    if minutes > rules.service_rate.shape[1]:
        raise ValueError(f"{minutes} minutes of requests for {rules.service_rate.shape[1]}")
    given = np.isfinite(requests) & (rules.service[:, None] > 0)
    rates = rules.service_rate.copy()
    rates[:, :minutes] = np.where(given, requests, rates[:, :minutes])
    return rules._replace(service_rate=rates)


def _copied(rules: Rules, copies: int, jobs: int) -> Rules:
    """Return rules several times; each copy's jobs come after those of the one before."""
    rows = len(rules.first)
    told: dict[str, NDArray[Any]] = {
        name: np.concatenate([column] * copies) for name, column in rules._asdict().items()
    }
    offset = np.repeat(np.arange(copies) * jobs, rows)
    for name in ("first", "arrivals", "last"):
        told[name] = told[name] + offset
    return Rules(**told)


def _names(pool: PoolConfig, slots: int) -> list[str]:
    """Return the names that the nodes of a pool have at the other level, by column."""
    return [f"{pool.name}-{MARKS[b]}{slot:03d}" for b in BILLINGS for slot in range(slots)]


def _cold_starts(config: TwinConfig, pool: PoolConfig, names: Sequence[str]) -> list[list[int]]:
    spot = names[len(names) // 2 :]
    mine = {*names[: pool.nodes_max], *spot[: pool.nodes_max]}
    usual = [round(COLD_START_SECONDS * SECOND_US)] * BOOTS
    return [
        [cold_start_us(config.seed, name, boot) for boot in range(BOOTS)] if name in mine else usual
        for name in names
    ]


def _luck(pairs: Sequence[Pair], names: Sequence[Sequence[str]], hours: int) -> NDArray[np.float64]:
    """Return what is drawn for each node and hour at the other level."""
    found = np.ones((len(pairs), len(names[0]) if names else 0, hours, 3))
    for row, (config, world, _, _) in enumerate(pairs):
        first = world.start_us // HOUR_US
        for column, name in enumerate(names[row]):
            for hour in range(hours):
                found[row, column, hour] = [
                    uniform(config.seed, what, name, first + hour)
                    for what in ("lost", "ecc", "reclaim")
                ]
    return found


def _service_of(config: TwinConfig, pool: PoolConfig) -> ServiceConfig | None:
    return next((service for service in config.services if service.pool == pool.name), None)


def _prices(market: Market, pool: PoolConfig, start_us: int, hours: int) -> list[list[int]]:
    first = start_us // HOUR_US
    return [
        [
            market.price(pool.gpu_model, billing, max(hour * HOUR_US, start_us))
            if billing in pool.billings
            else 0
            for billing in BILLINGS
        ]
        for hour in range(first, first + hours + 1)
    ]


def _shortages(config: TwinConfig, pool: PoolConfig, start_us: int, hours: int) -> list[bool]:
    first = start_us // HOUR_US
    return [
        uniform(config.seed, "shortage", pool.name, hour) > pool.spot_availability
        for hour in range(first, first + hours + 25)
    ]


def _request_rates(
    pairs: Sequence[Pair], services: Sequence[ServiceConfig | None], hours: int
) -> NDArray[np.float64]:
    if not any(services):
        return np.zeros((len(pairs), 1))
    minutes = hours * 60 + 1
    rates = np.zeros((len(pairs), minutes))
    for row, ((config, world, _, _), service) in enumerate(zip(pairs, services, strict=True)):
        if service is not None:
            first = world.start_us // MINUTE_US
            rates[row] = [
                request_rate(service, config.seed, (first + minute) * MINUTE_US)
                for minute in range(minutes)
            ]
    return rates
