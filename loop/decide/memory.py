"""What the decider remembers of each pool between ticks, and the envelope's view of it.

Everything is bounded by a window of fleet time and a count. Real changes and the virtual ones of
shadow mode stand in separate logs: showing a change never starts a real cooldown.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from gpuloop.actuators.envelope import LONG_AGO_US, EnvelopeState
from gpuloop.schemas.component import State
from gpuloop.schemas.messages import PoolState
from gpuloop.schemas.messages.actions import Actuator, ScaleTo
from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.schemas.policy import DIMENSIONS
from gpuloop.schemas.units import MINUTE_US

PEAK_WINDOW_US: Final = 15 * MINUTE_US
"""Demand counts for scaling down until it has been lower for this long."""

SAMPLE_US: Final = MINUTE_US
"""Ticks within this long share one sample, which keeps the most that was demanded."""

MAX_CHANGES: Final = 512
"""Changes of one actuator after which its budgets count as spent, whatever they are.

The log itself is only shortened by time: a change forgotten early would be one allowed twice."""

SPENT: Final = 10**9
TELEMETRY_LAG_US: Final = 5 * MINUTE_US
"""How long after its expiry a command without an outcome still counts as under way."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Demand and the cumulative counters of a pool at one tick."""

    tick_us: int
    demand_gpus: int
    arrived_gpus: int
    arrived_jobs: int
    refused_jobs: int


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """An executed (or, in shadow, imagined) change, as the budgets count it."""

    at_us: int
    command_id: str
    actuator: Actuator
    started: int = 0
    stopped: int = 0


class Flight(msgspec.Struct, frozen=True, kw_only=True):
    """A sent command whose effect is not yet seen; `generation` is set once it was applied."""

    actuator: Actuator
    target: str
    until_us: int
    grows: tuple[Billing, ...] = ()
    usd_micros_per_hour: int = 0
    """What it adds to the running cost; below 0 what it saves."""
    generation: int | None = None


class Draw(msgspec.Struct, frozen=True, kw_only=True):
    """The exploration held during one bucket."""

    bucket_us: int
    share: float
    offset: tuple[float, ...]
    log_probability: float


class DemandMemory(State):
    """How a pool's tenants answer price: a curve and the counts it has taken in, by segment."""

    anchor_usd_micros: int
    """The quote when learning began, which the curves' quotes are relative to."""
    curves: dict[str, list[float]] = {}
    counts: dict[str, list[float]] = {}


class PoolMemory(State):
    """One pool: its last state and what decisions about it need of the past."""

    latest: PoolState
    samples: list[Sample] = []
    changes: list[Change] = []
    virtual: list[Change] = []
    flights: dict[str, Flight] = {}
    last_steps: tuple[float, ...] = (0.0,) * len(DIMENSIONS)
    draw: Draw | None = None
    desired: ScaleTo | None = None
    """What the pool was last asked to be, as of `desired_generation` of its scaling."""
    desired_generation: int = 0
    markup: float | None = None
    """The first quote over the market's price at that time: the house's own choice."""
    failures: int = 0
    breaker_open: bool = False
    last_reflex_us: int = 0
    closed_until_us: dict[str, int] = {}
    """Billing kinds that lately had no capacity."""
    demand: DemandMemory | None = None
    """None where prices are not learned."""


def queued_gpus(pool: PoolState) -> int:
    """Return GPUs that waiting jobs ask for."""
    return sum(queue.gpus for queue in pool.queues)


def remember(memory: PoolMemory, pool: PoolState) -> None:
    """Take in a newer state of the pool; an older one is ignored."""
    if memory.samples and pool.tick_us <= memory.samples[-1].tick_us:
        return
    memory.latest = pool
    demand = pool.gpus_allocated + queued_gpus(pool)
    if memory.samples and memory.samples[-1].tick_us // SAMPLE_US == pool.tick_us // SAMPLE_US:
        demand = max(demand, memory.samples.pop().demand_gpus)
    memory.samples.append(
        Sample(
            tick_us=pool.tick_us,
            demand_gpus=demand,
            arrived_gpus=pool.arrived_gpus,
            arrived_jobs=pool.arrived_jobs,
            refused_jobs=pool.refused_jobs,
        )
    )
    oldest_us = pool.tick_us - PEAK_WINDOW_US
    memory.samples = [one for one in memory.samples if one.tick_us >= oldest_us]
    memory.flights = {
        name: flight
        for name, flight in memory.flights.items()
        if flight.generation is None
        or flight.actuator == "migration"
        or pool.generations.get(flight.actuator, 0) < flight.generation
    }


def forget(memory: PoolMemory, now_us: int, window_us: int) -> None:
    """Drop what no budget, cooldown or wait looks at any more."""
    oldest_us = now_us - window_us
    for name in ("changes", "virtual"):
        log = getattr(memory, name)
        setattr(memory, name, [one for one in log if one.at_us > oldest_us])
    memory.flights = {
        name: flight for name, flight in memory.flights.items() if flight.until_us > now_us
    }
    memory.closed_until_us = {
        billing: until for billing, until in memory.closed_until_us.items() if until > now_us
    }


def envelope_view(
    memories: Sequence[PoolMemory],
    virtual: Sequence[frozenset[Actuator]],
    frozen: Sequence[bool],
    tiers: Sequence[int],
) -> EnvelopeState:
    """Return the envelope's memory of some pools.

    `virtual[i]` names the actuators of pool i that are in shadow and so live by the virtual log;
    `tiers[i]` says how real the growth of pool i would be.
    """
    rows = [_view(memory, shadowed) for memory, shadowed in zip(memories, virtual, strict=True)]
    numbers = np.array(rows, dtype=np.int64).reshape(len(memories), 8)
    return EnvelopeState(
        last_growth_us=numbers[:, 0],
        last_shrink_us=numbers[:, 1],
        last_price_us=numbers[:, 2],
        started=numbers[:, 3].astype(float),
        stopped=numbers[:, 4].astype(float),
        migrated=numbers[:, 5].astype(float),
        scaling_in_flight=numbers[:, 6] > 0,
        pricing_in_flight=numbers[:, 7] > 0,
        breaker_open=np.array([memory.breaker_open for memory in memories], dtype=np.bool_),
        frozen=np.array(frozen, dtype=np.bool_),
        tier=np.array(tiers, dtype=np.int64),
    )


def _view(memory: PoolMemory, virtual: frozenset[Actuator]) -> tuple[int, ...]:
    log = [
        *(one for one in memory.changes if one.actuator not in virtual),
        *(one for one in memory.virtual if one.actuator in virtual),
    ]
    growth = max((one.at_us for one in log if one.started), default=LONG_AGO_US)
    shrink = max((one.at_us for one in log if one.stopped), default=LONG_AGO_US)
    price = max((one.at_us for one in log if one.actuator == "pricing"), default=LONG_AGO_US)
    started, stopped = sum(one.started for one in log), sum(one.stopped for one in log)
    moved = sum(one.actuator == "migration" for one in log)
    if sum(one.actuator == "scaling" for one in log) >= MAX_CHANGES:
        started = stopped = SPENT
    if moved >= MAX_CHANGES:
        moved = SPENT
    own = {flight.actuator for flight in memory.flights.values()}
    return (
        growth, shrink, price, started, stopped, moved, "scaling" in own, "pricing" in own,
    )  # fmt: skip
