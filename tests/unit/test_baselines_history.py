"""Controllers that live on the past: the recommender and the schedule."""

from typing import Any

import numpy as np
import pytest

from baseline_days import MONDAY_US
from builders import START_US, batch
from gpuloop.reasoning.baselines.autopilot import (
    Autopilot,
    AutopilotConfig,
    AutopilotPast,
    percentile_of,
    remember,
)
from gpuloop.reasoning.baselines.catalogue import MIX
from gpuloop.reasoning.baselines.schedule import (
    HOURS,
    Schedule,
    ScheduleConfig,
    by_hour,
    fit,
    hour_of_week,
)
from gpuloop.schemas.units import HOUR_US, MINUTE_US


def remembered(demands: list[float], step_us: int = MINUTE_US, **settings: Any) -> AutopilotPast:
    config = AutopilotConfig(**settings)
    past = AutopilotPast.empty(1, config.down_after_us)
    for number, demand in enumerate(demands):
        now = np.array([START_US + number * step_us])
        remember(past, np.array([demand]), now, np.ones(1, np.bool_), config)
    return past


def test_the_percentile_of_a_histogram_is_that_of_its_samples_within_a_bucket():
    demands = np.random.default_rng(1).integers(0, 500, 2000).astype(float)
    past = remembered(list(demands), half_life_us=1000 * HOUR_US, load_weighted=False)
    for percentile in (0.5, 0.9, 1.0):
        exact = float(np.quantile(demands, percentile, method="inverted_cdf"))
        found = percentile_of(past.weights, percentile)[0]
        assert exact * 0.99 <= found <= exact * 1.07 + 1.0


def test_a_sample_weighs_half_after_the_half_life():
    past = remembered([64.0, 100.0], step_us=HOUR_US, half_life_us=HOUR_US, load_weighted=False)
    assert sorted(past.weights[past.weights > 0]) == [0.5, 1.0]
    assert percentile_of(past.weights, 1 / 3)[0] < 80 < percentile_of(past.weights, 0.34)[0]


def test_a_busy_moment_weighs_more_than_an_idle_one():
    demands = [10.0] * 9 + [100.0]
    flat = remembered(demands, load_weighted=False)
    loaded = remembered(demands)
    assert percentile_of(flat.weights, 0.6)[0] < 15
    assert percentile_of(loaded.weights, 0.6)[0] >= 100


def test_no_demand_at_all_recommends_nothing():
    assert percentile_of(remembered([0.0, 0.0]).weights, 0.95)[0] == 0.0


class Recommender:
    def __init__(self, **settings: Any) -> None:
        self.autopilot = Autopilot(AutopilotConfig(**settings), MIX)
        self.autopilot.reset(np.ones(1, np.bool_))
        self.now_us = START_US

    def tick(self, demand: float, **columns: Any) -> float:
        seen = batch(tick_us=[self.now_us], gpus_allocated=[demand], **columns)
        self.now_us += MINUTE_US
        return float(self.autopilot.wanted(seen)[0])


def test_the_recommendation_holds_the_margin_over_the_percentile():
    bare, roomy = Recommender(margin=0.0), Recommender(margin=0.5)
    assert 12 <= bare.tick(96.0) <= 13
    assert 18 <= roomy.tick(96.0) <= 20


def test_capacity_goes_up_at_once_and_down_only_when_less_was_recommended_for_the_period():
    fast = {"half_life_us": MINUTE_US, "down_after_us": 10 * MINUTE_US, "percentile": 0.5}
    recommender = Recommender(**fast)
    low, high = recommender.tick(40.0), recommender.tick(160.0)
    assert high > low
    after = [recommender.tick(8.0) for _ in range(20)]
    assert after[:9] == [high] * 9
    assert after[-1] < low


def test_what_cannot_be_seen_is_neither_remembered_nor_acted_on():
    recommender = Recommender(half_life_us=MINUTE_US)
    before = recommender.tick(96.0)
    assert recommender.tick(400.0, demand_fresh=[False]) == 24
    recommender.autopilot.reset(np.zeros(1, np.bool_))
    assert recommender.tick(96.0) == before


def test_a_higher_percentile_wants_no_less():
    demands = [float(one) for one in range(20, 200, 3)]
    wanted = []
    for percentile in (0.3, 0.6, 0.9, 1.0):
        recommender = Recommender(percentile=percentile)
        wanted.append([recommender.tick(one) for one in demands][-1])
    assert wanted == sorted(wanted)
    assert wanted[0] < wanted[-1]


def test_the_week_begins_on_monday_at_midnight():
    assert hour_of_week(np.array([MONDAY_US]))[0] == 0
    assert hour_of_week(np.array([MONDAY_US - 1]))[0] == HOURS - 1
    assert hour_of_week(np.array([0]))[0] == 72


def test_an_hour_holds_the_quantile_of_what_it_demanded():
    ticks = MONDAY_US + np.arange(0, 14 * 24 * 60, 30) * MINUTE_US
    demand = np.where(hour_of_week(ticks) == 5, 80.0, 8.0) + (np.arange(len(ticks)) % 2)
    table = fit(by_hour(ticks, demand), 1.0)
    assert table[5] == 81.0
    assert set(np.delete(table, 5)) == {9.0}
    assert fit(by_hour(ticks, demand), 0.0)[5] == 80.0


def test_an_hour_that_was_never_seen_takes_the_quantile_of_all():
    hours: list[tuple[float, ...]] = [(10.0, 20.0)] * 167 + [()]
    assert fit(hours, 0.5)[167] == 15.0
    assert np.isnan(fit([()] * HOURS, 0.5)).all()


def scheduled(tick_us: int, **settings: Any) -> list[float]:
    hours = tuple((80.0,) if hour == 1 else (16.0,) for hour in range(HOURS))
    schedule = Schedule(ScheduleConfig(demand_by_hour={"pool1": hours}, **settings), MIX)
    return list(schedule.wanted(batch(2, tick_us=[tick_us] * 2, gpus_queued=[900.0] * 2)))


def test_the_clock_alone_decides_and_orders_before_the_hour():
    assert scheduled(MONDAY_US)[1] == 2
    assert scheduled(MONDAY_US + HOUR_US - 5 * MINUTE_US)[1] == 10
    assert scheduled(MONDAY_US + HOUR_US - 5 * MINUTE_US, lead_us=0)[1] == 2
    assert scheduled(MONDAY_US + 2 * HOUR_US - MINUTE_US)[1] == 10
    assert scheduled(MONDAY_US + 2 * HOUR_US)[1] == 2


def test_a_pool_without_a_table_keeps_what_it_has():
    assert scheduled(MONDAY_US)[0] == 24


def test_a_table_of_another_length_is_refused():
    with pytest.raises(ValueError, match="168 hours"):
        ScheduleConfig(demand_by_hour={"pool0": ((1.0,),) * 24})
