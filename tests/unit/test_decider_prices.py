"""The markup that prices are bounded by: from which quote it is taken, and that it stays."""

import pytest

from builders import control, offer, pool_state, received
from decider_loop import Loop, decisions, replace
from gpuloop.schemas.messages.control import Objectives
from gpuloop.schemas.policy import PRICE
from gpuloop.schemas.units import HOUR_US

CALM = pool_state(allocated=190)
MARKUP = 4.8 / 3.6


def bounds(loop: Loop, pool) -> tuple[float, float]:
    (decision,) = decisions(loop.minute(pool))[-1:]
    return decision.feasible_low[PRICE], decision.feasible_high[PRICE]


def ready() -> Loop:
    loop = Loop()
    loop.minute(CALM)
    loop.minute(CALM)
    return loop


def test_the_bounds_of_prices_follow_the_market_and_not_the_quotes():
    loop = ready()
    moved = replace(CALM, quote_usd_micros_per_gpu_hour=9_000_000, generations={"pricing": 7})
    assert bounds(loop, moved) == pytest.approx((0.5 * 4.8, 2.0 * 4.8))
    loop.send(received("market.offers", offer("on_demand", 7.2, at_us=loop.now_us)))
    assert bounds(loop, moved) == pytest.approx((0.5 * 7.2 * MARKUP, 2.0 * 7.2 * MARKUP))


def test_the_markup_is_taken_once_though_the_market_moves_before_the_house_does():
    loop = ready()
    loop.send(received("market.offers", offer("on_demand", 7.2, at_us=loop.now_us)))
    loop.minute(CALM)
    assert loop.state.pools["a100"].markup == pytest.approx(MARKUP)


MOVED = replace(CALM, quote_usd_micros_per_gpu_hour=9_600_000, generations={"pricing": 3})


def forgetful() -> Loop:
    """Return a loop that has lost what it knew of a pool whose quote it had moved."""
    loop = Loop()
    loop.minute(MOVED)
    loop.minute(MOVED)
    return loop


def test_a_quote_that_commands_have_moved_is_no_anchor_and_prices_hold():
    assert bounds(forgetful(), MOVED) == (9.6, 9.6)


@pytest.mark.parametrize(("ceiling", "vouched"), [(12_000_000, True), (9_000_000, False)])
def test_a_persons_floor_and_ceiling_vouch_for_a_quote_between_them(ceiling: int, vouched: bool):
    loop = forgetful()
    loop.send(control(Objectives(pool="a100", price_floor_usd_micros=4_000_000,
                                 price_ceiling_usd_micros=ceiling)))  # fmt: skip
    loop.minute(MOVED)
    assert (loop.state.pools["a100"].markup is not None) is vouched
    assert bounds(loop, MOVED)[1] == ceiling / 1e6


def test_an_offer_that_has_lapsed_is_no_anchor():
    loop = Loop()
    loop.now_us += 3 * HOUR_US
    loop.minute(CALM)
    loop.minute(CALM)
    assert loop.state.pools["a100"].markup is None
