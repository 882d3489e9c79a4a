"""Service is equal only where it is in every pool: what one pool saves no other can pay for."""

import numpy as np
import pytest
from benchmarks.controlling.comparing import Compared, Comparison, Incomparable, Ratio, compare
from benchmarks.controlling.frontier import Runs

DAYS = 8
WIDE, SMALL = 40.0, 1_000.0
"""Jobs a day of a pool of few wide ones and of one of many small ones."""

Points = tuple[tuple[float, float], ...]

RULE: Points = ((0.4, 10_000.0), (0.1, 20_000.0), (0.025, 30_000.0))
"""Of the wide pool. Cost falls by 10,000 with each factor of four in the rate."""
CHEAP: Points = ((0.4, 100.0), (0.1, 200.0), (0.025, 300.0))
"""Of the small pool."""
TUNED = 1.0


def runs(name: str, wide: Points, small: Points, *, days: int = DAYS, seeds: int = 1) -> Runs:
    """Return a controller whose days are all alike: rate and cost a day by setting and pool."""
    pools = np.array([wide, small]).transpose(1, 0, 2)
    judged = np.ones((seeds, len(wide), 2, days)) * np.array([[WIDE], [SMALL]])
    return Runs(
        name=name,
        settings=tuple(float(one) for one in range(len(wide))),
        pools=("wide", "small"),
        days=tuple(f"day {day}" for day in range(days)),
        violated=judged * pools[None, :, :, :1],
        judged=judged,
        cost_usd=np.ones_like(judged) * pools[None, :, :, 1:],
    )


def compared(one: Runs, rule: Runs | None = None, clairvoyant: Runs | None = None) -> Compared:
    rule = rule or runs("rule", RULE, CHEAP)
    return compare(
        one, rule=rule, tuned=TUNED, hpa=rule, clairvoyant=clairvoyant, seed=1, draws=400
    )


def value(comparison: Comparison) -> float:
    assert isinstance(comparison, Ratio), comparison
    return comparison.value


def reason(comparison: Comparison) -> str:
    assert isinstance(comparison, Incomparable), comparison
    return comparison.reason


def times(points: Points, *, rate: float = 1.0, cost: float = 1.0) -> Points:
    return tuple((rate * one, cost * usd) for one, usd in points)


def test_costs_are_read_at_each_pools_own_rate_and_summed() -> None:
    """Half the cost in the wide pool, twice in the small one: 10,000 + 400 of 20,000 + 200."""
    one = runs("one", times(RULE, cost=0.5), times(CHEAP, cost=2.0))
    found = compared(one)
    assert value(found.cost_at_equal_service_vs_rule) == pytest.approx(10_400 / 20_200)


def test_waits_of_wide_jobs_are_not_paid_for_with_those_of_small_ones() -> None:
    """Over all jobs alike this controller lets fewer wait than the rule, for less money.

    It saves on the wide pool by letting four times as many of its few jobs wait. In each pool it is
    but the rule at another setting.
    """
    wide = ((0.4, 10_000.0), (0.4, 10_000.0), (0.1, 20_000.0))
    small = ((0.1, 200.0), (0.025, 300.0), (0.025, 300.0))
    one = runs("one", wide, small)
    rule = runs("rule", RULE, CHEAP)
    assert one.violated[0, 1].sum() < rule.violated[0, 1].sum()
    assert one.cost_usd[0, 1].sum() < 0.6 * rule.cost_usd[0, 1].sum()
    assert value(compared(one).cost_at_equal_service_vs_rule) == pytest.approx(1.0)


def test_violations_are_read_at_each_pools_own_cost_and_summed_as_jobs() -> None:
    """Half as many in the wide pool, twice in the small one: 2 and 200 of 4 and 100 a day."""
    one = runs("one", times(RULE, rate=0.5), times(CHEAP, rate=2.0))
    found = compared(one)
    assert value(found.violations_at_equal_cost_vs_rule) == pytest.approx(202 / 104)


def test_violations_are_those_of_the_jobs_that_the_tuned_rule_was_judged_by() -> None:
    """A controller under which more jobs come to be judged is not charged for that."""
    one = runs("one", RULE, CHEAP)
    more = Runs(
        name="one", settings=one.settings, pools=one.pools, days=one.days,
        violated=2 * one.violated, judged=2 * one.judged, cost_usd=one.cost_usd,
    )  # fmt: skip
    assert value(compared(more).violations_at_equal_cost_vs_rule) == pytest.approx(1.0)


def test_what_is_avoidable_is_above_each_pools_own_bound() -> None:
    bound = runs("clairvoyant", times(RULE, cost=0.5), times(CHEAP, cost=0.25))
    one = runs("one", times(RULE, cost=0.75), times(CHEAP, cost=2.0))
    found = compared(one, clairvoyant=bound).avoidable_cost_vs_rule
    expected = (15_000 - 10_000 + 400 - 50) / (20_000 - 10_000 + 200 - 50)
    assert value(found) == pytest.approx(expected)


def test_frontiers_have_to_overlap_in_every_pool_and_the_other_is_named() -> None:
    one = runs("one", times(RULE, rate=0.01), CHEAP)
    found = compared(one)
    assert reason(found.cost_at_equal_service_vs_rule).endswith("of one, rule in wide")
    assert isinstance(found.violations_at_equal_cost_vs_rule, Ratio)


def test_pool_where_the_tuned_rule_let_nobody_wait_asks_the_same_of_others() -> None:
    """The cheapest of two settings without a violation is what equal service costs there."""
    never = ((0.1, 10_000.0), (0.0, 20_000.0), (0.0, 30_000.0))
    rule = runs("rule", never, CHEAP)
    one = runs("one", ((0.1, 9_000.0), (0.0, 25_000.0), (0.0, 24_000.0)), CHEAP)
    found = compared(one, rule).cost_at_equal_service_vs_rule
    assert value(found) == pytest.approx((24_000 + 200) / (20_000 + 200))
    some = runs("one", ((0.1, 9_000.0), (0.01, 25_000.0), (0.01, 24_000.0)), CHEAP)
    assert reason(compared(some, rule).cost_at_equal_service_vs_rule).endswith("in wide")


def test_pool_where_the_tuned_rule_let_nobody_wait_still_counts_violations_at_equal_cost() -> None:
    rule = runs("rule", ((0.1, 10_000.0), (0.0, 20_000.0), (0.0, 30_000.0)), CHEAP)
    one = runs("one", ((0.2, 10_000.0), (0.1, 20_000.0), (0.0, 30_000.0)), CHEAP)
    found = compared(one, rule).violations_at_equal_cost_vs_rule
    assert value(found) == pytest.approx((4 + 100) / 100)


def on_few_days(one: Runs, days: int) -> Runs:
    """Return the same where the wide pool's last days are of another class."""
    numbers = [array.copy() for array in (one.violated, one.judged, one.cost_usd)]
    for array in numbers:
        array[:, :, 0, days:] = 0.0
    violated, judged, cost_usd = numbers
    return Runs(
        name=one.name, settings=one.settings, pools=one.pools, days=one.days, violated=violated,
        judged=judged, cost_usd=cost_usd,
    )  # fmt: skip


def test_draws_without_a_day_of_a_pool_are_compared_by_the_other_pools() -> None:
    """With one of eight days every third draw misses it; the ratio is then the small pool's."""
    rule = on_few_days(runs("rule", RULE, CHEAP), 1)
    one = on_few_days(runs("one", times(RULE, cost=0.5), times(CHEAP, cost=2.0)), 1)
    found = compared(one, rule).cost_at_equal_service_vs_rule
    assert isinstance(found, Ratio)
    assert found.value == pytest.approx((10_000 / 8 + 400) / (20_000 / 8 + 200))
    assert found.high == pytest.approx(2.0)


def test_events_of_all_pools_together_are_enough() -> None:
    """80 in the small pool and 32 in the wide one."""
    rule = runs("rule", RULE, times(CHEAP, rate=0.1))
    found = compared(runs("one", RULE, times(CHEAP, rate=0.1)), rule)
    assert found.events == 112
    assert isinstance(found.cost_at_equal_service_vs_rule, Ratio)


def test_seeds_of_a_policy_are_pooled_in_each_pool() -> None:
    one = runs("one", RULE, CHEAP, seeds=2)
    dearer = one.cost_usd * np.array([1.0, 1.2])[:, None, None, None]
    both = Runs(
        name="one", settings=one.settings, pools=one.pools, days=one.days, violated=one.violated,
        judged=one.judged, cost_usd=dearer,
    )  # fmt: skip
    found = compared(both)
    assert value(found.cost_at_equal_service_vs_rule) == pytest.approx(1.1)
    assert isinstance(found.cost_at_equal_service_vs_rule, Ratio)
    assert found.cost_at_equal_service_vs_rule.low == pytest.approx(1.0)
    assert value(compared(runs("one", RULE, CHEAP, seeds=2)).violations_at_equal_cost_vs_rule) == (
        pytest.approx(1.0)
    )


def test_other_pools_are_refused() -> None:
    one = runs("one", RULE, CHEAP)
    other = Runs(
        name="one", settings=one.settings, pools=("wide", "huge"), days=one.days,
        violated=one.violated, judged=one.judged, cost_usd=one.cost_usd,
    )  # fmt: skip
    with pytest.raises(ValueError, match="one ran in other pools"):
        compared(other)
