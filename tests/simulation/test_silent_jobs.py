"""A loop whose jobs fall silent, while all else goes on, leaves its fleet as it is."""

from collections.abc import Sequence
from typing import Any

from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.decide.observation import DEMAND_SILENT_US
from gpuloop.loop.services.twin_fleet import TwinFleet
from gpuloop.loop.shells.keeper import Keeper
from gpuloop.loop.shells.simulation import Simulation
from gpuloop.schemas.component import Component, Context, Event, Output, Received
from gpuloop.schemas.messages import Command, Control, Decision
from gpuloop.schemas.messages.control import SetMode, scope
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import INT64_MAX, MINUTE_US
from gpuloop.streams.observe import Observe, ObserveState
from gpuloop.twin.config import TwinConfig

WORLD = TwinConfig(seed=5, gpu_sample_every_us=MINUTE_US)
SILENT_FROM = 60
MINUTES = 150


class DeafToJobs(Observe):
    """Observes no job from some fleet time on, as if their topic had stopped."""

    from_us: int = INT64_MAX

    def step(
        self, state: ObserveState, event: Event, ctx: Context
    ) -> tuple[ObserveState, Sequence[Output]]:
        """Pass over jobs once the time has come."""
        lost = isinstance(event, Received) and event.topic == "telemetry.jobs"
        if lost and ctx.now_us > self.from_us:
            return state, ()
        return super().step(state, event, ctx)


def run(*, deaf: bool) -> tuple[list[Command], list[Decision]]:
    """Return what was commanded and decided once a silence would have been noticed."""
    twin = TwinFleet(WORLD, None, "generator:bursty")
    twin.tick_every_us = CONTROL_TICK_US
    observe = DeafToJobs(WORLD.fleet)
    start_us = twin.world.start_us
    silent_us = start_us + SILENT_FROM * MINUTE_US
    if deaf:
        observe.from_us = silent_us
    components: list[Component[Any]] = [
        Keeper(WORLD.fleet),
        twin,
        observe,
        Decider(WORLD.fleet),
    ]
    simulation = Simulation(components, seed=WORLD.seed, start_us=start_us)
    sent, made = simulation.collect("actions.scaling"), simulation.collect("decisions")
    grant = SetMode(pool="*", actuator="scaling", mode="auto")
    control = Control(fleet=WORLD.fleet, by="me", body=grant)
    simulation.send(
        [Output(topic="controls", key=scope(grant), message=control, event_id="1", time_us=0)]
    )
    simulation.run(start_us + MINUTES * MINUTE_US)
    noticed_us = silent_us + DEMAND_SILENT_US + MINUTE_US
    return (
        [m.message for m in sent
         if isinstance(m.message, Command) and m.message.issued_at_us > noticed_us],
        [m.message for m in made
         if isinstance(m.message, Decision) and m.message.tick_us > noticed_us],
    )  # fmt: skip


def test_a_fleet_of_which_no_job_is_heard_is_left_as_it_is() -> None:
    commands, decisions = run(deaf=True)
    assert commands == []
    assert any("demand not fresh" in one.why_not for one in decisions)
    assert all("allocated_ratio" in one.stale_inputs for one in decisions)


def test_a_fleet_whose_jobs_report_is_never_taken_for_silent() -> None:
    commands, decisions = run(deaf=False)
    assert len(commands) > 0
    assert not [one for one in decisions if "demand not fresh" in one.why_not]
