"""Forecasts side by side say what the live forecaster says of each pool."""

import numpy as np

from builders import FLEET, START_US, at, pool_state, received
from gpuloop.loop.learn.forecasts import Forecasts
from gpuloop.reasoning.forecast import Forecaster
from gpuloop.schemas.messages import Forecast
from gpuloop.schemas.units import MINUTE_US

MINUTES = 1700
"""More than a day and than is kept, so that histories have been shifted."""


def live(demand: np.ndarray) -> list[Forecast]:
    component = Forecaster(FLEET)
    state, made = component.initial(), []
    for minute, gpus in enumerate(demand):
        now = START_US + minute * MINUTE_US
        pool = pool_state(tick_us=now, allocated=int(gpus))
        state, outputs = component.step(state, received("state.pools", pool), at(now))
        made += [output.message for output in outputs]
    return made


def demands() -> np.ndarray:
    """Return a day that can be forecast and then one that cannot, beside another pool's."""
    rng = np.random.Generator(np.random.PCG64(11))
    time = np.arange(MINUTES)
    wave = 200 + 80 * np.sin(2 * np.pi * time / 300) + rng.normal(0, 2, MINUTES)
    walk = 400 + np.cumsum(rng.normal(0, 6, MINUTES))
    mixed = np.where(time < 900, wave, walk)
    return np.maximum(np.stack([walk, mixed], axis=1).astype(int), 0).astype(float)


def test_each_row_is_forecast_as_its_pool_would_be_live():
    demand = demands()
    side_by_side = Forecasts(2)
    arrived = np.full(2, float(pool_state().arrived_gpus))
    trusted = []
    for minute, told in enumerate(live(demand[:, 1])):
        side_by_side.learn(demand[minute], arrived)
        quantiles = [[q.p10, q.p50, q.p90] for q in told.horizons]
        np.testing.assert_allclose(side_by_side.gpus[1], quantiles, atol=2e-3)
        if abs(told.skill) > 1e-3:
            assert side_by_side.trusted()[1] == (told.skill > 0.0), minute
        trusted.append(told.skill > 0.0)
    assert any(trusted), "a regular demand is learnt"
    assert not all(trusted), "and at first nothing is known"
