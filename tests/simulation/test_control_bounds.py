"""The bound of a class lies below what controllers came to on its days, and is theirs by day."""

import numpy as np
import pytest
from benchmarks.controlling.bounds import CLAIRVOYANT, RATES, bound, worlds_of
from benchmarks.controlling.evaluate import Plan
from benchmarks.controlling.frontier import Runs
from benchmarks.controlling.gather import cells_of, gather
from benchmarks.controlling.play import Entrant, Stage, play
from msgspec.structs import replace

from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.workload import DAY_US, Generator

FIRST_US = 20_000 * DAY_US


@pytest.fixture(scope="module")
def plan() -> Plan:
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
        dates=plan.dates,
        measure="batch",
    )
    assert found is not None
    return found


def test_the_bound_undercuts_the_rule_at_its_rate_and_is_spread_over_its_days(plan, rule):
    told = []
    least = bound(plan, worlds_of(plan), "bursty", rule, 0.0, lambda what, share: told.append(what))
    assert least is not None
    assert least.name == CLAIRVOYANT
    assert least.days == rule.days
    usual = rule.violated[0, 0].sum() / rule.judged[0, 0].sum()
    assert least.settings == pytest.approx([usual * factor for factor in RATES])
    costs = least.cost_usd[0].sum(axis=1)
    assert (np.diff(costs) <= 1e-6).all(), "who may violate more pays no more"
    mine = rule.cost_usd[0, 0].sum()
    assert 0.5 * mine < costs[list(RATES).index(1.0)] <= mine
    assert (least.cost_usd > 0.0).all()
    assert told == ["bounding bursty days of row 0"]


def test_a_rule_without_violations_has_no_rate_to_be_bound_at(plan, rule):
    never = Runs(
        name="rule",
        settings=rule.settings,
        days=rule.days,
        violated=np.zeros_like(rule.violated),
        judged=rule.judged,
        cost_usd=rule.cost_usd,
    )
    assert bound(plan, worlds_of(plan), "bursty", never, 0.0, lambda *_: None) is None
