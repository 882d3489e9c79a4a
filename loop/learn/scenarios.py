"""The worlds that a policy learns in: drawn by seed around a fleet, on a trace and on generators.

A policy that has met one fleet only knows that fleet. What a world may differ in, and how far, is
said here; a seed names a world whole, so that an episode can be repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

import msgspec
import numpy as np

from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import PoolConfig, Shape, TwinConfig
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.pool_level.worlds import PoolWorlds
from gpuloop.twin.workload import Workload, build_workload

SLOTS: Final = 2048
SPARE_HOURS: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A range of worlds; each pair is the least and the most of a factor on the fleet's number."""

    config: TwinConfig = field(default_factory=TwinConfig)
    traces: Path | None = None
    span_us: tuple[int, int] | None = None
    """Part of the trace that worlds may begin in and live in; None where all are generated."""
    hours: int = 24
    worlds: int = 8
    generated_share: float = 0.5
    """How many worlds live on generated jobs rather than on the trace."""
    load: tuple[float, float] = (0.7, 1.15)
    size: tuple[float, float] = (0.8, 1.25)
    reclaims: tuple[float, float] = (0.3, 3.0)
    faults: tuple[float, float] = (0.3, 3.0)
    requests: tuple[float, float] = (0.6, 1.4)
    availability: tuple[float, float] = (0.9, 1.0)
    """Of spot capacity; not a factor but the least and the most."""

    def __post_init__(self) -> None:
        """Refuse a span that no episode fits in, and worlds that are none."""
        if self.worlds < 1 or self.hours < 1:
            raise ValueError("there must be at least one world of at least one hour")
        if self.span_us and self.span_us[1] - self.span_us[0] < self.hours * HOUR_US:
            raise ValueError("an episode is longer than the span that it is to lie in")

    def draw(self, seed: int) -> tuple[TwinConfig, Workload]:
        """Return the world of a seed and its jobs."""
        rng = np.random.Generator(np.random.PCG64([seed, 0x5EED]))
        shapes: Sequence[Shape] = get_args(Shape)
        shape = shapes[int(rng.integers(len(shapes)))]
        generated = self.span_us is None or rng.random() < self.generated_share
        first, last = self.span_us or (self.config.start_us, self.config.start_us)
        room = max(last - first - self.hours * HOUR_US, 0) // HOUR_US
        start_us = first + int(rng.integers(room + 1)) * HOUR_US
        config = msgspec.structs.replace(
            self.config,
            seed=seed,
            start_us=start_us,
            shape=shape,
            arrival_share=min(1.0, self.config.arrival_share * rng.uniform(*self.load)),
            fault_rate_factor=self.config.fault_rate_factor * _factor(rng, self.faults),
            pools=tuple(self._pool(pool, rng) for pool in self.config.pools),
            services=tuple(
                msgspec.structs.replace(
                    service,
                    requests_per_second=service.requests_per_second * rng.uniform(*self.requests),
                )
                for service in self.config.services
            ),
        )
        which = f"generator:{shape}" if generated else "philly"
        return config, build_workload(self.traces, which, start_us=start_us, seed=seed, shape=shape)

    def build(self, seed: int, *, copies: int = 1) -> PoolWorlds:
        """Return the worlds of seeds `seed` to `seed + worlds - 1`, side by side, in copies."""
        drawn = [self.draw(seed + world) for world in range(self.worlds)]
        return build_pool_worlds(
            [config for config, _ in drawn],
            hours=self.hours + SPARE_HOURS,
            traces=self.traces,
            workload=[workload for _, workload in drawn],
            slots=SLOTS,
            copies=copies,
        )

    def _pool(self, pool: PoolConfig, rng: np.random.Generator) -> PoolConfig:
        size = rng.uniform(*self.size)
        most = max(pool.nodes_min + 1, round(pool.nodes_max * size))
        return msgspec.structs.replace(
            pool,
            nodes_max=most,
            on_demand_nodes=min(most, round(pool.on_demand_nodes * size)),
            spot_nodes=min(most - pool.on_demand_nodes, round(pool.spot_nodes * size))
            if pool.on_demand_nodes
            else min(most, round(pool.spot_nodes * size)),
            spot_reclaims_per_node_hour=pool.spot_reclaims_per_node_hour
            * _factor(rng, self.reclaims),
            spot_availability=rng.uniform(*self.availability),
        )


def _factor(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Return a factor between two, equally likely to halve as to double."""
    return float(np.exp(rng.uniform(*np.log(bounds))))
