"""A world: one fleet, its clock moved from outside, its state in one struct.

`advance` lets time pass and returns what the fleet said meanwhile; `read` and `apply` are the port
of an executor. Between two calls everything that matters is in `state`, which can be saved, loaded
and gone on with to the same outputs.

`benchmarks/twin.py` compares a fleet that stands still with what was published of Philly, and says
how fast the twin runs.
"""

import heapq
from pathlib import Path

from gpuloop.schemas.component import Output
from gpuloop.schemas.fleet import Refused, Target
from gpuloop.schemas.messages.actions import Actuator, DesiredState, MigrateTo, PriceTo, ScaleTo
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.books import Books
from gpuloop.twin.capacity import Capacity
from gpuloop.twin.config import FaultClass, TwinConfig
from gpuloop.twin.engine import Engine
from gpuloop.twin.facilities import Facilities
from gpuloop.twin.faults import CLASSES, Faults
from gpuloop.twin.hardware import Hardware
from gpuloop.twin.inference import Inference
from gpuloop.twin.jobs import Jobs
from gpuloop.twin.market import Market, build_market
from gpuloop.twin.pacing import Pacing
from gpuloop.twin.state import Counters, Kind, Pool, Service, WorldState
from gpuloop.twin.telemetry import Telemetry
from gpuloop.twin.workload import JobSpec, Workload, build_workload, kept


def build_world(
    config: TwinConfig,
    traces: Path | None,
    workload: str | Workload = "auto",
    state: WorldState | None = None,
) -> "World":
    """Return a world at its start, or one that goes on from a saved state.

    Args:
        config: the world; the same config and workload must accompany a saved state.
        traces: folder of public traces, or None for generated arrivals and built-in prices.
        workload: `philly`, `generator[:bursty|cyclical|flash|steady]`, or `auto` for the trace if
            it is there; `World.workload_name` says which it became. Or jobs of one's own.
        state: what `World.state` was.

    Raises:
        ValueError: the workload does not exist.

    """
    jobs = build_workload(
        traces, workload, start_us=config.start_us, seed=config.seed, shape=config.shape
    )
    market = build_market(
        traces,
        region=config.region,
        fleet_start_us=jobs.start_us,
        market_start=config.market_start,
    )
    return World(config, jobs, market, state or _initial(config, market, jobs.start_us))


def _initial(config: TwinConfig, market: Market, start_us: int) -> WorldState:
    pools = {}
    for pool in config.pools:
        prices = {b: market.price(pool.gpu_model, b, start_us) for b in pool.billings}
        listed = market.price(pool.gpu_model, "on_demand", start_us)
        quote = round(listed * pool.quote_over_list, -4)
        pools[pool.name] = Pool(
            on_demand_nodes=pool.on_demand_nodes,
            spot_nodes=pool.spot_nodes,
            quote=int(quote),
            reference=int(quote),
            usd_micros_per_gpu_hour={str(billing): price for billing, price in prices.items()},
        )
    return WorldState(
        now_us=start_us,
        timers=[(start_us, Kind.BEGIN, "", 0)],
        hour=start_us // HOUR_US,
        arrived_in_hour=0,
        pools=pools,
        nodes={},
        boots={},
        jobs={},
        services={service.name: Service() for service in config.services},
        seqs={},
        books=Books.open(tuple(pools), start_us),
        counters=Counters(),
    )


class World:
    """A fleet on a clock. Implements `gpuloop.schemas.fleet.Fleet`."""

    def __init__(
        self, config: TwinConfig, workload: Workload, market: Market, state: WorldState
    ) -> None:
        self.config = config
        self._workload = workload
        self._engine = Engine(config, workload, market, state)
        self._hardware = Hardware(self._engine)
        self._telemetry = Telemetry(self._engine, self._hardware)
        self._inference = Inference(self._engine, self._hardware, self._telemetry)
        self._pacing = Pacing(self._engine, self._hardware)
        self._facilities = Facilities(self._engine, self._hardware, self._pacing)
        self._jobs = Jobs(
            self._engine, self._hardware, self._pacing, self._inference, self._telemetry
        )
        self._capacity = Capacity(
            self._engine, self._hardware, self._inference, self._jobs, self._telemetry
        )
        self._faults = Faults(
            self._engine, self._hardware, self._pacing, self._jobs, self._capacity, self._telemetry
        )
        self._hour: tuple[int, tuple[JobSpec, ...]] = (-1, ())

    @property
    def name(self) -> str:
        """Return the fleet's name."""
        return self.config.fleet

    @property
    def state(self) -> WorldState:
        """Return the live state; save it only after the outputs so far were taken."""
        return self._engine.state

    @property
    def workload_name(self) -> str:
        """Return `philly` or `generator:<shape>`."""
        return self._workload.name

    @property
    def start_us(self) -> int:
        """Return the fleet time at which this world began."""
        return self._workload.start_us

    @property
    def now_us(self) -> int:
        """Return the fleet time reached."""
        return self._engine.now_us

    def restore(self, state: WorldState) -> None:
        """Go on from a saved state of this world; outputs not yet taken are dropped."""
        self._engine.outputs.clear()
        self._engine.changed.clear()
        self._engine.crowded = False
        self._engine.bind(state)
        self._hardware.rebind()

    def advance(self, until_us: int) -> list[Output]:
        """Let everything up to and at `until_us` happen and return what was said since last time.

        Outputs are in order of their time. A time already reached only returns what is buffered.
        """
        self._run(until_us)
        return self.drain()

    def drain(self) -> list[Output]:
        """Return what was said and not yet taken, such as the effect of an `apply`."""
        outputs = self._engine.outputs
        self._engine.outputs = []
        return outputs

    def books(self) -> dict[str, dict[str, int]]:
        """Return USD micros by pool and ledger component since the start, costs negative."""
        return self.state.books.totals(self.now_us)

    def carbon(self) -> dict[str, int]:
        """Return milligrams of carbon dioxide by pool since the start."""
        return self.state.books.carbon_milligrams(self.now_us)

    def inject(self, fault: FaultClass, subject: str, at_us: int) -> None:
        """Let a fault strike a node (or a rack, for links) at a time not yet passed.

        Raises:
            ValueError: the class is unknown or the time has passed.

        """
        if fault not in CLASSES:
            raise ValueError(f"no fault class {fault!r}; known are {', '.join(CLASSES)}")
        if at_us < self.now_us:
            raise ValueError(f"{at_us} is before the world's now, {self.now_us}")
        self._engine.at(at_us, Kind.FAULT, f"{fault}|{subject}", 0)

    def read(self, actuator: Actuator, target: str) -> Target | None:
        """Return what a pool or job is now, or None when there is no such target."""
        if actuator in ("scaling", "pricing"):
            pool = self.state.pools.get(target)
            if pool is None:
                return None
            if actuator == "pricing":
                price = PriceTo(usd_micros_per_gpu_hour=pool.quote)
                return Target(target, price, pool.pricing_generation)
            size = ScaleTo(on_demand_nodes=pool.on_demand_nodes, spot_nodes=pool.spot_nodes)
            return Target(target, size, pool.scaling_generation)
        job = self.state.jobs.get(target) if actuator == "migration" else None
        return None if job is None else Target(job.pool, MigrateTo(pool=job.pool), job.generation)

    def apply(self, actuator: Actuator, target: str, to: DesiredState, now_us: int) -> Target:
        """Bring a target to a desired state at `now_us`; its telemetry is buffered.

        Raises:
            Refused: nothing has changed.

        """
        self._run(now_us)
        match actuator, to:
            case "scaling", ScaleTo():
                self._known(actuator, target)
                self._capacity.scale(target, to)
            case "pricing", PriceTo():
                self._known(actuator, target)
                self._price(target, to)
            case "migration", MigrateTo():
                self._known(actuator, target)
                self._migrate(target, to)
            case _:
                raise Refused("unsupported", f"the twin does not do {actuator} with {type(to)}")
        self._settle_capacity()
        done = self.read(actuator, target)
        assert done is not None
        return done

    def _known(self, actuator: Actuator, target: str) -> None:
        if self.read(actuator, target) is None:
            raise Refused("unknown_target", f"nothing called {target} to apply {actuator} to")

    def _price(self, name: str, to: PriceTo) -> None:
        pool, config = self._engine.pool(name), self._engine.pools[name]
        low = round(pool.reference * config.price_floor)
        high = round(pool.reference * config.price_ceiling)
        if not low <= to.usd_micros_per_gpu_hour <= high:
            raise Refused(
                "out_of_bounds",
                f"{name} may cost {low} to {high}, not {to.usd_micros_per_gpu_hour}",
            )
        pool.quote = to.usd_micros_per_gpu_hour
        pool.pricing_generation += 1
        self._engine.changed.add(name)

    def _migrate(self, name: str, to: MigrateTo) -> None:
        job = self.state.jobs[name]
        if not job.running:
            raise Refused("superseded", f"{name} is not running any more")
        if to.pool not in self._engine.pools:
            raise Refused("out_of_bounds", f"there is no pool {to.pool}")
        if to.avoid_nodes and to.pool == job.pool and not set(to.avoid_nodes) & set(job.nodes):
            raise Refused("superseded", f"{name} is away from those nodes already")
        self._jobs.migrate(job, to.pool, to.avoid_nodes)

    def _run(self, until_us: int) -> None:
        state, timers = self.state, self.state.timers
        while timers and timers[0][0] <= until_us:
            at_us, kind, subject, token = heapq.heappop(timers)
            state.now_us = max(state.now_us, at_us)
            self._dispatch(Kind(kind), subject, token)
            self._settle_capacity()
        state.now_us = max(state.now_us, until_us)

    def _dispatch(self, kind: Kind, subject: str, token: int) -> None:
        match kind:
            case Kind.BEGIN:
                self._begin()
            case Kind.NODE_READY:
                self._capacity.node_ready(subject, token)
            case Kind.NODE_RECLAIMED:
                self._capacity.reclaimed(subject, token)
            case Kind.FAULT:
                self._faults.strike(subject, token)
            case Kind.HEAL:
                self._faults.heal(subject, token)
            case Kind.THROTTLE:
                self._faults.throttle(subject, token)
            case Kind.ECC_ERROR:
                self._faults.ecc_error(subject, token)
            case Kind.JOB_FINISH:
                self._jobs.finish(subject, token)
            case Kind.JOB_BEAT:
                self._jobs.beat(subject, token)
            case Kind.JOB_GIVES_UP:
                self._jobs.give_up(subject)
            case Kind.JOB_GRACE_OVER:
                self._jobs.grace_over(subject, token)
            case Kind.ARRIVAL:
                self._arrive()
            case Kind.HOUR:
                self._hour_passes(subject, token)
            case Kind.GPU_SAMPLE:
                self._telemetry.gpus()
                self._engine.at(self.now_us + self.config.gpu_sample_every_us, kind)
            case Kind.MINUTE:
                self._minute()

    def _begin(self) -> None:
        engine, now = self._engine, self.now_us
        self._telemetry.offers()
        self._capacity.begin()
        for injection in self.config.injections:
            self.inject(injection.fault, injection.subject, now + injection.after_us)
        self._inference.plan()
        for pool in engine.pools:
            self._inference.grow(pool)
        running = kept(self._workload.running_at(now), self.config.arrival_share, self.config.seed)
        self._jobs.resume_all(running)
        self._measure_power()
        engine.changed.update(engine.pools)
        self._next_arrival()
        engine.at((now // HOUR_US + 1) * HOUR_US, Kind.HOUR)
        engine.at((now // MINUTE_US + 1) * MINUTE_US, Kind.MINUTE)
        if self.config.gpu_sample_every_us:
            engine.at(now, Kind.GPU_SAMPLE)

    def _arrive(self) -> None:
        spec = self._arrivals(self.state.hour)[self.state.arrived_in_hour]
        self.state.arrived_in_hour += 1
        self._jobs.offer(spec)
        self._next_arrival()

    def _next_arrival(self) -> None:
        """Set the timer of the next job of this hour; the hour's end looks into the next one."""
        specs = self._arrivals(self.state.hour)
        while self.state.arrived_in_hour < len(specs):
            at_us = specs[self.state.arrived_in_hour].submitted_us
            if at_us >= self.start_us:
                self._engine.at(at_us, Kind.ARRIVAL)
                return
            self.state.arrived_in_hour += 1

    def _arrivals(self, hour: int) -> tuple[JobSpec, ...]:
        if self._hour[0] != hour:
            jobs = self._workload.arrivals(hour)
            self._hour = (hour, kept(jobs, self.config.arrival_share, self.config.seed))
        return self._hour[1]

    def _hour_passes(self, node_id: str, token: int) -> None:
        """Begin an hour, for the world or (with a name) for a node that has just joined."""
        engine = self._engine
        if node_id:
            node = self.state.nodes.get(node_id)
            if node is not None and node.boot == token:
                self._faults.draw_hour(node)
            return
        for pool in engine.pools:
            for node in engine.rented(pool):
                self._faults.draw_hour(node)
        self._capacity.reprice()
        self._telemetry.offers()
        self.state.hour, self.state.arrived_in_hour = self.now_us // HOUR_US, 0
        self._next_arrival()
        engine.at(self.now_us + HOUR_US, Kind.HOUR)

    def _minute(self) -> None:
        """Close a minute: services, power, capacity."""
        engine = self._engine
        self._inference.close_minute()
        for pool in sorted({service.pool for service in engine.services.values()}):
            self._jobs.schedule(pool)
        self._jobs.release()
        for strain in self._facilities.strains():
            self._telemetry.facility(strain)
        self._measure_power()
        engine.changed.update(engine.pools)
        engine.at(self.now_us + MINUTE_US, Kind.MINUTE)

    def _measure_power(self) -> None:
        for name in self._engine.pools:
            watts = sum(node.watts for node in self._engine.rented(name))
            self._engine.pool(name).power_watts = round(watts)

    def _settle_capacity(self) -> None:
        """Divide facilities, let drained nodes go, report pools of other capacity or price."""
        engine = self._engine
        if engine.crowded:
            engine.crowded = False
            if self.config.facilities:
                self._facilities.divide()
        if engine.emptied:
            for name in sorted(engine.emptied):
                self._capacity.let_go(name)
            engine.emptied.clear()
        if engine.changed:
            for name in sorted(engine.changed):
                self._telemetry.capacity(name)
            engine.changed.clear()
