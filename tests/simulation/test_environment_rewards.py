"""What is learned from in the environment is what the learner would make of the live topics."""

from functools import cache

import numpy as np
import pytest

from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.evaluate.evaluator import Evaluator
from gpuloop.loop.learn.environment import Course, Step
from gpuloop.loop.learn.experience import ExperienceJoin, Made
from gpuloop.loop.learn.simulate import ACTUATORS, LAGS
from gpuloop.loop.services.twin_fleet import TwinFleet
from gpuloop.loop.shells.keeper import Keeper
from gpuloop.loop.shells.simulation import Simulation
from gpuloop.reasoning.forecast import Forecaster
from gpuloop.schemas.component import Output, Received
from gpuloop.schemas.messages import Control, Decision, Reward
from gpuloop.schemas.messages.control import ControlBody, PolicyStage, SetMode, scope
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.streams.observe import Observe
from gpuloop.twin.config import FaultRates, Injection, ServiceConfig, TwinConfig

WORLD = TwinConfig(
    seed=5,
    gpu_sample_every_us=MINUTE_US,
    fault_rates=FaultRates(lost=2e-3, ecc=1e-3, thermal=1e-3, link=1e-3),
    services=(ServiceConfig(name="chat", pool="l4", requests_per_second=60.0, burst_share=0.2),),
    injections=(Injection(fault="lost", subject="a100-0003", after_us=47 * MINUTE_US),),
)
WORKLOAD = "generator:bursty"
HOURS = 3
EXPLORING = PolicyStage(
    pool="*", policy_id="untaught", stage="champion", alpha=0.0, exploration=0.5
)


class Live:
    """The loop as it runs live, exploring by itself, and the learner's join beside it."""

    def __init__(self) -> None:
        twin = TwinFleet(WORLD, None, WORKLOAD)
        twin.tick_every_us = CONTROL_TICK_US
        fleet, start_us = WORLD.fleet, twin.world.start_us
        components = [
            Keeper(fleet),
            twin,
            Observe(fleet),
            Forecaster(fleet),
            Decider(fleet),
            Evaluator(),
        ]
        self.join = ExperienceJoin()
        self.made: list[Made] = []
        self.reflexes = 0
        simulation = Simulation(components, seed=WORLD.seed, start_us=start_us, lags=LAGS)
        simulation.watch("decisions", self._take)
        simulation.watch("rewards", self._take)
        bodies = [
            *(SetMode(pool="*", actuator=actuator, mode="auto") for actuator in ACTUATORS),
            EXPLORING,
        ]
        simulation.send(told(body) for body in bodies)
        simulation.run(start_us + HOURS * HOUR_US)
        self.made.sort(key=lambda made: made[0])

    def _take(self, event: Received) -> None:
        match event.message:
            case Decision() as decision:
                self.reflexes += decision.level == "node"
                self.made += self.join.decision(decision)
            case Reward() as reward:
                self.made += self.join.reward(reward)
            case _:
                raise AssertionError(event.topic)


def told(body: ControlBody) -> Output:
    message = Control(fleet=WORLD.fleet, by="test", body=body)
    key = scope(body)
    return Output(topic="controls", key=key, message=message, event_id=f"test/{key}", time_us=0)


@cache
def live() -> Live:
    return Live()


@cache
def ridden() -> list[tuple[np.ndarray, Step]]:
    """Return each observation and what the step from it led to, under the live run's actions."""
    course = Course(WORLD, traces=None, workload=WORKLOAD)
    pools = len(course.pools)
    actions = [made.action for _, made in live().made]
    observations, steps = course.begin(), []
    for first in range(0, len(actions), pools):
        step = course.step(np.stack(actions[first : first + pools]))
        steps.append((observations, step))
        observations = step.observations
    return steps


def test_the_live_run_is_rough_and_whole() -> None:
    assert live().join.skipped == 0
    assert live().reflexes > 0
    assert len(live().made) > 3 * 60 * HOURS - 30
    assert np.abs([made.action for _, made in live().made]).sum() > 0.0


def test_ticks_and_pools_come_in_the_same_order() -> None:
    infos = [info for _, step in ridden() for info in step.infos]
    assert [(info["tick_us"], info["pool"]) for info in infos] == [key for key, _ in live().made]


@pytest.mark.parametrize("part", ["observation", "reward", "next_observation"])
def test_every_transition_is_the_one_that_the_live_join_makes(part: str) -> None:
    rows = [
        {"observation": observation, "reward": reward, "next_observation": following}
        for observations, step in ridden()
        for observation, reward, following in zip(
            observations, step.rewards, step.observations, strict=True
        )
    ]
    assert len(rows) == len(live().made)
    for row, (key, made) in zip(rows, live().made, strict=True):
        assert np.array_equal(row[part], getattr(made, part)), key
