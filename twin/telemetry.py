"""What the world says about itself: the only way anything of it leaves.

Messages carry true money and capacity and noisy, sometimes missing sensors. Capacity is reported
once a minute and whenever nodes, prices or orders change, so a reader that integrates it as a step
function reaches the twin's own books.
"""

from collections.abc import Sequence
from math import ceil
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.messages.telemetry import (
    Billing,
    Fault,
    FaultKind,
    GpuSample,
    JobEvent,
    JobKind,
    Offer,
    ResourceSample,
    ServiceSample,
    TenantEvent,
    Tranche,
)
from gpuloop.schemas.units import MINUTE_US, SECOND_US
from gpuloop.twin.carbon import milligrams_per_kwh, usd_micros_per_kwh
from gpuloop.twin.config import OFFER_VALID_US
from gpuloop.twin.draws import Floats, hash64, uniform_grid
from gpuloop.twin.engine import WORLD_BOOT, Engine
from gpuloop.twin.facilities import Strain
from gpuloop.twin.fit import WHOLE_GPU
from gpuloop.twin.hardware import Hardware, Rows
from gpuloop.twin.services import Window
from gpuloop.twin.sharing import free_gpus, gpu_us
from gpuloop.twin.state import RENTED, Job, Node

ECC_CORRECTED_PER_SECOND: Final = 2.0
UTILISATION_NOISE: Final = 0.05
CELSIUS_NOISE: Final = 0.7
POWER_NOISE: Final = 0.03
TRAFFIC_NOISE: Final = 0.1


class Telemetry:
    """Writes the messages of a world."""

    def __init__(self, engine: Engine, hardware: Hardware) -> None:
        self._engine = engine
        self._hardware = hardware
        self._fleet = engine.config.fleet
        self._gpu_ids: dict[tuple[str, int], tuple[str, ...]] = {}
        self._bases: dict[str, int] = {}

    def job(
        self, job: Job, kind: JobKind, *, pool: str = "", lost_gpu_us: int = 0, reason: str = ""
    ) -> None:
        """Report what happened to a job."""
        engine = self._engine
        seq = engine.next_seq("jobs")
        message = JobEvent(
            fleet=self._fleet,
            job=job.id,
            kind=kind,
            pool=pool or job.pool,
            tenant=job.tenant,
            job_class=job.job_class,
            event_time_us=engine.now_us,
            boot=WORLD_BOOT,
            seq=seq,
            gpus=job.gpus,
            nodes=tuple(job.nodes),
            price_usd_micros_per_gpu_hour=job.price,
            submitted_us=job.submitted_us,
            gpu_us_done=gpu_us(job, job.done_us),
            gpu_us_lost=lost_gpu_us,
            attempt=job.attempt,
            generation=job.generation,
            reason=reason,
            gpu_milli=job.gpu_milli,
        )
        engine.emit("telemetry.jobs", job.id, message, "jobs", seq)

    def tenant(
        self,
        job: Job,
        kind: Literal["accepted", "refused", "cancelled"],
        quote: int,
        reason: str = "",
    ) -> None:
        """Report what a tenant said to a quote, or that it gave up waiting.

        A `reason` says that quota or budget refuses the job or holds it back.
        """
        engine = self._engine
        seq = engine.next_seq("tenants")
        message = TenantEvent(
            fleet=self._fleet,
            tenant=job.tenant,
            segment=job.job_class,
            kind=kind,
            job=job.id,
            pool=job.pool,
            event_time_us=engine.now_us,
            boot=WORLD_BOOT,
            seq=seq,
            gpus=job.gpus,
            quote_usd_micros_per_gpu_hour=quote,
            gpu_milli=job.gpu_milli,
            reason=reason,
        )
        engine.emit("telemetry.tenants", job.tenant, message, "tenants", seq)

    def fault(
        self,
        node: Node,
        kind: FaultKind,
        *,
        gpu_index: int | None = None,
        xid: int | None = None,
        recovery_action: int | None = None,
        deadline_us: int | None = None,
        detail: str = "",
    ) -> None:
        """Report an edge: something broke, will be taken away, or came back."""
        engine = self._engine
        seq = engine.next_seq("faults")
        message = Fault(
            fleet=self._fleet,
            node=node.id,
            pool=node.pool,
            kind=kind,
            event_time_us=engine.now_us,
            boot=WORLD_BOOT,
            seq=seq,
            gpu_index=gpu_index,
            xid=xid,
            recovery_action=recovery_action,
            deadline_us=deadline_us,
            detail=detail,
        )
        engine.emit("telemetry.faults", node.id, message, "faults", seq)

    def service(self, name: str, rate: float, window: Window, revenue: int) -> None:
        """Report the minute of a service that ends now."""
        engine = self._engine
        seq = engine.next_seq("services")
        part = engine.config.service_parts.get(name, WHOLE_GPU)
        message = ServiceSample(
            fleet=self._fleet,
            service=name,
            pool=engine.services[name].pool,
            event_time_us=engine.now_us,
            window_us=MINUTE_US,
            boot=WORLD_BOOT,
            seq=seq,
            gpus=ceil(engine.state.services[name].gpus * part / WHOLE_GPU),
            requests_per_second=round(rate, 3),
            queue_depth=round(window.queue_depth, 3),
            utilisation=round(window.utilisation, 4),
            first_token_p50_us=window.first_token_p50_us,
            first_token_p95_us=window.first_token_p95_us,
            error_ratio=round(window.error_ratio, 4),
            violated=window.violated,
            revenue_usd_micros=revenue,
        )
        engine.emit("telemetry.services", name, message, "services", seq)

    def capacity(self, name: str) -> None:
        """Report a pool's capacity and prices, and let the books charge exactly that."""
        engine = self._engine
        config, pool = engine.pools[name], engine.pool(name)
        nodes = engine.nodes_of[name]
        tranches = tuple(self._tranche(name, billing, nodes) for billing in config.billings)
        ready = sum(tranche.nodes_ready for tranche in tranches) * config.gpus_per_node
        free = sum(free_gpus(node) for node in nodes if node.phase in RENTED)
        carbon, now = engine.config.carbon, engine.now_us
        milligrams = milligrams_per_kwh(carbon, engine.config.region, now)
        energy_price = engine.config.energy_usd_micros_per_kwh
        energy_price += usd_micros_per_kwh(carbon, milligrams)
        seq = engine.next_seq("resources")
        message = ResourceSample(
            fleet=self._fleet,
            resource=name,
            kind="capacity",
            pool=name,
            event_time_us=engine.now_us,
            boot=WORLD_BOOT,
            seq=seq,
            load=round((ready - free) / ready, 4) if ready else 0.0,
            capacity=float(ready),
            gpu_model=config.gpu_model,
            gpus_per_node=config.gpus_per_node,
            nodes_min=config.nodes_min,
            nodes_max=config.nodes_max,
            tranches=tranches,
            quote_usd_micros_per_gpu_hour=pool.quote,
            loyalty_ratio=config.loyalty_ratio,
            energy_usd_micros_per_kwh=energy_price,
            carbon_milligrams_per_kwh=milligrams,
            power_watts=float(pool.power_watts),
            generations={"scaling": pool.scaling_generation, "pricing": pool.pricing_generation},
        )
        engine.emit("telemetry.resources", name, message, "resources", seq)
        cost = sum(t.nodes_ready * t.usd_micros_per_node_hour for t in tranches)
        books = engine.state.books
        books.flow(name, "capacity_cost", cost, now)
        books.flow(name, "energy_cost", pool.power_watts * energy_price, now)
        books.emit(name, pool.power_watts * milligrams, now)

    def facility(self, strain: Strain) -> None:
        """Report the load of something that jobs share beside GPUs."""
        engine, facility = self._engine, strain.facility
        seq = engine.next_seq("resources")
        message = ResourceSample(
            fleet=self._fleet,
            resource=facility.name,
            kind=facility.kind,
            pool=facility.pools[0] if len(facility.pools) == 1 else "*",
            event_time_us=engine.now_us,
            boot=WORLD_BOOT,
            seq=seq,
            load=round(min(strain.given / facility.capacity, 1.0), 4),
            capacity=facility.capacity,
            latency_us=strain.latency_us,
            usd_micros_per_hour=facility.usd_micros_per_hour,
        )
        engine.emit("telemetry.resources", facility.name, message, "resources", seq)

    def _tranche(self, name: str, billing: Billing, nodes: Sequence[Node]) -> Tranche:
        engine = self._engine
        mine = [node for node in nodes if node.billing == billing]
        price = engine.pool(name).usd_micros_per_gpu_hour[billing]
        return Tranche(
            billing=billing,
            nodes_ready=sum(node.phase in RENTED for node in mine),
            pending_arrival_us=tuple(
                sorted(node.due_us for node in mine if node.phase not in RENTED)
            ),
            usd_micros_per_node_hour=price * engine.pools[name].gpus_per_node,
        )

    def offers(self) -> None:
        """Publish what every kind of capacity in the fleet costs upstream."""
        engine, config = self._engine, self._engine.config
        for name, pool in engine.pools.items():
            for billing in pool.billings:
                spot = billing == "spot"
                seq = engine.next_seq("market")
                message = Offer(
                    fleet=self._fleet,
                    provider=config.provider,
                    region=config.region,
                    gpu_model=pool.gpu_model,
                    billing=billing,
                    usd_micros_per_gpu_hour=engine.pool(name).usd_micros_per_gpu_hour[billing],
                    availability=pool.spot_availability if spot else 1.0,
                    interruptions_per_node_hour=pool.spot_reclaims_per_node_hour if spot else 0.0,
                    fetched_at_us=engine.now_us,
                    valid_for_us=OFFER_VALID_US,
                    source=engine.market.source,
                )
                key = f"{config.provider}/{config.region}/{pool.gpu_model}"
                engine.emit("market.offers", key, message, "market", seq)

    def gpus(self) -> None:
        """Report every working node's GPUs."""
        for pool in self._engine.pools:
            nodes = self._engine.rented(pool)
            if nodes:
                self._sample(pool, nodes)

    def _sample(self, pool: str, nodes: list[Node]) -> None:
        engine, config = self._engine, self._engine.config
        rows = [self._hardware.rows(node) for node in nodes]
        celsius = np.array([self._hardware.temperatures(node) for node in nodes])
        columns = _with_noise(self._noise_bases(nodes), engine.now_us, rows, celsius)
        blanks = self._blanks(nodes, columns)
        has_nvlink = engine.models[pool].nvlink_bytes_per_second > 0
        for index, node in enumerate(nodes):
            node.seq += 1
            values: list[tuple[float | None, ...]] = [tuple(column[index]) for column in columns]
            for field in blanks.get(index, ()):
                values[field] = tuple(None for _ in values[field])
            message = GpuSample(
                fleet=config.fleet,
                node=node.id,
                pool=pool,
                rack=node.rack,
                gpu_model=engine.pools[pool].gpu_model,
                billing=node.billing,
                event_time_us=engine.now_us,
                boot=node.boot,
                seq=node.seq,
                gpu_ids=self._ids(node),
                utilisation=values[0],
                sm_active=values[1],
                tensor_active=values[2],
                memory_used=values[3],
                temperature_celsius=values[4],
                power_watts=values[5],
                sm_clock_mhz=values[6],
                throttle_reasons=tuple(rows[index].throttle),
                nvlink_bytes_per_second=values[7] if has_nvlink else (),
                pcie_bytes_per_second=values[8],
                ecc_corrected=tuple(corrected_errors(node, engine.now_us)),
                ecc_uncorrected=tuple(node.ecc_uncorrected),
            )
            engine.emit("telemetry.gpu", node.id, message, node.id, node.seq, node.boot)

    def _noise_bases(self, nodes: list[Node]) -> NDArray[np.uint64]:
        for node in nodes:
            if node.id not in self._bases:
                self._bases[node.id] = hash64(self._engine.config.seed, "noise", node.id)
        return np.array([self._bases[node.id] for node in nodes], dtype=np.uint64)

    def _blanks(self, nodes: list[Node], columns: list[list[list[float]]]) -> dict[int, list[int]]:
        """Return which fields of which nodes a collector failed to read this time."""
        share = self._engine.config.blank_share
        bases = self._noise_bases(nodes)
        grid = uniform_grid(bases, len(columns), self._engine.now_us * 16 + 15) < share
        found: dict[int, list[int]] = {}
        for node, field in np.argwhere(grid).tolist():
            found.setdefault(node, []).append(field)
        return found

    def _ids(self, node: Node) -> tuple[str, ...]:
        found = self._gpu_ids.get((node.id, node.boot))
        if found is None:
            seed = self._engine.config.seed
            found = tuple(
                _uuid(hash64(seed, "gpu", node.id, node.boot, index), index)
                for index in range(len(node.slots))
            )
            self._gpu_ids[node.id, node.boot] = found
        return found


def corrected_errors(node: Node, now_us: int) -> list[int]:
    """Return a node's corrected ECC errors so far, with those of memory that is failing now."""
    counts = list(node.ecc_corrected)
    if node.ecc_gpu >= 0:
        seconds = (now_us - node.ecc_since_us) / SECOND_US
        counts[node.ecc_gpu] += int(seconds * ECC_CORRECTED_PER_SECOND)
    return counts


def _uuid(bits: int, index: int) -> str:
    text = f"{bits:016x}{bits ^ 0x5DEECE66D:016x}"
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:31]}{index:x}"


def _with_noise(
    bases: NDArray[np.uint64], now_us: int, rows: list[Rows], celsius: Floats
) -> list[list[list[float]]]:
    """Return sensor readings, nodes x GPUs per field, in the order that `_sample` reads them."""
    gpus = celsius.shape[1]

    def grid(field: int) -> Floats:
        return np.array([row[field] for row in rows])

    def noise(salt: int) -> Floats:
        return uniform_grid(bases, gpus, now_us * 16 + salt) * 2.0 - 1.0

    factor = 1.0 + UTILISATION_NOISE * noise(0)
    ratios = [np.clip(grid(field) * factor, 0.0, 1.0) for field in (0, 1, 2)]
    traffic = 1.0 + TRAFFIC_NOISE * noise(1)
    readings = [
        *ratios,
        grid(3),
        celsius + CELSIUS_NOISE * noise(2),
        grid(6) * (1.0 + POWER_NOISE * noise(3)),
        grid(7),
        grid(4) * traffic,
        grid(5) * traffic,
    ]
    digits = (3, 3, 3, 3, 1, 1, 0, 0, 0)
    rounded: list[list[list[float]]] = [
        np.round(values, places).tolist() for values, places in zip(readings, digits, strict=True)
    ]
    return rounded
