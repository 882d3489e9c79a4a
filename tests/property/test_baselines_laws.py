"""Laws of every controller of the catalogue, through the envelope, at every one of its settings."""

import dataclasses

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseline_days import MONDAY_US, Day, live, wave
from builders import batch
from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.reasoning.baselines.controller import Controller
from gpuloop.reasoning.baselines.schedule import ScheduleConfig, by_hour
from gpuloop.reasoning.baselines.windows import Ring
from gpuloop.schemas.policy import MIGRATION, PRICE, SPOT
from gpuloop.schemas.units import MINUTE_US

NAMES = sorted(CONTROLLERS)
WEEK = MONDAY_US + np.arange(0, 7 * 24 * 60, 10) * MINUTE_US
TRAINED = ScheduleConfig(
    demand_by_hour={
        f"pool{pool}": by_hour(WEEK, wave(7 * 24 * 6, 1, seed=pool, period=30)[:, 0])
        for pool in range(4)
    }
)


def made(name: str, setting: int = 3) -> Controller:
    baseline = CONTROLLERS[name]
    config: msgspec.Struct = TRAINED if name == "schedule" else baseline.config()
    return baseline.make(baseline.turned(config, baseline.settings[setting]))


@st.composite
def demands(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Return demand and freshness, (ticks, n): levels that last a while, in pools of their own."""
    pools = draw(st.integers(2, 4))
    lasting = draw(st.integers(1, 8))
    level = st.one_of(st.integers(0, 420), st.sampled_from([0, 64, 384]))
    levels = draw(st.lists(st.lists(level, min_size=pools, max_size=pools),
                           min_size=4, max_size=8))  # fmt: skip
    demand = np.repeat(np.array(levels, float), lasting, axis=0)
    seed = draw(st.integers(0, 2**16))
    return demand, np.random.default_rng(seed).random(demand.shape) > 0.1


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6)
@given(demands(), st.integers(0, 6))
def test_a_pool_is_run_as_if_it_were_alone(
    name: str, world: tuple[np.ndarray, np.ndarray], setting: int
):
    demand, fresh = world
    together = live(made(name, setting), demand, fresh)
    for row in range(demand.shape[1]):
        one = slice(row, row + 1)
        alone = live(made(name, setting), demand[:, one], fresh[:, one], first=row)
        np.testing.assert_array_equal(alone.wished, together.wished[:, one])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6)
@given(demands(), st.integers(0, 6))
def test_a_wish_lies_within_the_bounds_and_leaves_the_price_alone(
    name: str, world: tuple[np.ndarray, np.ndarray], setting: int
):
    day = live(made(name, setting), *world)
    nodes = day.wished[:, :, : SPOT + 1]
    assert np.isfinite(day.wished).all()
    assert (nodes >= [8.0, 0.0]).all()
    assert (nodes.sum(axis=2) >= 8.0).all()
    assert (nodes.sum(axis=2) <= 48.0).all()
    assert (nodes == np.round(nodes)).all()
    assert (day.wished[:, :, PRICE] == 4.0).all()
    assert (day.wished[:, :, MIGRATION] == 0.0).all()
    assert (day.done[:, :, : SPOT + 1].sum(axis=2) <= 48.0).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("static", "schedule")])
@settings(max_examples=6)
@given(demands(), st.integers(0, 6))
def test_what_cannot_be_seen_takes_no_node(
    name: str, world: tuple[np.ndarray, np.ndarray], setting: int
):
    day = live(made(name, setting), *world)
    before = np.concatenate([np.full((1, day.nodes().shape[1]), 24.0), day.nodes()[:-1]])
    assert (day.nodes()[~world[1]] >= before[~world[1]]).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_day_is_run_the_same_twice_even_by_the_same_controller(name: str):
    controller, demand = made(name), wave(90, 3, period=90)
    first, again, other = (
        live(controller, demand),
        live(controller, demand),
        live(made(name), demand),
    )
    np.testing.assert_array_equal(first.wished, again.wished)
    np.testing.assert_array_equal(first.wished, other.wished)


@pytest.mark.parametrize("name", NAMES)
def test_a_pool_that_is_reset_starts_anew_and_the_others_go_on(name: str):
    controller, fresh, old = made(name), made(name), made(name)
    for one in (controller, fresh, old):
        one.reset(np.ones(2, np.bool_))
    for at in range(30):
        busy = batch(2, tick_us=[MONDAY_US + at * MINUTE_US] * 2, gpus_allocated=[170.0, 60.0],
                     ready_nodes=[[16.0, 8.0]] * 2)  # fmt: skip
        controller(busy)
        old(busy)
    unlike = dataclasses.replace(busy, tick_us=busy.tick_us + MINUTE_US,
                                 gpus_allocated=np.array([100.0, 90.0]))  # fmt: skip
    controller.reset(np.array([True, False]))
    new = controller(unlike)
    np.testing.assert_array_equal(new[0], fresh(unlike)[0])
    np.testing.assert_array_equal(new[1], old(unlike)[1])


@pytest.mark.parametrize("name", NAMES)
def test_more_generous_settings_hold_no_fewer_nodes_over_a_day(name: str):
    demand = wave(300, 2, seed=3, period=300)
    held = [live(made(name, setting), demand).ready.mean() for setting in (0, 3, 6)]
    assert held == sorted(held)
    assert held[-1] > held[0] + 1.0


FOLLOWERS = ["hpa", "keda", "karpenter", "rule", "rule+forecast"]


@pytest.mark.parametrize("name", FOLLOWERS)
def test_a_queue_is_served_and_idle_nodes_are_given_back(name: str):
    demand = np.concatenate([np.full(20, 90.0), np.full(100, 300.0), np.full(150, 90.0)])[:, None]
    day: Day = live(made(name, setting=4), demand)  # Leaner ones let some of a queue wait.
    assert day.queued[20, 0] > 0
    assert day.queued[60:120].max() == 0
    assert day.nodes()[-1, 0] < day.nodes()[119, 0] - 10


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(-5, 5), st.booleans()), max_size=40))
@settings(max_examples=100)
def test_a_ring_sums_up_what_is_younger_than_its_window(past: list[tuple[int, int, bool]]):
    ring, kept, now = Ring.of_ticks(1, 10 * MINUTE_US), [], MONDAY_US
    for step, value, where in past:
        now += MINUTE_US + step
        ring.push(np.array([now]), np.array([float(value)]), np.array([where]))
        kept += [(now, float(value))] if where else []
    inside = [value for at, value in kept if now - at < 10 * MINUTE_US]
    when, zero = np.array([now]), np.zeros(1)
    assert ring.total(when, 10 * MINUTE_US)[0] == sum(inside)
    assert ring.largest(when, 10 * MINUTE_US, zero)[0] == max([0.0, *inside])
    assert ring.smallest(when, 10 * MINUTE_US, zero)[0] == min([0.0, *inside])
