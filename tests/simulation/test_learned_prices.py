"""Prices learned in the whole loop: from what the twin's tenants say to what it then quotes."""

import numpy as np

from gpuloop.loop.decide.state import DeciderState
from gpuloop.loop.learn.simulate import FleetSimulation
from gpuloop.reasoning import elasticity
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.schemas.messages import TenantEvent
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import TwinConfig


def test_every_answer_of_the_twins_tenants_reaches_a_curve_and_prices_move() -> None:
    fleet = FleetSimulation(
        TwinConfig(), traces=None, workload="generator", pricing=PricingConfig()
    )
    said: list[TenantEvent] = []
    fleet.simulation.watch("telemetry.tenants", lambda one: said.append(one.message))  # type: ignore[arg-type]
    first = {}
    while (batch := fleet.look(fleet.start_us + 3 * HOUR_US)) is not None:
        fleet.act(np.zeros_like(batch.present))
        state = fleet.simulation.states["decider"]
        assert isinstance(state, DeciderState)
        for name, memory in state.pools.items():
            first.setdefault(name, memory.latest.quote_usd_micros_per_gpu_hour)
    answers = {
        (name, segment): curve[elasticity.ANSWERED]
        for name, memory in state.pools.items()
        if memory.demand is not None
        for segment, curve in memory.demand.curves.items()
    }
    came = sum(one.kind != "cancelled" for one in said)
    assert came > 50
    assert 0.8 * came <= sum(answers.values()) <= came
    assert any(
        memory.latest.quote_usd_micros_per_gpu_hour != first[name]
        for name, memory in state.pools.items()
    )
