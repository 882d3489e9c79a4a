"""Pools side by side: seen as a live decider sees them, paid as the ledger pays, named by seed."""

import numpy as np
import pytest
from msgspec.structs import replace
from stable_baselines3.common.env_checker import check_env

from gpuloop.actuators.envelope import EnvelopeConfig, apply_envelope
from gpuloop.loop.learn.experience import CUT_PENALTY, REWARD_SCALE_USD
from gpuloop.loop.learn.pool_course import Lateness, PoolCourse
from gpuloop.loop.learn.pool_env import OnePoolEnv, PoolVecEnv
from gpuloop.loop.learn.scenarios import Domain
from gpuloop.loop.learn.simulate import FleetSimulation
from gpuloop.schemas.policy import FEATURE_NAMES, PRICE
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level.build import build_pool_worlds

HOURS = 6
FREE = ("capacity_age_ratio", "telemetry_quality", "migration_budget_ratio")
"""What differs: each draws how late it is, and telemetry and migrations are live only."""


@pytest.fixture(scope="module")
def domain() -> Domain:
    return Domain(config=TwinConfig(), worlds=2, hours=1)


def test_a_course_shows_what_the_live_decider_sees_of_the_same_world():
    config = replace(TwinConfig(seed=5), fault_rate_factor=0.0)
    fleet = FleetSimulation(config, traces=None, workload="generator")
    live = []
    while (batch := fleet.look(fleet.start_us + HOURS * HOUR_US)) is not None:
        live.append(batch)
        fleet.act(np.zeros_like(batch.present))
    worlds = build_pool_worlds(
        [config], hours=HOURS + 1, traces=None, workload="generator", paired=True
    )
    course = PoolCourse(worlds, seed=0, priced=True)
    seen = {}
    for _ in range(len(live) + 5):
        batch = course.look()
        seen[int(batch.tick_us[0])] = batch
        course.act(batch.rule)
    rows = [[pool.name for pool in config.pools].index(name) for name in live[0].pools]
    told = np.array([batch.observation for batch in live])
    same = np.array([seen[int(batch.tick_us[0])].observation[rows] for batch in live])
    off = np.abs(told - same).mean(axis=(0, 1))
    spread = told.std(axis=0).mean(axis=0)
    for place, name in enumerate(FEATURE_NAMES):
        if name not in FREE:
            assert off[place] <= 0.02 + 0.2 * spread[place], name


def test_rewards_are_what_the_ledgers_take_in_less_the_penalty(domain):
    env = PoolVecEnv(domain, seed=3)
    rng = np.random.default_rng(0)
    course, earned, cuts = env.course, 0.0, 0.0
    before = course._meter._booked_usd
    act = course.act

    def noting(wish):
        nonlocal cuts
        done = act(wish)
        cuts = cuts + CUT_PENALTY * np.square(done.cut).mean(axis=1)
        return done

    course.act = noting
    for _ in range(30):
        env.step_async(rng.uniform(-1, 1, (env.num_envs, 4)).astype(np.float32))
        _, rewards, _, _ = env.step_wait()
        earned = earned + rewards
    flow = course._meter._booked_usd - before
    np.testing.assert_allclose((earned + cuts) * REWARD_SCALE_USD, flow, rtol=1e-5)
    assert np.abs(cuts).max() > 0.0


def test_an_episode_is_named_by_its_seed_and_no_other_is_like_it(domain):
    def episode(seed: int) -> np.ndarray:
        env = PoolVecEnv(domain, seed=seed)
        env.step_async(np.full((env.num_envs, 4), 0.5, np.float32))
        return env.step_wait()[0]

    np.testing.assert_array_equal(episode(11), episode(11))
    assert not np.array_equal(episode(11), episode(12))


def test_episodes_end_by_truncation_and_the_next_worlds_begin(domain):
    env = PoolVecEnv(domain, seed=0)
    nothing = np.zeros((env.num_envs, 4), np.float32)
    for _ in range(59):
        env.step_async(nothing)
        assert not env.step_wait()[2].any()
    env.step_async(nothing)
    observations, _, done, infos = env.step_wait()
    assert done.all()
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert not np.array_equal(infos[0]["terminal_observation"], observations[0])


def test_one_pool_passes_the_checks_of_stable_baselines(domain):
    check_env(OnePoolEnv(PoolVecEnv(domain, seed=0)), warn=False)


def test_an_order_without_capacity_closes_its_billing_and_spends_no_budget():
    config = replace(
        TwinConfig(),
        pools=tuple(
            replace(p, spot_availability=0.0) for p in TwinConfig().pools if p.name == "l4"
        ),
        services=(),
    )
    worlds = build_pool_worlds([config], hours=2, traces=None, workload="generator")
    course = PoolCourse(worlds, seed=0, lateness=Lateness(0, 0.0))
    batch = course.look()
    wish = batch.present.copy()
    wish[:, 1] += 3.0
    done = course.act(wish)
    np.testing.assert_array_equal(done.action, batch.present)
    after = course.look()
    assert after.high[0, 1] == batch.present[0, 1], "closed for growth"
    assert course._guards.started[0] == 0.0


def test_prices_stay_where_they_are_unless_the_course_is_priced(domain):
    for priced in (False, True):
        course = PoolCourse(domain.build(0), seed=0, priced=priced)
        batch = course.look()
        wish = batch.present.copy()
        wish[:, PRICE] *= 1.03
        moved = course.act(wish).action[:, PRICE] != batch.present[:, PRICE]
        assert moved.any() == priced


def test_the_envelope_lets_through_the_same_whether_or_not_it_says_why(domain):
    course = PoolCourse(domain.build(4), seed=0)
    rng = np.random.default_rng(1)
    for _ in range(20):
        batch = course.look()
        wish = batch.rule + rng.uniform(-2, 2, batch.rule.shape) * batch.delta
        wish[0] = np.nan
        config, guards = EnvelopeConfig(), course._guards
        told = apply_envelope(wish, batch, guards, config)
        untold = apply_envelope(wish, batch, guards, config, noted=False)
        np.testing.assert_array_equal(told.action, untold.action)
        assert any(told.adjustments)
        assert not any(untold.adjustments)
        course.act(wish)


def test_looking_and_acting_take_turns(domain):
    course = PoolCourse(domain.build(0), seed=0)
    with pytest.raises(RuntimeError, match="look before"):
        course.act(np.zeros((6, 4)))
    course.look()
    with pytest.raises(RuntimeError, match="act on what"):
        course.look()


def test_a_domain_draws_worlds_within_its_ranges_and_refuses_none():
    domain = Domain(worlds=1, hours=2)
    shares = [domain.draw(seed)[0].pools[1].spot_reclaims_per_node_hour for seed in range(40)]
    usual = TwinConfig().pools[1].spot_reclaims_per_node_hour
    assert usual * 0.3 <= min(shares) < usual < max(shares) <= usual * 3.0
    with pytest.raises(ValueError, match="longer than the span"):
        Domain(span_us=(0, HOUR_US), hours=2)
