"""The loop as Gymnasium and stable-baselines3 environments: twin, rule, envelope and ledger inside.

All pools of one simulated fleet step together, one control tick at a time; a pool is a row. An
observation is what the decider sees, an action the pool's offsets at alpha 1, and the reward of a
step is what the evaluator books for that tick, less the penalty on what the envelope cut: the
number that the learner's join would make of the same decision. The task goes on for ever: an
episode ends by truncation only, and the next one is the world of the next seed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gymnasium
import msgspec
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from gpuloop.loop.learn.experience import ACTION_SIZE, cut_of, reward_of
from gpuloop.loop.learn.shared import SharedVecEnv
from gpuloop.loop.learn.simulate import FleetSimulation
from gpuloop.loop.learn.spaces import Scaling, action_box, observation_box
from gpuloop.schemas.messages import Decision, Reward
from gpuloop.schemas.messages.learning import Normaliser
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import MINUTE_US
from gpuloop.twin.config import TwinConfig

Observations = NDArray[np.float32]
Actions = NDArray[np.float32]

SILENCE_US: Final = 10 * MINUTE_US
"""A fleet that has decided nothing for this long is broken."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a step led to: a row, a reward and an info per pool."""

    observations: Observations
    rewards: list[float]
    truncated: bool
    infos: list[dict[str, Any]]


class Course:
    """One simulated fleet after another; arrays have a row per pool, in the order of `pools`."""

    def __init__(
        self,
        config: TwinConfig,
        *,
        traces: Path | None,
        workload: str = "auto",
        normaliser: Normaliser | None = None,
        episode_us: int | None = None,
    ) -> None:
        """Set a course of worlds that differ from `config` in their seed only.

        `episode_us` is how much fleet time an episode has, None for no end.
        """
        self.pools: Final = tuple(sorted(pool.name for pool in config.pools))
        self.observation_space: Final = observation_box(normaliser.clip if normaliser else np.inf)
        self.action_space: Final = action_box()
        self.tick_us = 0
        self._config = config
        self._traces = traces
        self._workload = workload
        self._scaling = Scaling(normaliser) if normaliser else None
        self._episode_us = episode_us
        self._next_seed = config.seed
        self._until_us = 0
        self._fleet: FleetSimulation | None = None

    def begin(self, seed: int | None = None) -> Observations:
        """Begin the world of a seed, or of the one after the last."""
        seed = self._next_seed if seed is None else seed
        self._next_seed = seed + 1
        config = msgspec.structs.replace(self._config, seed=seed)
        fleet = FleetSimulation(config, traces=self._traces, workload=self._workload)
        self._fleet, self.tick_us = fleet, 0
        observations = self._look(fleet)
        self._until_us = self.tick_us + (self._episode_us or 0)
        return observations

    def step(self, actions: Actions) -> Step:
        """Let all pools act and a control tick pass.

        Raises:
            RuntimeError: no world has begun, or it broke: a decision or its reward is missing.

        """
        fleet = self._fleet
        if fleet is None:
            raise RuntimeError("reset the environment before the first step")
        decisions = fleet.act(actions)
        observations = self._look(fleet)
        booked = {reward.decision_id: reward for reward in fleet.rewards}
        fleet.rewards.clear()
        earned = [_whole(decision, booked.get(decision.decision_id)) for decision in decisions]
        return Step(
            observations=observations,
            rewards=[
                reward_of(reward.total_usd_micros, cut_of(decision))
                for decision, reward in zip(decisions, earned, strict=True)
            ],
            truncated=self._episode_us is not None and self.tick_us >= self._until_us,
            infos=[
                {"pool": reward.pool, "tick_us": reward.start_us, "usd_micros": reward.components}
                for reward in earned
            ],
        )

    def _look(self, fleet: FleetSimulation) -> Observations:
        batch = fleet.look(fleet.simulation.now_us + SILENCE_US)
        if batch is None or batch.pools != self.pools:
            raise RuntimeError("the fleet's decider has not seen every pool")
        tick_us = int(batch.tick_us[0])
        if self.tick_us and tick_us != self.tick_us + CONTROL_TICK_US:
            raise RuntimeError(f"no decision between {self.tick_us} and {tick_us}")
        self.tick_us = tick_us
        observations = batch.observation.astype(np.float32)
        return self._scaling(observations) if self._scaling else observations


def _whole(decision: Decision, reward: Reward | None) -> Reward:
    if reward is None or reward.censored or reward.end_us - reward.start_us != CONTROL_TICK_US:
        raise RuntimeError(f"no whole reward for {decision.decision_id}")
    return reward


class FleetVecEnv(SharedVecEnv):
    """A fleet whose pools are the sub-environments: they share a world and step together.

    The seed of the first sub-environment is the world's.
    """

    def __init__(self, course: Course) -> None:
        """Act for every pool in the worlds of a course."""
        self.course: Final = course
        self.render_mode = None
        self._actions: Actions | None = None
        super().__init__(len(course.pools), course.observation_space, course.action_space)

    def reset(self) -> Observations:
        """Begin the world that was seeded, or the next."""
        observations = self.course.begin(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: Actions) -> None:
        """Take the actions of all pools, (n, 4)."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Let a control tick pass; at the end of an episode the next one begins at once.

        Raises:
            RuntimeError: there are no actions, or the world broke.

        """
        if self._actions is None:
            raise RuntimeError("there are no actions to step with")
        step = self.course.step(self._actions)
        self._actions = None
        observations, infos = step.observations, step.infos
        if step.truncated:
            for info, last in zip(infos, observations, strict=True):
                info["terminal_observation"] = last
                info["TimeLimit.truncated"] = True
            observations = self.course.begin()
        rewards = np.array(step.rewards, np.float32)
        return observations, rewards, np.full(self.num_envs, step.truncated), infos


class PoolEnv(gymnasium.Env[Observations, Actions]):
    """One pool of a fleet whose other pools follow the rule."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, course: Course, pool: str) -> None:
        """Act for `pool` in the worlds of a course.

        Raises:
            ValueError: the fleet has no such pool.

        """
        if pool not in course.pools:
            raise ValueError(f"{pool} is none of {', '.join(course.pools)}")
        self.observation_space = course.observation_space
        self.action_space = course.action_space
        self._course: Final = course
        self._row: Final = course.pools.index(pool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin the world of a seed, or of the one after the last; there are no options."""
        super().reset(seed=seed)
        return self._course.begin(seed)[self._row], {}

    def step(self, action: Actions) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """Act for the pool; the task never terminates, it is truncated."""
        actions = np.zeros((len(self._course.pools), ACTION_SIZE), np.float32)
        actions[self._row] = action
        step, row = self._course.step(actions), self._row
        return step.observations[row], step.rewards[row], False, step.truncated, step.infos[row]
