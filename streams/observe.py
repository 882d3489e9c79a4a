"""The observe stage as one fold, for simulation and replay.

It composes the functions that the Faust application calls, over the same contracts, so a policy
trained here meets the states it will meet live. It holds all shards at once and needs no frames
between processes: samples wait for the tick, and only a node's newest is packed.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from msgspec import field

from gpuloop.schemas.catalogue import SHARDS
from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.component import Context, Event, Output, Received, State, Tick
from gpuloop.schemas.messages import (
    GpuSample,
    JobEvent,
    Partial,
    ResourceSample,
    ServiceSample,
    TenantEvent,
)
from gpuloop.schemas.units import MINUTE_US, TimeUs
from gpuloop.streams import frames, jobs, node_ticks, nodes, pools, tenants
from gpuloop.streams.horizon import refuse_future
from gpuloop.streams.jobs import JobShard
from gpuloop.streams.nodes import NodeShard
from gpuloop.streams.pools import CapacityShard, ServiceShard
from gpuloop.streams.tenants import TenantShard


def ticking_shards(count: int) -> frozenset[str]:
    """Return the names of the shards that report at every tick."""
    return frozenset(f"{kind}/{n}" for kind in ("gpu", "jobs") for n in range(count))


class ObserveState(State):
    """Everything known, by name of shard; `samples` wait for the next tick."""

    samples: dict[str, dict[str, GpuSample]] = {}
    nodes: dict[str, NodeShard] = {}
    jobs: dict[str, JobShard] = {}
    tenants: TenantShard = field(default_factory=TenantShard)
    capacity: CapacityShard = field(default_factory=CapacityShard)
    services: ServiceShard = field(default_factory=ServiceShard)
    dropped: dict[str, int] = {}


class Observe:
    """Telemetry in, `state.*` out.

    `shards` is the number of partitions of the fleet-sized topics; `fresh_us` how long a sample
    speaks for its node, to be raised where a source samples less than once a minute.
    """

    name: ClassVar[str] = "observe"
    inputs: ClassVar[tuple[str, ...]] = (
        "telemetry.gpu",
        "telemetry.jobs",
        "telemetry.services",
        "telemetry.resources",
        "telemetry.tenants",
    )
    state_version: ClassVar[int] = 3

    def __init__(
        self,
        fleet: str,
        *,
        shards: int = SHARDS,
        fresh_us: int = node_ticks.FRESH_US,
        tick_every_us: int = MINUTE_US,
    ) -> None:
        self.state_type: type[ObserveState] = ObserveState
        self.tick_every_us: TimeUs = tick_every_us
        self._fleet: Final = fleet
        self._expected: Final = len(ticking_shards(shards))
        self._fresh_us: Final = fresh_us

    def initial(self) -> ObserveState:
        """Return the state before any telemetry."""
        return ObserveState()

    def step(
        self, state: ObserveState, event: Event, ctx: Context
    ) -> tuple[ObserveState, Sequence[Output]]:
        """Fold one event; telemetry that changes nothing is counted in `state.dropped`.

        Raises:
            BadInput: telemetry from the far future.

        """
        match event:
            case Tick(tick_us=tick_us):
                return state, self._tick(state, tick_us)
            case Received():
                return state, self._receive(state, event, ctx.now_us)

    def _receive(self, state: ObserveState, event: Received, now_us: int) -> Sequence[Output]:
        message = event.message
        match message:
            case GpuSample():
                refuse_future(message.event_time_us, now_us)
                waiting = state.samples.setdefault(f"gpu/{event.partition}", {})
                rival = waiting.get(message.node)
                if rival is None or (rival.boot, rival.seq) < (message.boot, message.seq):
                    waiting[message.node] = message
            case JobEvent():
                refuse_future(message.event_time_us, now_us)
                shard = state.jobs.setdefault(f"jobs/{event.partition}", JobShard())
                change = jobs.absorb(shard, message, event.id)
                _drop(state, change.dropped)
                return () if change.output is None else (change.output,)
            case TenantEvent():
                refuse_future(message.event_time_us, now_us)
                _drop(state, tenants.absorb_tenant(state.tenants, message))
            case ResourceSample():
                refuse_future(message.event_time_us, now_us)
                _drop(state, pools.absorb_resource(state.capacity, message))
            case ServiceSample():
                refuse_future(message.event_time_us, now_us)
                _drop(state, pools.absorb_service(state.services, message))
            case _:
                raise BadInput("unknown_type", f"{event.topic} is not telemetry of this stage")
        return ()

    def _tick(self, state: ObserveState, tick_us: int) -> list[Output]:
        outputs: list[Output] = []
        found: list[Partial] = []
        for name, waiting in sorted(state.samples.items()):
            shard = state.nodes.setdefault(name, NodeShard())
            frame = frames.pack(self._fleet, 0, list(waiting.values()))
            for reason, count in nodes.absorb(shard, frames.unpack(frame)).dropped.items():
                _drop(state, reason, count)
        state.samples = {}
        for name, node_shard in sorted(state.nodes.items()):
            told = node_ticks.at_tick(node_shard, self._fleet, tick_us, fresh_us=self._fresh_us)
            outputs += told.states
            found += pools.node_partials(told.pools, self._fleet, name, tick_us)
        for name, job_shard in sorted(state.jobs.items()):
            found += jobs.partials(job_shard, self._fleet, name, tick_us)
        found += pools.capacity_partials(state.capacity, self._fleet, "resources/0", tick_us)
        served = {pool for _, _, pool, _ in state.services.services.values()}
        found += pools.service_partials(state.services, served, self._fleet, "services/0", tick_us)
        found += tenants.tenant_partials(state.tenants, self._fleet, "tenants/0", tick_us)
        return outputs + self._pools(found, tick_us)

    def _pools(self, found: list[Partial], tick_us: int) -> list[Output]:
        by_pool: dict[str, list[Partial]] = {}
        for partial in sorted(found, key=lambda p: p.shard):
            by_pool.setdefault(partial.pool, []).append(partial)
        return [
            pools.state_output(
                pools.merge(
                    by_pool[pool], tick_us, reported=self._expected, expected=self._expected
                )
            )
            for pool in sorted(by_pool)
        ]


def _drop(state: ObserveState, reason: str | None, count: int = 1) -> None:
    if reason is not None:
        state.dropped[reason] = state.dropped.get(reason, 0) + count
