"""The bound of a class lies below what controllers came to on its days, and is theirs by day."""

import dataclasses

import numpy as np
import pytest
from benchmarks.controlling.bounds import (
    CLAIRVOYANT,
    RATES,
    bound,
    bounds_apart,
    frontiers,
    worlds_of,
)
from benchmarks.controlling.evaluate import Plan
from benchmarks.controlling.frontier import Runs
from benchmarks.controlling.gather import cells_of, gather
from benchmarks.controlling.play import Entrant, Stage, play
from msgspec.structs import replace

from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.workload import DAY_US, Generator

FIRST_US = 20_000 * DAY_US


class Small:
    """Makes the worlds of this test in whichever process it is asked."""

    def plan(self) -> Plan:
        return with_another_pool(worlds_plan())


@pytest.fixture(scope="module")
def plan() -> Plan:
    return worlds_plan()


def worlds_plan() -> Plan:
    config = TwinConfig(seed=3)
    small = replace(
        config, start_us=FIRST_US, pools=config.pools[1:2], services=(), arrival_share=0.4
    )
    stage = Stage(
        configs=[small], workloads=[Generator("bursty", 3, FIRST_US)], traces=None, days=2
    )
    return Plan(
        stage=stage,
        classes=(("bursty", "bursty"),),
        dates=(("one", "two"),),
        synthetic=frozenset(),
    )


def with_another_pool(plan: Plan) -> Plan:
    """Return a plan with a second pool, which gets two of three jobs."""
    one = plan.stage.configs[0]
    weights = {size: 2.0 * weight for size, weight in one.pools[0].weights.items()}
    second = replace(one.pools[0], name="other", gpu_model="l4", weights=weights)
    return Plan(
        stage=dataclasses.replace(plan.stage, configs=[replace(one, pools=(one.pools[0], second))]),
        classes=plan.classes * 2,
        dates=plan.dates * 2,
        synthetic=frozenset(),
    )


@pytest.fixture(scope="module")
def rule(plan) -> Runs:
    baseline = CONTROLLERS["rule"]
    settings = (0.0, 2.0)
    entrants = [
        Entrant(
            name="rule",
            setting=setting,
            controller=baseline.make(baseline.turned(baseline.config(), setting)),
        )
        for setting in settings
    ]
    played = play(plan.stage, entrants)
    found = gather(
        "rule",
        settings,
        [list(played.scores)],
        chosen=cells_of("bursty", plan.classes),
        pools=plan.pools,
        dates=plan.dates,
        measure="batch",
    )
    assert found is not None
    return found


@pytest.fixture(scope="module")
def in_both(rule) -> Runs:
    """In the other pool nobody waited."""
    quiet = np.concatenate([rule.violated, np.zeros_like(rule.violated)], axis=2)
    return Runs(
        name="rule",
        settings=rule.settings,
        pools=("a100", "other"),
        days=rule.days,
        violated=quiet,
        judged=np.repeat(rule.judged, 2, axis=2),
        cost_usd=np.repeat(rule.cost_usd, 2, axis=2),
    )


def bound_of(plan: Plan, rule: Runs, told: list[str]) -> Runs:
    solved = frontiers(
        plan, worlds_of(plan), {"bursty": rule}, 0.0, lambda what, share: told.append(what)
    )
    least = bound(plan, "bursty", rule, 0.0, solved)
    assert least is not None
    return least


def test_the_bound_undercuts_the_rule_at_its_rate_and_is_spread_over_its_days(plan, rule):
    told: list[str] = []
    least = bound_of(plan, rule, told)
    assert least.name == CLAIRVOYANT
    assert (least.days, least.pools, least.settings) == (rule.days, rule.pools, RATES)
    usual = rule.violated[0, 0].sum() / rule.judged[0, 0].sum()
    rates = least.violated.sum(axis=(2, 3)) / least.judged.sum(axis=(2, 3))
    assert rates[0] == pytest.approx([usual * factor for factor in RATES])
    costs = least.cost_usd[0].sum(axis=(1, 2))
    assert (np.diff(costs) <= 1e-6).all(), "who may violate more pays no more"
    mine = rule.cost_usd[0, 0].sum()
    assert 0.5 * mine < costs[list(RATES).index(1.0)] <= mine
    assert (least.cost_usd > 0.0).all()
    assert told == ["bounding bursty days of a100, row 0"]


def test_each_pool_is_bound_at_its_own_rate(plan, in_both):
    """A second pool of which nobody waited is bound at none, and pays for none of the first's."""
    least = bound_of(with_another_pool(plan), in_both, [])
    assert not least.violated[0, :, 1].any()
    assert least.violated[0, 1:, 0].all()
    costs = least.cost_usd[0].sum(axis=2)
    assert costs[:, 1] == pytest.approx(costs[0, 1])
    assert costs[0, 1] > 0.0
    assert costs[0, 0] > costs[-1, 0]


def test_rows_of_most_jobs_are_bound_first(plan, in_both):
    both, told = with_another_pool(plan), []
    rules = worlds_of(both).rules
    bound_of(both, in_both, told)
    assert (rules.last - rules.first)[1] > (rules.last - rules.first)[0]
    assert told == ["bounding bursty days of other, row 1", "bounding bursty days of a100, row 0"]


def test_rows_bound_side_by_side_come_to_the_same(in_both):
    rules = {"bursty": in_both}
    (apart, alone) = (bounds_apart(Small(), rules, 0.0, processes=n)["bursty"] for n in (2, 1))
    assert apart is not None
    np.testing.assert_array_equal(apart.cost_usd, alone.cost_usd)
    told = bound_of(Small().plan(), in_both, [])
    np.testing.assert_array_equal(apart.cost_usd, told.cost_usd)
