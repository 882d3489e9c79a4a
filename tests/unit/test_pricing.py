"""The law of prices: what it moves with, and what it never leaves."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import batch
from gpuloop.reasoning import elasticity
from gpuloop.reasoning.pricing import PriceWish, PricingConfig, price_wish
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.policy import PRICE, Floats
from gpuloop.schemas.units import HOUR_US

RULE = RuleConfig(scarcity=0.0)
"""Whose price is the market's."""
STILL = PricingConfig(explore=0.0, explore_known=0.0)
CAPACITY = 48 * 8


def curve(slope: float, *, level: float = 1.7, trusted: bool = True) -> Floats:
    """Return the well-known curve of the one segment of a pool."""
    found = elasticity.blank(1, 1)
    found[..., elasticity.SLOPE], found[..., elasticity.LEVEL] = np.log(slope), level
    found[..., [elasticity.LEVEL_PRECISION, elasticity.SLOPE_PRECISION]] = 1e6
    found[..., elasticity.TRUSTED], found[..., elasticity.LOAD] = trusted, 100.0
    return found


def wish(
    curves: Floats,
    config: PricingConfig = STILL,
    *,
    quote: float = 4.0,
    load: float = 0.4,
    loyalty: float = 0.0,
    **columns: Any,
) -> PriceWish:
    """Return the wish for a pool whose reference and anchor are 4 dollars."""
    seen = batch(
        present=[[16.0, 8.0, 0.0, quote]],
        forecast_gpus=np.full((1, 3, 3), load * CAPACITY),
        price_epoch=[True],
        **{"reference_price": [4.0], "nodes_max": [48.0], "gpus_per_node": [8.0]} | columns,
    )
    return price_wish(
        seen, curves, np.array([4.0]), config=config, rule=RULE, loyalty=np.array([loyalty])
    )


def target(*args: Any, **columns: Any) -> float:
    return float(wish(*args, **columns).target[0])


def test_a_curve_that_is_not_trusted_leaves_the_rules_price() -> None:
    assert target(curve(2.0, trusted=False)) == pytest.approx(4.0)
    assert target(curve(2.0)) > 4.5


def test_tenants_that_mind_the_price_more_are_asked_for_less() -> None:
    targets = [target(curve(slope)) for slope in (2.0, 8.0, 14.0, 30.0)]
    assert targets == sorted(targets, reverse=True)
    assert targets[0] > targets[-1]


@pytest.mark.parametrize("slope", [2.0, 8.0, 14.0])
def test_a_dearer_node_never_makes_the_price_lower(slope: float) -> None:
    costs = (5.0, 15.0, 25.0, 31.0)
    targets = [target(curve(slope), node_cost=[[cost, cost]]) for cost in costs]
    assert targets == sorted(targets)
    assert targets[0] < targets[-1] or slope == 2.0


@pytest.mark.parametrize("slope", [2.0, 8.0, 14.0])
def test_scarcity_never_makes_the_price_lower_nor_an_empty_pool_higher(slope: float) -> None:
    targets = [target(curve(slope), load=load) for load in (0.0, 0.2, 0.4, 0.7, 1.0, 1.3)]
    assert targets == sorted(targets)
    assert targets[2] < targets[-1] or slope == 2.0


def test_off_peak_is_cheaper_where_the_forecast_load_is_low() -> None:
    assert target(curve(14.0), load=0.05) < target(curve(14.0), load=0.4)
    flat = PricingConfig(explore=0.0, explore_known=0.0, off_peak=0.0)
    assert target(curve(14.0), flat, load=0.05) == target(curve(14.0), flat, load=0.4)


def test_what_is_refused_costs_so_a_charge_makes_no_price_higher() -> None:
    free = PricingConfig(explore=0.0, explore_known=0.0, refused_charge=0.0, priced_out_charge=0.0)
    dear = PricingConfig(explore=0.0, explore_known=0.0, refused_charge=0.5, priced_out_charge=0.5)
    assert target(curve(8.0), dear) < target(curve(8.0), free)


def test_patrons_pay_what_is_best_and_the_quote_stands_above_it() -> None:
    assert target(curve(14.0), loyalty=0.1) > target(curve(14.0))


@settings(max_examples=200)
@given(
    slope=st.floats(0.3, 50.0),
    level=st.floats(-3.0, 5.0),
    trusted=st.booleans(),
    quote=st.floats(0.5, 20.0),
    reference=st.floats(1.0, 10.0),
    load=st.floats(0.0, 2.0),
    cost=st.floats(0.0, 200.0),
    explore=st.floats(0.0, 0.3),
    tick=st.integers(0, 10**4),
)
def test_no_price_leaves_the_market_band_and_none_moves_further_than_a_step(
    slope: float, level: float, trusted: bool, quote: float, reference: float,
    load: float, cost: float, explore: float, tick: int,
) -> None:  # fmt: skip
    config = PricingConfig(explore=explore)
    found = wish(
        curve(slope, level=level, trusted=trusted), config, quote=quote, load=load,
        reference_price=[reference], node_cost=[[cost, cost]], tick_us=[tick * HOUR_US],
    )  # fmt: skip
    low, high = config.lowest * reference, config.highest * reference
    price = found.price[0]
    assert low - 1e-9 <= found.target[0] <= high + 1e-9
    assert abs(price - quote) <= config.price_step * quote + 1e-4
    assert min(low, quote) - 1e-4 <= price <= max(high, quote) + 1e-4


def test_exploration_comes_in_pairs_further_where_less_is_known_and_by_seed() -> None:
    config = PricingConfig()

    def offsets(trusted: bool, seed: int = 0) -> list[float]:
        seeded = PricingConfig(seed=seed)
        return [
            float(
                wish(curve(8.0, trusted=trusted), seeded, tick_us=[hold * config.hold_us]).explored[
                    0
                ]
            )
            for hold in range(40)
        ]

    unknown = offsets(trusted=False)
    assert {abs(one) for one in unknown} == {config.explore}
    assert all(a == -b for a, b in zip(unknown[::2], unknown[1::2], strict=True))
    assert {1.0, -1.0} == set(np.sign(unknown[::2]))
    assert {round(abs(one), 9) for one in offsets(trusted=True)} == {config.explore_known}
    assert offsets(trusted=False, seed=1) != unknown


def test_without_a_price_of_the_market_the_quote_stays() -> None:
    assert wish(curve(2.0), reference_price=[np.nan]).price[0] == 4.0


def test_between_epochs_the_quote_stays() -> None:
    seen = batch(reference_price=[4.0], price_epoch=[False], present=[[16.0, 8.0, 0.0, 4.0]])
    found = price_wish(seen, curve(2.0), np.array([4.0]), config=STILL, rule=RULE)
    assert found.price[0] == seen.present[0, PRICE]
