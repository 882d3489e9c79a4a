"""Pools of drawn worlds as a stable-baselines3 environment: the control problem at pool level.

What is observed and what an action means are those of `learn.environment`, so an actor that was
trained here serves there and live. What is earned may be told as the difference to what the rule
alone earns in the same tick of a copy of the same world: that leaves the best policy as it is and
takes away most of what has nothing to do with actions. All worlds of an episode end together, by
truncation only; the next episode is the worlds of the next seeds.
"""

from collections.abc import Mapping
from typing import Any, Final

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from gpuloop.loop.learn.environment import Actions, Observations
from gpuloop.loop.learn.experience import ACTION_SIZE, CUT_PENALTY, REWARD_SCALE_USD
from gpuloop.loop.learn.passed import late_prices
from gpuloop.loop.learn.pool_course import Lateness, PoolCourse
from gpuloop.loop.learn.scenarios import Domain
from gpuloop.loop.learn.shared import SharedVecEnv
from gpuloop.loop.learn.spaces import Scaling, action_box, observation_box
from gpuloop.reasoning.rule import RuleConfig, with_offsets
from gpuloop.schemas.messages.learning import Normaliser
from gpuloop.schemas.policy import CONTROL_TICK_US, Floats, PoolBatch
from gpuloop.schemas.units import HOUR_US

REWARD_PER_NODE_HOUR: Final = 10.0
"""Units of reward per node-hour lost: a late job is some tens, an idle node a few in an hour."""


class PoolVecEnv(SharedVecEnv):
    """Every pool of every world is a sub-environment; the seed of the first names the worlds."""

    def __init__(
        self,
        domain: Domain,
        *,
        seed: int = 0,
        rule: RuleConfig | None = None,
        lateness: Lateness | None = None,
        normaliser: Normaliser | None = None,
        priced: bool = False,
        late_node_hours: Mapping[str, float] | None = None,
        beside_rule: bool = False,
    ) -> None:
        """Act in worlds of a domain, the first of them that of `seed`.

        Rewards are the ledgers' flow or, where each pool has a price in node-hours for a late job,
        what is lost (`passed`). `beside_rule` tells them as differences to the rule's.

        Raises:
            ValueError: a pool has no price where others have one.

        """
        self.domain: Final = domain
        self.render_mode = None
        self._rule = rule
        self._lateness = lateness
        self._priced = priced
        self._copies = 2 if beside_rule else 1
        self._late_prices: Floats | None = None
        if late_node_hours is not None:
            pools = tuple(pool.name for pool in domain.config.pools)
            self._late_prices = late_prices(late_node_hours, pools, domain.worlds * self._copies)
        self._scaling = Scaling(normaliser) if normaliser else None
        self._next_seed = seed
        self._actions: Actions | None = None
        self._ticks = domain.hours * HOUR_US // CONTROL_TICK_US
        self.course: PoolCourse
        self.batch: PoolBatch
        self._begin()
        box = observation_box(normaliser.clip if normaliser else np.inf)
        super().__init__(self._rows, box, action_box())

    def reset(self) -> Observations:
        """Begin the worlds that were seeded, or the next ones; new ones that stand ready stay."""
        if self._seeds[0] is not None:
            self._next_seed = self._seeds[0]
        if self._tick or self._seeds[0] is not None:
            self._begin()
        self._reset_seeds()
        self._reset_options()
        return self._observed()

    def step_async(self, actions: Actions) -> None:
        """Take the actions of all pools, (n, 4)."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Let a control tick pass; at the end of an episode the next one begins at once.

        Raises:
            RuntimeError: there are no actions.

        """
        if self._actions is None:
            raise RuntimeError("there are no actions to step with")
        course, batch, rows = self.course, self.batch, self._rows
        offsets = np.zeros_like(batch.present)
        offsets[:rows] = np.clip(self._actions, -1.0, 1.0)
        self._actions = None
        done = course.act(with_offsets(batch, offsets, course.rule))
        self.batch = course.look()
        gained = self._gained()
        rewards = gained[:rows] - gained[rows:] if self._copies > 1 else gained
        rewards = rewards - CUT_PENALTY * np.square(done.cut[:rows]).mean(axis=1)
        observations = self._observed()
        self._tick += 1
        truncated = self._tick >= self._ticks
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if truncated:
            for info, last in zip(infos, observations, strict=True):
                info |= {"terminal_observation": last, "TimeLimit.truncated": True}
            self._begin()
            observations = self._observed()
        return observations, rewards.astype(np.float32), np.full(self.num_envs, truncated), infos

    def _gained(self) -> Floats:
        passed = self.course.passed
        if self._late_prices is None:
            return passed.earned_usd / REWARD_SCALE_USD
        return -REWARD_PER_NODE_HOUR * passed.lost(self._late_prices)

    def _begin(self) -> None:
        seed = self._next_seed
        worlds = self.domain.build(seed, copies=self._copies)
        self._rows = worlds.rows // self._copies
        self._next_seed += self.domain.worlds
        self._tick = 0
        self.course = PoolCourse(
            worlds, seed=seed, rule=self._rule, lateness=self._lateness, priced=self._priced
        )
        self.batch = self.course.look()

    def _observed(self) -> Observations:
        observations = self.batch.observation[: self._rows].astype(np.float32)
        return self._scaling(observations) if self._scaling else observations


class OnePoolEnv(gymnasium.Env[Observations, Actions]):
    """One pool of drawn worlds as a Gymnasium environment; the others follow the rule."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, pools: PoolVecEnv, row: int = 0) -> None:
        """Act for one row of the pools side by side.

        Raises:
            ValueError: there is no such row.

        """
        if not 0 <= row < pools.num_envs:
            raise ValueError(f"there is no row {row} among {pools.num_envs} pools")
        self.observation_space = pools.observation_space
        self.action_space = pools.action_space
        self._pools: Final = pools
        self._row: Final = row

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin the worlds of a seed, or the next ones; there are no options."""
        super().reset(seed=seed)
        if seed is not None:
            self._pools.seed(seed)
        return self._pools.reset()[self._row], {}

    def step(self, action: Actions) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """Act for the pool; the task never terminates, it is truncated."""
        actions = np.zeros((self._pools.num_envs, ACTION_SIZE), np.float32)
        actions[self._row] = action
        self._pools.step_async(actions)
        told, rewards, done, infos = self._pools.step_wait()
        observations = np.asarray(told)
        info = infos[self._row]
        last = info.pop("terminal_observation", observations[self._row])
        return last, float(rewards[self._row]), False, bool(done[self._row]), info
