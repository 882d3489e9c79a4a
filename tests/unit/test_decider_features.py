"""What policies see of a pool: its own alone, in its place, and nothing where nothing is known."""

import numpy as np

from builders import START_US, envelope_state, offer, pool_state
from gpuloop.actuators.envelope import EnvelopeConfig
from gpuloop.loop.decide.memory import PoolMemory, remember
from gpuloop.loop.decide.observation import Surroundings, observe_pools
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.messages.state import Feature
from gpuloop.schemas.policy import FEATURE_NAMES
from gpuloop.schemas.units import MINUTE_US

OFFERS = {("a100", "on_demand"): offer(), ("a100", "spot"): offer("spot", 1.5)}


def memory(pool, **changes):
    known = PoolMemory(latest=pool_state(pool))
    for minute in (0, 5, 10):
        state = pool_state(
            pool, START_US + minute * MINUTE_US, arrived_gpus=8 * minute, arrived_jobs=minute,
            **changes,
        )  # fmt: skip
        remember(known, state)
    return known


def seen(*memories, offers=OFFERS):
    tick_us = START_US + 10 * MINUTE_US
    found = observe_pools(
        memories, Surroundings(offers=offers), envelope_state(len(memories)),
        tick_us=tick_us, now_us=tick_us + 1_000_000, rule=RuleConfig(), config=EnvelopeConfig(),
    )  # fmt: skip
    return [
        {
            name: (found.observation[row, at], found.ages_us[row, at], found.quality[row, at])
            for at, name in enumerate(FEATURE_NAMES)
        }
        for row in range(len(memories))
    ]


def test_a_pool_looks_the_same_whoever_is_beside_it():
    busy, idle = memory("a", allocated=190, queued=40), memory("b", allocated=0, spot=None)
    assert seen(busy, idle) == seen(busy) + seen(idle)
    assert seen(idle, busy) == seen(idle) + seen(busy)
    assert seen() == []


def test_load_is_told_as_ratios_of_the_pools_gpus():
    (found,) = seen(memory("a", allocated=96, queued=48))
    assert found["allocated_ratio"] == (0.5, 1_000_000, 1.0)
    assert found["queued_gpus_ratio"] == (0.25, 1_000_000, 1.0)
    # Eighty GPUs came in ten minutes, so 120 in fifteen, of 192.
    assert found["arrival_rate_ratio"][0] == 120 / 192
    assert found["on_demand_ratio"][0] == 16 / 48


def test_what_is_not_known_is_neutral_and_of_no_quality():
    features = {"utilisation": Feature(value=None, age_us=0, quality=0.0)}
    (found,) = seen(memory("a", features=features), offers={})
    assert found["utilisation"][::2] == (0.0, 0.0)
    assert found["throttled"][::2] == (0.0, 0.0)
    assert found["market_ratio"][::2] == (1.0, 0.0)
    assert found["spot_discount"][2] == 0.0
    assert found["interruption_rate"][2] == 0.0
    assert all(np.isfinite(value) for value, _, _ in found.values())
