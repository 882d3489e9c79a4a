"""Frontiers answer as their closed forms do, and say nothing where there is nothing to say."""

from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from benchmarks.controlling.comparing import Compared, Comparison, Incomparable, Ratio, compare
from benchmarks.controlling.frontier import Draws, Read, Runs, cost_at, rate_at

DAYS = 8
JOBS = 10_000.0
SLOPE = ((0.01, 300.0), (0.04, 200.0), (0.16, 100.0))
"""Cost falls by 100 with each factor of four in the rate."""

Points = tuple[tuple[float, float], ...]


def flat(name: str, points: Points, *, days: int = DAYS, seeds: int = 1) -> Runs:
    """Return a controller of one pool whose every day is alike: rates and costs by setting."""
    rates, costs = np.array(points).T
    ones = np.ones((seeds, len(points), 1, days))
    return Runs(
        name=name,
        settings=tuple(float(one) for one in range(len(points))),
        pools=("all",),
        days=tuple(f"day {day}" for day in range(days)),
        violated=ones * rates[:, None, None] * JOBS,
        judged=ones * JOBS,
        cost_usd=ones * costs[:, None, None],
    )


def dear(factor: float, points: Points = SLOPE) -> Points:
    return tuple((rate, factor * cost) for rate, cost in points)


def compared(one: Runs, **changes: Any) -> Compared:
    """Compare with peers whose days are all alike, but for those that are given."""
    days = len(changes["rule"].days) if "rule" in changes else DAYS
    usual = {
        name: flat(name, dear(factor), days=days)
        for name, factor in (("rule", 1.0), ("hpa", 2.0), ("clairvoyant", 0.5))
    }
    return compare(one, **{"tuned": 1.0, "seed": 1, "draws": 400, **usual, **changes})


def at(points: Points, *, rate: float | None = None, cost: float | None = None) -> float | None:
    """Return what a frontier says at one place, None where it says nothing."""
    place = rate if rate is not None else cost
    runs = flat("one", points)
    sampled = Draws(runs.days, seed=0, draws=1)
    asked = Read(np.full(2, float(place or 0)), np.ones(2, bool))
    told = (cost_at if rate is not None else rate_at)(sampled.points(runs)[0], asked)
    return float(told.value[0]) if told.known[0] else None


def value(comparison: Comparison) -> float:
    assert isinstance(comparison, Ratio), comparison
    return comparison.value


def reason(comparison: Comparison) -> str:
    assert isinstance(comparison, Incomparable), comparison
    return comparison.reason


def test_between_settings_cost_is_linear_in_the_logarithm_of_the_rate() -> None:
    assert at(SLOPE, rate=0.08) == pytest.approx(150.0)
    assert at(SLOPE, cost=150.0) == pytest.approx(0.08)
    assert at(SLOPE, rate=0.02) == pytest.approx(250.0)


def test_beside_a_setting_without_violations_cost_is_linear_in_the_rate() -> None:
    points = ((0.0, 300.0), (0.04, 200.0))
    assert at(points, rate=0.01) == pytest.approx(275.0)
    assert at(points, cost=275.0) == pytest.approx(0.01)


@pytest.mark.parametrize(("rate", "cost"), SLOPE)
def test_at_a_setting_a_frontier_is_that_setting(rate: float, cost: float) -> None:
    assert at(SLOPE, rate=rate) == pytest.approx(cost)
    assert at(SLOPE, cost=cost) == pytest.approx(rate)


def test_nothing_is_extrapolated() -> None:
    assert at(SLOPE, rate=0.0099) is None
    assert at(SLOPE, rate=0.1601) is None
    assert at(SLOPE, cost=99.0) is None
    assert at(SLOPE, cost=301.0) is None


def test_costs_of_a_large_fleet_overflow_nothing() -> None:
    with np.errstate(all="raise"):
        assert at(dear(1_000.0), rate=0.08) == pytest.approx(150_000.0)
        assert at(dear(1_000.0), rate=0.5) is None
        assert at(((0.0, 9e5), (0.04, 8e5)), cost=8.5e5) == pytest.approx(0.02)


def test_setting_that_another_beats_in_both_is_not_used() -> None:
    assert at((*SLOPE, (0.08, 500.0)), rate=0.08) == pytest.approx(150.0)
    assert at((*SLOPE, (0.08, 160.0)), rate=0.08) == pytest.approx(160.0)


def test_cheapest_setting_holds_up_to_the_worst_that_was_run() -> None:
    points = (*SLOPE, (0.5, 120.0))
    assert at(points, rate=0.4) == pytest.approx(100.0)
    assert at(points, rate=0.51) is None
    assert at((*SLOPE, (0.02, 900.0)), cost=800.0) == pytest.approx(0.01)


def reordered(runs: Runs, rng: np.random.Generator) -> Runs:
    days, settings = rng.permutation(len(runs.days)), rng.permutation(len(runs.settings))
    numbers = (runs.violated, runs.judged, runs.cost_usd)
    violated, judged, cost_usd = (one[:, settings][..., days] for one in numbers)
    return Runs(
        name=runs.name,
        settings=tuple(runs.settings[place] for place in settings),
        pools=runs.pools,
        days=tuple(runs.days[place] for place in days),
        violated=violated,
        judged=judged,
        cost_usd=cost_usd,
    )


def test_order_of_settings_and_days_does_not_matter() -> None:
    runs = {
        "one": uneven("one", seed=3),
        "rule": uneven("rule", seed=4),
        "hpa": uneven("hpa", seed=5, cost=1.4),
        "clairvoyant": uneven("clairvoyant", seed=6, cost=0.5),
    }
    rng = np.random.default_rng(0)
    first = compared(**runs)
    second = compared(**{name: reordered(one, rng) for name, one in runs.items()})
    for field in ("violations_at_equal_cost_vs_rule", "avoidable_cost_vs_hpa"):
        a, b = getattr(first, field), getattr(second, field)
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


@pytest.mark.parametrize("cost", [0.0, 900.0])
def test_setting_that_judged_nobody_is_no_point(cost: float) -> None:
    """Nobody was violated at it either: it neither beats a setting nor widens the frontier."""
    runs = flat("one", (*SLOPE[1:], (0.0, cost)))
    runs.judged[:, 2] = 0.0
    assert value(compared(runs).cost_at_equal_service_vs_rule) == pytest.approx(1.0)
    assert "no overlap" in reason(compared(runs, tuned=0.0).cost_at_equal_service_vs_rule)


def test_cost_of_several_seeds_is_their_mean() -> None:
    found = compared(flat("one", dear(1.1), seeds=5))
    assert value(found.cost_at_equal_service_vs_rule) == pytest.approx(1.1)


def test_ratios_of_known_frontiers_are_exact() -> None:
    """A tenth dearer: 220 where the rule pays 200, and at 200 worse by 4^(20/110)."""
    found = compared(flat("one", dear(1.1)))
    assert value(found.cost_at_equal_service_vs_rule) == pytest.approx(1.1)
    assert value(found.violations_at_equal_cost_vs_rule) == pytest.approx(4 ** (20 / 110))
    assert value(found.avoidable_cost_vs_rule) == pytest.approx((220 - 100) / (200 - 100))
    assert value(found.avoidable_cost_vs_hpa) == pytest.approx((220 - 100) / (400 - 100))
    assert (found.events, found.days) == (400 * DAYS, DAYS)


def test_days_that_are_all_alike_leave_no_interval() -> None:
    ratio = compared(flat("one", dear(1.1))).cost_at_equal_service_vs_rule
    assert isinstance(ratio, Ratio)
    assert (ratio.low, ratio.high) == pytest.approx((1.1, 1.1))


def test_the_rule_beside_itself_is_equal_whatever_the_days() -> None:
    rule = uneven("rule", seed=9)
    found = compared(rule, rule=rule, hpa=rule, clairvoyant=None)
    ratio = found.violations_at_equal_cost_vs_rule
    assert isinstance(ratio, Ratio)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.0, 1.0, 1.0))


def test_few_violations_of_the_rule_are_insufficient() -> None:
    few = tuple((rate / 40, cost) for rate, cost in SLOPE)
    rule = flat("rule", few)
    found = compared(flat("one", dear(1.1, few)), rule=rule, hpa=flat("hpa", dear(2.0, few)))
    assert found.events == 80
    assert reason(found.cost_at_equal_service_vs_rule).startswith("insufficient events: 80")
    enough = replace(rule, violated=rule.violated * 1.25)
    found = compared(flat("one", dear(1.1, few)), rule=enough)
    assert found.events == 100
    assert value(found.cost_at_equal_service_vs_rule) > 1.0


def test_frontiers_that_do_not_overlap_are_not_compared() -> None:
    better = tuple((rate / 100, cost) for rate, cost in SLOPE)
    found = compared(flat("one", better))
    assert reason(found.cost_at_equal_service_vs_rule).endswith("of one, rule in all")
    assert value(found.violations_at_equal_cost_vs_rule) == pytest.approx(0.01)


def test_clairvoyant_that_is_not_known_leaves_the_other_ratios() -> None:
    found = compared(flat("one", dear(1.1)), clairvoyant=None)
    assert "clairvoyant" in reason(found.avoidable_cost_vs_hpa)
    assert value(found.cost_at_equal_service_vs_rule) == pytest.approx(1.1)


def test_nothing_avoidable_is_nothing_to_divide_by() -> None:
    found = compared(flat("one", dear(1.1)), clairvoyant=flat("clairvoyant", SLOPE))
    assert "nothing to divide by" in reason(found.avoidable_cost_vs_rule)


def test_one_day_has_no_interval() -> None:
    runs = {name: flat(name, SLOPE, days=1) for name in ("rule", "hpa", "clairvoyant")}
    found = compared(flat("one", dear(1.1), days=1), **runs)
    assert "one day" in reason(found.cost_at_equal_service_vs_rule)


@pytest.mark.parametrize(
    "change",
    [
        {"violated": np.full((1, 3, 1, DAYS), np.nan)},
        {"cost_usd": np.full((1, 3, 1, DAYS), np.inf)},
        {"violated": np.full((1, 3, 1, DAYS), JOBS + 1)},
        {"violated": np.full((1, 3, 1, DAYS), -1.0)},
        {"judged": np.full((1, 2, 1, DAYS), JOBS)},
        {"settings": (0.0, 1.0, 1.0)},
        {"days": ("day 0",) * DAYS},
        {"pools": ("all", "all")},
    ],
)
def test_what_is_no_number_or_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rule"):
        replace(flat("rule", SLOPE), **change)


def test_other_days_and_a_setting_that_was_not_run_are_refused() -> None:
    with pytest.raises(ValueError, match="other days"):
        compared(flat("one", SLOPE, days=DAYS + 1))
    with pytest.raises(ValueError, match="tuned setting"):
        compared(flat("one", SLOPE), tuned=0.5)


def uneven(
    name: str, *, seed: int, cost: float = 1.0, days: int = 40, seeds: int = 1, spread: float = 0.0
) -> Runs:
    """Return a controller whose days differ, by a load that is the same for all controllers.

    It moves costs and violations alike; `seed` adds noise of its own, and each of the `seeds` has
    another level of cost, `spread` in standard deviation.
    """
    load = np.random.default_rng(100).lognormal(0, 0.6, days)
    rng = np.random.default_rng(seed)
    one = flat(name, dear(cost), days=days, seeds=seeds)
    level = 1 + spread * rng.standard_normal((seeds, 1, 1, 1))
    noise = 1 + 0.02 * rng.standard_normal((seeds, 1, 1, days))
    rate = load / load.max() * (1 + 0.05 * rng.standard_normal((seeds, 1, 1, days)))
    return replace(
        one,
        violated=np.clip(one.violated * rate, 0, JOBS),
        cost_usd=one.cost_usd * load * noise * level,
    )


def width(comparison: Comparison) -> float:
    assert isinstance(comparison, Ratio), comparison
    return comparison.high - comparison.low


def test_pairing_narrows_the_interval() -> None:
    """Days that differ threefold move both controllers alike, which unpaired days would not."""
    one, rule = uneven("one", seed=3, cost=1.1), uneven("rule", seed=4)
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(len(one.days))
    torn = replace(
        one, violated=one.violated[..., shuffled], judged=one.judged[..., shuffled],
        cost_usd=one.cost_usd[..., shuffled],
    )  # fmt: skip
    peers = {"rule": rule, "hpa": uneven("hpa", seed=5, cost=2.0)}
    paired, unpaired = compared(one, **peers), compared(torn, **peers)
    a, b = (each.cost_at_equal_service_vs_rule for each in (paired, unpaired))
    assert value(a) == pytest.approx(value(b))
    assert width(a) < width(b) / 3


def test_seeds_that_differ_widen_the_interval() -> None:
    rule = uneven("rule", seed=4)
    peers = {"rule": rule, "hpa": uneven("hpa", seed=5, cost=2.0)}
    alike = compared(uneven("one", seed=3, seeds=5), **peers).cost_at_equal_service_vs_rule
    apart = uneven("one", seed=3, seeds=5, spread=0.1)
    assert width(compared(apart, **peers).cost_at_equal_service_vs_rule) > 3 * width(alike)


def test_intervals_cover_the_true_ratio_as_often_as_they_claim() -> None:
    """Costs a tenth above the rule's on average, days of many loads, 150 samples of 30 days."""
    covered = 0
    for sample in range(150):
        rng = np.random.default_rng([7, sample])
        load = rng.lognormal(0, 0.6, 30)
        rule, one = flat("rule", SLOPE, days=30), flat("one", dear(1.1), days=30)
        rule = replace(rule, cost_usd=rule.cost_usd * load)
        dearer = 1 + rng.normal(0, 0.2, 30)
        one = replace(one, cost_usd=one.cost_usd * load * dearer)
        found = compared(one, rule=rule, clairvoyant=None, seed=sample)
        ratio = found.cost_at_equal_service_vs_rule
        assert isinstance(ratio, Ratio)
        covered += ratio.low <= 1.1 <= ratio.high
    assert 0.86 <= covered / 150 <= 0.99


def test_draws_that_cannot_be_compared_leave_no_interval() -> None:
    """The controller comes down to the rule's rate on one of eight days only."""
    rule = flat("rule", SLOPE)
    one = flat("one", ((0.041, 190.0), (0.16, 100.0)))
    violated = one.violated.copy()
    violated[:, 0, 0, 0] = 0.02 * JOBS
    found = compared(replace(one, violated=violated), rule=rule)
    told = reason(found.cost_at_equal_service_vs_rule)
    assert "no overlap" in told
    assert "% of the draws" in told


def test_same_seed_gives_the_same_interval_and_another_does_not() -> None:
    peers = {"rule": uneven("rule", seed=4), "hpa": uneven("hpa", seed=5, cost=2.0)}
    one = uneven("one", seed=3)
    first, again, other = (compared(one, **peers, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.cost_at_equal_service_vs_rule != other.cost_at_equal_service_vs_rule


def test_two_thousand_draws_take_seconds_at_most() -> None:
    peers = {"rule": uneven("rule", seed=4), "hpa": uneven("hpa", seed=5, cost=2.0)}
    begun = perf_counter()
    compared(uneven("one", seed=3, seeds=5), **peers, draws=2_000)
    assert perf_counter() - begun < 5.0
