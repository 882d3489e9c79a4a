"""The whole loop in memory: twin, observe, forecast, decide, evaluate, under virtual time.

Training, the check behind alpha and the report's re-runs all come from here, so they meet the same
rule, envelope, arbiter and ledger as the live fleet; only the policy's offsets are given from
outside. Draws are keyed by entity, so two runs that differ in policy meet the same luck.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.evaluate.evaluator import Evaluator
from gpuloop.loop.services.twin_fleet import TwinFleet
from gpuloop.loop.shells.simulation import Simulation
from gpuloop.reasoning.actor import Actor
from gpuloop.reasoning.forecast import Forecaster
from gpuloop.schemas.component import Component, Output, Received
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import Control, Reward
from gpuloop.schemas.messages.actions import Actuator
from gpuloop.schemas.messages.control import ControlBody, KillLease, SetMode, scope
from gpuloop.schemas.policy import CONTROL_TICK_US, PoolBatch
from gpuloop.schemas.units import HOUR_US, INT64_MAX, MINUTE_US, USD_MICROS
from gpuloop.streams.observe import Observe
from gpuloop.twin.config import TwinConfig

Offsets = Callable[[PoolBatch], NDArray[Any]]
"""A policy: (n, 4) offsets in [-1, 1] for a batch of n pools, at the alpha it is to act with."""

ACTUATORS: Final[tuple[Actuator, ...]] = ("scaling", "pricing", "migration")
SETTLING_US: Final = 5 * MINUTE_US
"""Rewards are known this long after their window: the evaluator waits for late telemetry."""


def rule_alone(batch: PoolBatch) -> NDArray[Any]:
    """Wish for nothing beyond the rule."""
    return np.zeros_like(batch.present)


def offsets_of(actor: Actor, alpha: float) -> Offsets:
    """Return an actor as the offsets it acts with at an alpha."""
    return lambda batch: alpha * actor(batch.observation)


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulated fleet earned: US dollars in all, by component and by day."""

    usd: float
    components: dict[str, float]
    by_day: dict[int, float]
    decisions: int


class FleetSimulation:
    """One seeded world under one policy."""

    def __init__(
        self,
        config: TwinConfig,
        *,
        traces: Path | None,
        workload: str = "auto",
        offsets: Offsets = rule_alone,
        gpu_sample_every_us: int = MINUTE_US,
    ) -> None:
        """Set up the loop; the world begins at `config.start_us`."""
        config = msgspec.structs.replace(config, gpu_sample_every_us=gpu_sample_every_us)
        twin = TwinFleet(config, traces, workload)
        twin.tick_every_us = CONTROL_TICK_US
        decider = Decider(config.fleet, override=offsets)
        components: list[Component[Any]] = [
            twin,
            Observe(config.fleet),
            Forecaster(config.fleet),
            decider,
            Evaluator(),
        ]
        self.workload_name = twin.world.workload_name
        self.start_us = twin.world.start_us
        self._fleet = config.fleet
        self.simulation = Simulation(components, seed=config.seed, start_us=self.start_us)
        self._rewards = self.simulation.collect("rewards")
        self.simulation.send(self._control(body) for body in self._grants())

    def run(self, until_us: int) -> Totals:
        """Run until fleet time `until_us`; return what the windows that began before it earned."""
        self.simulation.run(until_us + SETTLING_US)
        return totals(self._rewards, until_us)

    def _grants(self) -> list[ControlBody]:
        return [
            *(SetMode(pool="*", actuator=actuator, mode="auto") for actuator in ACTUATORS),
            KillLease(expires_wall_us=INT64_MAX),
        ]

    def _control(self, body: ControlBody) -> Output:
        return Output(
            topic="controls",
            key=scope(body),
            message=Control(fleet=self._fleet, by="simulation", body=body),
            event_id=derived_event_id("controls", ("simulation", scope(body))),
            time_us=self.start_us,
        )


def totals(rewards: list[Received], until_us: int) -> Totals:
    """Add up rewards of windows that began before `until_us`."""
    components: dict[str, int] = {}
    by_day: dict[int, int] = {}
    decisions = 0
    for event in rewards:
        reward = event.message
        if not isinstance(reward, Reward) or reward.start_us >= until_us:
            continue
        decisions += 1
        day = reward.start_us // (24 * HOUR_US)
        by_day[day] = by_day.get(day, 0) + reward.total_usd_micros
        for name, amount in reward.components.items():
            components[name] = components.get(name, 0) + amount
    return Totals(
        usd=sum(components.values()) / USD_MICROS,
        components={name: amount / USD_MICROS for name, amount in sorted(components.items())},
        by_day={day: amount / USD_MICROS for day, amount in sorted(by_day.items())},
        decisions=decisions,
    )
