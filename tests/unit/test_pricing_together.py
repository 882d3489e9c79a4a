"""Capacity and price at once: corners are what was played, gains are told from their sum."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.controlling.entrants import POLICY
from benchmarks.controlling.play import Residual
from benchmarks.priced import joint
from benchmarks.priced.play import Days, Seller, Sold, fixed, followed, play, ruled
from benchmarks.priced.results import LEARNED, Results, Together, as_json
from benchmarks.priced.together import PRICES, RULE, name_of, on_policy, together_of

from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.policy import DIMENSIONS, PRICE, Floats
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.workload import build_workload

CONFIG = TwinConfig()
LAW = PricingConfig()
DAYS, LEAD, POOLS = 9, 2, 3
SELLERS = (
    Seller(name="fixed", price=fixed),
    Seller(name="market", price=followed(1.0, LAW)),
    Seller(name=RULE, price=ruled),
    Seller(name=LEARNED, learned=LAW),
)


def policy(alpha: float) -> Residual:
    """Return one that always asks for more of both billings, and for the lowest price."""

    def offsets(observation: Floats) -> Floats:
        wanted = np.ones((len(observation), len(DIMENSIONS)))
        wanted[:, PRICE] = -1.0
        return wanted

    baseline = CONTROLLERS["rule+forecast"]
    alphas = {pool.name: alpha for pool in CONFIG.pools}
    return Residual(baseline.make(RuleConfig()), offsets, alphas)


@pytest.fixture(scope="module")
def played() -> dict[str, Days]:
    """Return everyone's days, with a policy that does nothing and one that does a lot."""
    idle, busy = policy(0.0), policy(1.0)
    sellers = (
        *SELLERS,
        *on_policy(SELLERS, idle),
        *(replace(one, name=f"busy {one.name}") for one in on_policy(SELLERS, busy)),
    )
    return dict(lived(sellers).days)


def lived(sellers: tuple[Seller, ...]) -> Sold:
    workload = build_workload(
        None, "generator", start_us=CONFIG.start_us, seed=CONFIG.seed, shape=CONFIG.shape
    )
    return play([CONFIG], workload, sellers, rule=RuleConfig(), traces=None, days=1)


@pytest.mark.parametrize("price", PRICES)
def test_a_policy_that_offsets_nothing_earns_what_the_rule_does_to_the_cent(
    played: dict[str, Days], price: str
) -> None:
    rule, same = played[name_of(RULE, price)], played[name_of(POLICY, price)]
    for name in Days.__dataclass_fields__:
        assert (getattr(same, name) == getattr(rule, name)).all()


def test_who_else_plays_changes_nothing_to_the_cent(played: dict[str, Days]) -> None:
    (learned,) = (one for one in SELLERS if one.name == LEARNED)
    alone = lived((learned,)).days[LEARNED]
    assert (alone.margin_usd == played[LEARNED].margin_usd).all()


def test_a_policys_capacity_is_what_is_rented_and_its_price_is_not_asked(
    played: dict[str, Days],
) -> None:
    busy, still = played["busy policy, fixed"], played["fixed"]
    assert busy.rented.sum() > 1.05 * still.rented.sum()
    assert (busy.price_ratio == still.price_ratio).all()
    assert (busy.asked == still.asked).all()


def test_sellers_on_a_policy_are_those_whose_prices_are_compared_each_with_its_own() -> None:
    one = policy(1.0)
    found = on_policy(SELLERS, one)
    assert [seller.name for seller in found] == [name_of(POLICY, price) for price in PRICES]
    assert len({id(seller.capacity) for seller in found} | {id(one)}) == len(PRICES) + 1


RNG = np.random.Generator(np.random.PCG64(5))
LUCK = RNG.normal(0.0, 100.0, (DAYS, 1, POOLS))
"""A day's luck, which all sellers share."""


def days(margin: float, refused_usd: float = 0.0) -> Days:
    ones = np.ones((DAYS, 1, POOLS))
    return Days(
        margin_usd=margin / POOLS + LUCK + RNG.normal(0.0, 0.1, LUCK.shape),
        refused=ones, priced_out=ones, refused_usd=refused_usd / POOLS * ones,
        priced_out_usd=0.0 * ones, asked=10.0 * ones, sold=4.0 * ones, rented=5.0 * ones,
        price_ratio=ones,
    )  # fmt: skip


def together(both: float, *, refused_usd: float = 0.0) -> Together:
    """Return what comes of a policy that gains 50 and of a price that gains 200, alone."""
    margins = {
        (RULE, "fixed"): 900.0, (RULE, RULE): 1_000.0, (RULE, LEARNED): 1_200.0,
        (POLICY, "fixed"): 950.0, (POLICY, RULE): 1_050.0, (POLICY, LEARNED): both,
    }  # fmt: skip
    sold = Sold(
        days={
            name_of(*corner): days(usd, refused_usd if corner == (POLICY, LEARNED) else 0.0)
            for corner, usd in margins.items()
        },
        curves={},
        quotes={},
        ceiling=np.full((1, POOLS), 4.0),
    )
    for one in sold.days.values():
        one.margin_usd[:LEAD] = RNG.normal(0.0, 1e9, (LEAD, 1, POOLS))
    return together_of("as calibrated", 0, sold, LEAD, LAW)


def test_gains_are_paired_by_date_and_days_before_the_scored_ones_do_not_count() -> None:
    found = together(1_250.0)
    assert [one.against for one in found.capacity] == [*PRICES]
    assert [one.value for one in found.capacity] == pytest.approx([50.0] * 3, abs=0.5)
    assert [one.value for one in found.learned] == pytest.approx([200.0] * 2, abs=0.5)
    assert found.both.value == pytest.approx(250.0, abs=0.5)
    assert found.both.high - found.both.low < 1.0


def test_what_refusals_are_charged_is_off_the_gain_of_both() -> None:
    found = together(1_250.0, refused_usd=1_000.0)
    assert found.both.value == pytest.approx(250.0 - 1_000.0 * LAW.refused_charge, abs=0.5)
    (corner,) = (one for one in found.corners if (one.capacity, one.price) == (POLICY, LEARNED))
    assert corner.outcome.net_usd < corner.outcome.margin_usd - 99.0


@pytest.mark.parametrize(
    ("both", "said"),
    [(1_200.0, r"\*\*is less\*\* in as calibrated \(-5"), (1_300.0, r"\*\*is more\*\*")],
)
def test_the_page_says_whether_the_gain_of_both_is_the_sum(both: float, said: str) -> None:
    found = together(both)
    assert found.beyond.value == pytest.approx(both - 1_250.0, abs=0.5)
    page = joint.section((found,), {"h100": 0.5, "l4": 0.0})
    (beside,) = (one for one in page.splitlines() if one.startswith("- The gain of both"))
    assert re.search(said, beside)


def test_the_page_has_a_row_for_each_world_and_says_where_the_policy_loses() -> None:
    found = together(1_150.0)
    page = joint.section((found,), {"h100": 0.5, "l4": 0.0})
    assert "(h100 0.5, l4 0)" in page
    assert "**In 2 of 3 pairs of a world and a price" in page
    assert "earns more than the rule's, in 1 less; in 0 the two" in page
    assert "at the learned price: it **loses** in as calibrated (-" in page
    assert page.count("\n| as calibrated |") == 2
    (net,) = {one.outcome.net_usd for one in found.corners if one.price == RULE == one.capacity}
    assert f"/ {net:,.0f} |" in page


def test_the_last_line_tells_every_gain() -> None:
    found = together(1_250.0)
    results = Results(
        dates=(), lead_days=LEAD, pools=(), rivals=(), worlds=(), terms=(), terms_outcomes=(),
        together=(found,),
    )  # fmt: skip
    told = json.loads(as_json(results))["together"]["as calibrated"]
    assert told["both"]["value"] == found.both.value
    assert len(told["corners"]) == 2 * len(PRICES)
