"""Forecasts: honest about what they know, and no better than their record."""

import numpy as np
import pytest

from builders import FLEET, START_US, at, pool_state, received
from gpuloop.reasoning import forecast as module
from gpuloop.reasoning.forecast import Forecaster, ForecasterState
from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.component import load, save
from gpuloop.schemas.messages import Forecast
from gpuloop.schemas.units import HOUR_US, MINUTE_US


def run(
    demand: list[int], state: ForecasterState | None = None, first: int = 0
) -> tuple[ForecasterState, list[Forecast]]:
    component = Forecaster(FLEET)
    state = component.initial() if state is None else state
    made = []
    for index, gpus in enumerate(demand):
        now = START_US + (first + index) * MINUTE_US
        event = received("state.pools", pool_state(tick_us=now, allocated=gpus))
        state, outputs = component.step(state, event, at(now))
        made += [output.message for output in outputs]
    return state, made


def wave(minutes: int, period: int, seed: int = 0) -> list[int]:
    rng = np.random.Generator(np.random.PCG64(seed))
    time = np.arange(minutes)
    return [
        int(v) for v in 200 + 80 * np.sin(2 * np.pi * time / period) + rng.normal(0, 2, minutes)
    ]


def test_without_a_past_the_forecast_is_the_present_and_claims_no_skill():
    _, made = run([120])
    assert [(q.p10, q.p50, q.p90) for q in made[0].horizons] == [(120.0, 120.0, 120.0)] * 3
    assert made[0].skill == 0.0


def test_a_regular_demand_is_learnt_and_the_rival_beaten():
    _, made = run(wave(900, 300))
    assert made[-1].skill > 0.15
    assert made[-1].rival == module.LAST_VALUE


def test_an_unpredictable_demand_claims_no_skill_worth_the_name():
    rng = np.random.Generator(np.random.PCG64(3))
    _, made = run([max(0, int(v)) for v in 400 + np.cumsum(rng.normal(0, 6, 1200))])
    assert made[-1].skill < 0.05


def test_quantiles_are_in_order_and_hold_what_they_promise():
    demand = wave(1500, 300, seed=5)
    _, made = run(demand)
    inside = []
    for index, one in enumerate(made[600:-15], 600):
        quarter = one.horizons[0]
        assert 0.0 <= quarter.p10 <= quarter.p50 <= quarter.p90
        inside.append(quarter.p10 <= demand[index + 15] <= quarter.p90)
    assert 0.7 < np.mean(inside) < 0.98


def test_skill_is_that_of_the_forecasts_that_were_published():
    demand = wave(700, 300, seed=2)
    state, made = run(demand)
    for index, minutes in enumerate(module.HORIZONS):
        errors = [
            abs(one.horizons[index].p50 - demand[at_minute + minutes])
            for at_minute, one in enumerate(made[: len(demand) - minutes])
        ]
        record = state.tracks["a100"].horizons[index]
        assert record.scored == len(errors)
        assert abs(record.forecast_error - np.mean(errors)) < 0.01


def test_a_restart_from_saved_state_changes_nothing():
    demand = wave(200, 60)
    _, whole = run(demand)
    state, first = run(demand[:90])
    _, rest = run(demand[90:], load(ForecasterState, save(state)), first=90)
    assert [*first, *rest] == whole


def test_memory_is_bounded_and_small():
    state, _ = run([100 + index % 7 for index in range(module.KEPT + 200)])
    assert len(state.tracks["a100"].demand) == module.KEPT
    assert len(save(state)) < 60_000


def test_a_duplicate_or_late_state_is_not_learnt_from():
    state, _ = run(wave(50, 30))
    before = save(state)
    state, made = run([999], state, first=20)
    assert made == []
    assert save(state) == before


def test_a_long_silence_drops_the_past_and_a_short_one_is_bridged():
    state, _ = run(wave(50, 30))
    state, _ = run([100], state, first=60)
    assert len(state.tracks["a100"].demand) == 61
    state, _ = run([100], state, first=600)
    assert len(state.tracks["a100"].demand) == 1


def test_a_state_from_the_future_is_refused_and_the_honest_ones_after_it_are_not():
    state, _ = run([120, 121])
    ahead = pool_state(tick_us=START_US + 365 * 24 * HOUR_US)
    now = START_US + MINUTE_US
    with pytest.raises(BadInput, match="ahead of the fleet clock"):
        Forecaster(FLEET).step(state, received("state.pools", ahead), at(now))
    assert len(run([122, 123], state, first=2)[1]) == 2
