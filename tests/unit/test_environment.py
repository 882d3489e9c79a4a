"""The loop as an environment: its contract, its seeds, its ends."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_for_gymnasium
from stable_baselines3.common.env_checker import check_env as check_for_sb3

from gpuloop.loop.learn.environment import Course, FleetVecEnv, PoolEnv
from gpuloop.loop.learn.experience import ACTION_SIZE, OBSERVATION_SIZE
from gpuloop.loop.learn.simulate import FleetSimulation
from gpuloop.loop.learn.trainer import Trainer, TrainerConfig
from gpuloop.reasoning.actor import Actor
from gpuloop.schemas.messages.learning import Normaliser
from gpuloop.schemas.policy import FEATURE_NAMES
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.config import TwinConfig

NORMALISER = Normaliser(mean=(0.25,) * OBSERVATION_SIZE, scale=(0.5,) * OBSERVATION_SIZE, clip=5.0)
POOLS = ("a100", "h100", "l4")


def course(**settings):
    return Course(TwinConfig(seed=3), traces=None, **settings)


def ridden(env, steps=6):
    """Return what an environment shows in some steps of seeded random actions."""
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 3, ACTION_SIZE)).astype(np.float32)
    shown = [env.reset()]
    for action in actions:
        observations, rewards, _, _ = env.step(action)
        shown += [observations, rewards]
    return shown


def same(some, others):
    return all(np.array_equal(one, other) for one, other in zip(some, others, strict=True))


def test_one_pool_keeps_the_contracts_of_gymnasium_and_stable_baselines3():
    env = PoolEnv(course(normaliser=NORMALISER), "a100")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_for_gymnasium(env, skip_render_check=True)
        check_for_sb3(env)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_world():
    env, other = FleetVecEnv(course()), FleetVecEnv(course())
    first = ridden(env)
    assert same(ridden(other), first)
    env.seed(3)
    assert same(ridden(env), first)
    env.seed(4)
    assert not same(ridden(env), first)


def test_a_reset_without_a_seed_begins_the_world_of_the_next():
    env, other = FleetVecEnv(course()), FleetVecEnv(course())
    env.reset()
    other.seed(4)
    assert same(ridden(env), ridden(other))


def test_an_episode_ends_by_truncation_and_the_next_world_begins_at_once():
    env = FleetVecEnv(course(episode_us=3 * MINUTE_US))
    nothing = np.zeros((3, ACTION_SIZE), np.float32)
    env.reset()
    for _ in range(2):
        _, _, done, infos = env.step(nothing)
        assert not done.any()
        assert "terminal_observation" not in infos[0]
    observations, _, done, infos = env.step(nothing)
    assert done.all()
    assert all(info["TimeLimit.truncated"] for info in infos)
    endless = FleetVecEnv(course())
    endless.reset()
    last = [endless.step(nothing)[0] for _ in range(3)][-1]
    assert same([info["terminal_observation"] for info in infos], last)
    endless.seed(4)
    assert np.array_equal(observations, endless.reset())


def test_one_pool_acts_while_the_others_follow_the_rule():
    world = course()
    alone, together = PoolEnv(world, "h100"), FleetVecEnv(course())
    observation, _ = alone.reset()
    assert world._fleet is not None
    decided = world._fleet.simulation.collect("decisions")
    assert np.array_equal(observation, together.reset()[1])
    action = np.full(ACTION_SIZE, 0.7, np.float32)
    actions = np.zeros((3, ACTION_SIZE), np.float32)
    actions[1] = action
    for _ in range(4):
        observation, reward, terminated, truncated, info = alone.step(action)
        observations, rewards, _, infos = together.step(actions)
        assert np.array_equal(observation, observations[1])
        assert np.float32(reward) == rewards[1]
        assert (terminated, truncated, info) == (False, False, infos[1])
    wished = {(one.message.pool, one.message.joint_action) for one in decided}
    assert wished == {("a100", (0.0,) * 4), ("h100", (0.7,) * 4), ("l4", (0.0,) * 4)}


def test_observations_are_those_of_the_decider_through_the_normaliser():
    fleet = FleetSimulation(TwinConfig(seed=3), traces=None)
    batch = fleet.look(fleet.start_us + HOUR_US)
    assert batch is not None
    assert batch.pools == POOLS
    raw = batch.observation.astype(np.float32)
    assert np.array_equal(course().begin(), raw)
    scaled = course(normaliser=NORMALISER).begin()
    assert np.allclose(scaled, np.clip((raw - 0.25) / 0.5, -5.0, 5.0))


def test_decisions_come_late_and_see_old_capacity_as_live_ones_do():
    fleet = FleetSimulation(TwinConfig(seed=3), traces=None)
    late, ages = [], []
    while (batch := fleet.look(fleet.start_us + 2 * HOUR_US)) is not None:
        late.append(fleet.simulation.now_us - int(batch.tick_us[0]))
        ages.append(batch.observation[0, FEATURE_NAMES.index("capacity_age_ratio")] * 300)
        fleet.act(np.zeros((3, ACTION_SIZE)))
    assert np.quantile(late, [0.1, 0.9]) == pytest.approx(np.array([5e6, 45e6]), abs=5e6)
    assert max(late) < MINUTE_US
    assert np.quantile(ages, 0.1) < 30
    assert np.quantile(ages, 0.9) > 80
    assert 0.3 < np.mean(np.array(ages) >= 60) < 0.7


def test_an_actor_offers_nothing_where_it_is_out_of_its_range():
    fleet = FleetSimulation(TwinConfig(seed=3), traces=None)
    batch = fleet.look(fleet.start_us + HOUR_US)
    assert batch is not None
    trainer = Trainer(TrainerConfig(), seed=0, normaliser=NORMALISER)
    spec, weights = trainer.export()
    actor = Actor.from_safetensors(weights, spec, NORMALISER)
    np.testing.assert_array_equal(actor.offsets(batch.observation), actor(batch.observation))
    batch.observation[1, 0] = 1e3
    offers = actor.offsets(batch.observation)
    assert offers.any(axis=1).tolist() == [True, False, True]


def test_offsets_move_the_fleet():
    env, still = FleetVecEnv(course()), FleetVecEnv(course())
    env.reset()
    still.reset()
    for _ in range(20):
        pushed = env.step(np.ones((3, ACTION_SIZE), np.float32))
        stayed = still.step(np.zeros((3, ACTION_SIZE), np.float32))
    costs = [
        sum(info["usd_micros"]["capacity_cost"] for info in infos) for *_, infos in (pushed, stayed)
    ]
    assert costs[0] < costs[1]


def test_a_step_before_the_first_reset_is_refused():
    with pytest.raises(RuntimeError, match="reset"):
        course().step(np.zeros((3, ACTION_SIZE), np.float32))


def test_a_reward_that_is_missing_stops_the_run():
    world = course()
    world.begin()
    fleet = world._fleet
    assert fleet is not None
    fleet.simulation.watch("rewards", lambda _: fleet.rewards.clear())
    with pytest.raises(RuntimeError, match="no whole reward"):
        world.step(np.zeros((3, ACTION_SIZE), np.float32))


def test_a_pool_that_the_fleet_lacks_is_refused():
    with pytest.raises(ValueError, match="a100, h100, l4"):
        PoolEnv(course(), "b200")
