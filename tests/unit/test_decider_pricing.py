"""Learned prices in the live decider: what it learns from, wishes for, explains and never does."""

from typing import Any

import numpy as np
import pytest

from builders import offer, pool_state, received
from decider_loop import Loop, commands, decisions, replace
from gpuloop.loop.decide.demand import learn_demand
from gpuloop.loop.decide.memory import PoolMemory
from gpuloop.reasoning import elasticity
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.schemas.messages import Decision, PoolState
from gpuloop.schemas.messages.state import ClassState, QuoteState
from gpuloop.schemas.policy import PRICE

CALM = pool_state(allocated=190)
QUOTE = CALM.quote_usd_micros_per_gpu_hour
CLASSES = (
    ClassState(
        job_class="batch", running_jobs=20, running_gpus=190, arrived_jobs=0, arrived_gpus=0
    ),
)
A_DAY = 96


class Market(Loop):
    """A pool whose tenants are seen to answer price; its quotes follow what is commanded."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.quote = QUOTE
        self.generation = 0
        self.said = [0, 0, 0, 0]
        self.told: list[Decision] = []

    def epoch(self, slope: float, jobs: int = 200) -> None:
        """Let a quarter of an hour pass; a share of jobs accepts that falls with the quote."""
        share = min(1.0, max(0.0, 0.85 - slope * (self.quote / QUOTE - 1.0)))
        accepted = round(jobs * share)
        for column, count in enumerate((accepted, jobs - accepted)):
            self.said[column] += count
            self.said[column + 2] += count * self.quote
        counts = self.said
        quotes = QuoteState(
            segment="batch",
            accepted_jobs=counts[0],
            refused_jobs=counts[1],
            accepted_quotes_sum_usd_micros=counts[2],
            refused_quotes_sum_usd_micros=counts[3],
        )
        for billing, usd in (("on_demand", 3.6), ("spot", 1.5)):
            self.send(received("market.offers", offer(billing, usd, at_us=self.now_us)))
        for _ in range(15):
            pool = replace(
                CALM,
                quotes=(quotes,),
                classes=CLASSES,
                quote_usd_micros_per_gpu_hour=self.quote,
                generations={"pricing": self.generation},
            )
            outputs = self.minute(pool)
            self.told += decisions(outputs)
            for command in commands(outputs):
                if command.actuator == "pricing":
                    self.quote = command.to.usd_micros_per_gpu_hour
                    self.generation += 1
                    self.answer(command, "applied")

    def days(self, days: float, slope: float) -> None:
        for _ in range(round(days * A_DAY)):
            self.epoch(slope)


def learned(slope: float, days: float = 2.0) -> Market:
    market = Market(pricing=PricingConfig())
    market.days(days, slope)
    return market


def noted(market: Market) -> Decision:
    return [one for one in market.told if one.pricing is not None][-1]


@pytest.fixture(scope="module")
def inelastic() -> Market:
    return learned(0.5)


def test_quotes_accepted_and_refused_become_a_trusted_elasticity(inelastic: Market) -> None:
    note = noted(inelastic).pricing
    assert note is not None
    (curve,) = note.curves
    assert (curve.segment, curve.trusted) == ("batch", True)
    ratio = noted(inelastic).pricing.target_usd * 1e6 / QUOTE
    assert curve.elasticity == pytest.approx(-0.5 * ratio / (0.85 - 0.5 * (ratio - 1.0)), rel=0.25)


def test_a_pool_whose_tenants_mind_little_is_priced_up_to_the_band(inelastic: Market) -> None:
    assert inelastic.quote > 1.15 * QUOTE
    dearest = max(one.executed_action[PRICE] for one in inelastic.told)
    assert dearest <= PricingConfig().highest * QUOTE / 1e6 + 1e-6


def test_the_envelope_stands_between_the_wish_and_the_price() -> None:
    market = Market(pricing=PricingConfig(price_step=0.5, explore=0.3))
    market.days(0.1, 0.5)
    (first, second) = [one for one in market.told if one.pricing is not None][:2]
    wished = max(abs(one.rule_action[PRICE] / (QUOTE / 1e6) - 1.0) for one in (first, second))
    done = abs(first.executed_action[PRICE] / (QUOTE / 1e6) - 1.0)
    assert wished > 0.1
    assert 0.0 < done <= 0.05 + 1e-6


def test_the_wish_is_explained_in_the_decision_and_in_its_command(inelastic: Market) -> None:
    priced = [one for one in inelastic.told if "USD per GPU-hour" in one.summary][-1]
    assert priced.pricing is not None
    reasons = [one.reason for one in commands(inelastic.outputs) if one.actuator == "pricing"]
    assert "elasticity of batch" in reasons[-1]
    assert "of demand known" in reasons[-1]


def test_what_is_known_of_demand_outlives_a_restart(inelastic: Market) -> None:
    before = inelastic.state.pools["a100"].demand
    inelastic.restart()
    after = inelastic.state.pools["a100"].demand
    assert before is not None
    assert after == before


def test_the_live_fold_is_the_one_of_vectorised_worlds() -> None:
    def seen(accepted: int, refused: int) -> PoolState:
        quotes = QuoteState(
            segment="batch",
            accepted_jobs=accepted,
            refused_jobs=refused,
            accepted_quotes_sum_usd_micros=accepted * QUOTE,
            refused_quotes_sum_usd_micros=refused * QUOTE,
        )
        found: PoolState = replace(CALM, quotes=(quotes,), classes=CLASSES)
        return found

    memory = PoolMemory(latest=seen(0, 0))
    learn_demand(memory)
    memory.latest = seen(9, 3)
    learn_demand(memory)
    queued = sum(one.gpus for one in CALM.queues if one.job_class == "batch")
    load = np.array([[190.0 + queued]])
    said = np.zeros((2, 1, 1, elasticity.SAID))
    said[1, 0, 0, [elasticity.JOBS_IN, elasticity.JOBS_OUT]] = 9.0, 3.0
    curves = elasticity.blank(1, 1)
    for one in said:
        curves = elasticity.fold(curves, one, load)
    assert memory.demand is not None
    assert memory.demand.curves["batch"] == curves[0, 0].tolist()


def test_without_the_option_the_price_is_the_rules_and_nothing_is_learned() -> None:
    market = Market()
    market.days(0.1, 0.5)
    assert market.state.pools["a100"].demand is None
    assert all(one.pricing is None for one in market.told)


def test_a_price_in_shadow_is_only_shown() -> None:
    market = Market(pricing=PricingConfig(), mode="shadow")
    market.days(0.2, 0.5)
    assert market.quote == QUOTE
    assert any(one.pricing is not None for one in market.told)
