"""What is lost between two looks: idle GPUs to the dollar, late jobs to the one."""

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from gpuloop.loop.learn.experience import CUT_PENALTY
from gpuloop.loop.learn.pool_course import PoolCourse
from gpuloop.loop.learn.pool_env import REWARD_PER_NODE_HOUR, PoolVecEnv
from gpuloop.loop.learn.scenarios import Domain
from gpuloop.schemas.policy import ON_DEMAND, SPOT, Floats, PoolBatch
from gpuloop.twin.config import WAITING_GRACE_US, WORK_PER_WAIT, TwinConfig
from gpuloop.twin.pool_level import arrays

NODES = [ON_DEMAND, SPOT]
PRICES = {"h100": 4.0, "a100": 3.0, "l4": 2.0}


def course(**changes) -> PoolCourse:
    config = replace(TwinConfig(), **changes)
    return PoolCourse(Domain(config=config, worlds=2, hours=4).build(5), seed=1)


def live(one: PoolCourse, hours: int, wish: Callable[[PoolBatch], Floats]) -> dict[str, Floats]:
    """Return the sums of what passed."""
    one.look()
    total = dict.fromkeys(("idle_usd", "penalties_usd", "late_jobs", "earned_usd"), 0.0)
    for _ in range(hours * 60):
        one.act(wish(one._batch))
        one.look()
        total = {name: value + getattr(one.passed, name) for name, value in total.items()}
    return total


def least(batch: PoolBatch) -> Floats:
    """Wish for as little as there may be, so that jobs wait."""
    wish = batch.present.copy()
    wish[:, NODES] = batch.low[:, NODES]
    return wish


def late_by(one: PoolCourse) -> list[int]:
    """Count late jobs of each row from what became of all of them."""
    worlds = one.worlds
    specs, rules = worlds.specs, worlds.rules
    found, first = [], 0
    for row, last in enumerate(rules.last):
        jobs = slice(first, int(last))
        first = int(last)
        begun = np.where(specs.started_us[jobs] >= 0, specs.started_us[jobs], specs.ended_us[jobs])
        until = np.where(begun >= 0, begun, worlds.state.now_us[row])
        waited = until - specs.at_us[jobs]
        asked = (specs.at_us[jobs] <= worlds.state.now_us[row]) & (
            specs.fate[jobs] != arrays.REFUSED
        )
        late = (waited > WAITING_GRACE_US) & (waited * WORK_PER_WAIT > specs.work_us[jobs])
        found.append(int((asked & late).sum()))
    return found


def test_each_job_begins_to_be_late_once_however_its_waiting_ends():
    one = course()
    before = np.array(late_by(one))
    late = live(one, 3, least)["late_jobs"]
    np.testing.assert_array_equal(late, np.array(late_by(one)) - before)
    assert (late > 0).any()


def test_capacity_that_nobody_uses_is_lost_whole():
    one = course(arrival_share=0.0, services=())
    lost = live(one, 2, lambda batch: batch.present)
    paid = one.worlds.state.books[:, arrays.CAPACITY] / 1e6
    np.testing.assert_allclose(lost["idle_usd"], paid, rtol=0.03)
    assert (paid > 0.0).all()
    assert not lost["late_jobs"].any()


def test_a_loss_is_told_in_node_hours_of_each_pool_at_its_price_of_a_late_job():
    one = course()
    live(one, 1, least)
    passed = one.passed
    late = np.tile([4.0, 3.0, 2.0], 2)
    by_hand = (passed.idle_usd + passed.penalties_usd) / passed.node_usd
    np.testing.assert_allclose(passed.lost(late), by_hand + late * passed.late_jobs)
    assert (passed.node_usd > 0.0).all()


def test_who_does_as_the_rule_does_neither_gains_nor_loses_beside_it():
    env = PoolVecEnv(Domain(worlds=2, hours=2), seed=3, late_node_hours=PRICES, beside_rule=True)
    nothing = np.zeros((env.num_envs, 4), np.float32)
    for _ in range(60):
        env.step_async(nothing)
        assert (np.abs(env.step_wait()[1]) <= CUT_PENALTY).all()


def test_who_keeps_idle_nodes_beside_the_rule_is_charged_for_them():
    config = replace(TwinConfig(), arrival_share=0.0, services=())
    domain = Domain(config=config, worlds=1, hours=2)
    env = PoolVecEnv(domain, seed=3, late_node_hours=PRICES, beside_rule=True)
    gained = 0.0
    for _ in range(60):
        env.step_async(np.full((env.num_envs, 4), 1.0, np.float32))
        gained = gained + env.step_wait()[1]
    nodes = env.batch.ready_nodes.reshape(2, 3, -1).sum(axis=2)
    more = nodes[0] > nodes[1]
    assert more.any()
    assert (gained[more] < -REWARD_PER_NODE_HOUR / 4.0).all()


def test_a_pool_without_a_price_of_lateness_is_refused():
    with pytest.raises(ValueError, match="l4"):
        PoolVecEnv(Domain(worlds=1, hours=1), late_node_hours={"h100": 1.0, "a100": 1.0})
