"""The pricing benchmark: its worlds are what they are called, its page says what was played."""

import json
import re

import numpy as np
import pytest
from benchmarks.priced import report
from benchmarks.priced.assumptions import (
    ELASTICITIES,
    FALLING,
    accepting,
    elasticity_at,
    scaled,
    worlds,
)
from benchmarks.priced.play import Days, Seller, Sold, fixed, followed, play
from benchmarks.priced.results import (
    LEARNED,
    Results,
    as_json,
    difference,
    terms_of,
    world_of,
)
from benchmarks.priced.tables import verdict

from gpuloop.reasoning import elasticity
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.policy import Floats
from gpuloop.twin.config import SEGMENTS, TwinConfig
from gpuloop.twin.workload import build_workload

CONFIG = TwinConfig()
LAW = PricingConfig()
DAYS, LEAD, POOLS = 12, 2, 3
RNG = np.random.Generator(np.random.PCG64(3))


@pytest.mark.parametrize("wanted", ELASTICITIES)
@pytest.mark.parametrize("name", sorted(SEGMENTS))
def test_a_scaled_segment_has_its_elasticity_and_its_share(name: str, wanted: float) -> None:
    segment = SEGMENTS[name]  # type: ignore[index]
    found = scaled(segment, wanted)
    assert elasticity_at(found, 0.0) == pytest.approx(wanted)
    assert accepting(found) == pytest.approx(accepting(segment))
    slope = np.log(accepting(found, 1e-4) / accepting(found, -1e-4)) / 2e-4
    assert slope == pytest.approx(wanted, rel=1e-3)


def test_worlds_differ_in_what_they_are_called_alone() -> None:
    found = worlds(CONFIG)
    assert len(found) == len(ELASTICITIES) + 4
    assert all(one.seed == CONFIG.seed and one.start_us == CONFIG.start_us
               for one in found.values())  # fmt: skip
    assert found[FALLING].pools[0].billings == ("spot",)
    assert found[FALLING].pools[1:] == CONFIG.pools[1:]


def days(margin: float) -> Days:
    shape = (DAYS, 1, POOLS)
    ones = np.ones(shape)
    return Days(
        margin_usd=margin * ones + RNG.normal(0.0, 1.0, shape),
        refused=10.0 * ones,
        priced_out=5.0 * ones,
        refused_usd=300.0 * ones,
        priced_out_usd=100.0 * ones,
        asked=100.0 * ones,
        sold=40.0 * ones,
        rented=50.0 * ones,
        price_ratio=1.25 * ones,
    )


def sold(**margins: float) -> Sold:
    curves: Floats = elasticity.blank(POOLS, 3)[None]
    curves[..., elasticity.ANSWERED] = 50.0
    return Sold(
        days={name: days(margin) for name, margin in margins.items()},
        curves={LEARNED: curves},
        quotes={LEARNED: np.full((1, POOLS), 1.1)},
        ceiling=np.full((1, POOLS), 4.0),
    )


def results(learned: float = 1_000.0) -> Results:
    played = sold(fixed=1_000.0, rule=1_500.0, learned=learned)
    terms, outcomes = terms_of(sold(**{LEARNED: learned, "no off-peak term": 900.0}), LEAD, LAW)
    return Results(
        dates=tuple(f"2017-10-{16 + day}" for day in range(DAYS - LEAD)),
        lead_days=LEAD,
        pools=("h100", "a100", "l4"),
        rivals=("fixed", "rule"),
        worlds=(world_of("as calibrated", CONFIG, 0, played, LEAD, LAW),),
        terms=terms,
        terms_outcomes=outcomes,
    )


def page(found: Results) -> str:
    return report.markdown(found, refused=0.1, priced_out=0.1, ceiling=1.5)


def test_the_pages_figures_are_those_that_were_played() -> None:
    found = results()
    told = page(found)
    (world,) = found.worlds
    learned = next(one for one in world.outcomes if one.seller == LEARNED)
    assert learned.margin_usd == pytest.approx(3_000.0, abs=5.0)
    assert learned.net_usd == pytest.approx(learned.margin_usd - 3 * (30.0 + 10.0), abs=0.2)
    assert learned.occupancy == 0.8
    assert learned.occupancy_of_ceiling == round(40.0 / (4.0 * 24.0), 4)
    assert f"| **learned** | {learned.margin_usd:,.0f} | {learned.net_usd:,.0f} | 80.0% |" in told
    for one in world.differences:
        assert f"{one.value:+,.0f} ({one.low:+,.0f} to {one.high:+,.0f})" in told
    assert json.loads(as_json(found))["learned_less"]["as calibrated"]["rule"]["value"] == (
        world.differences[1].value
    )


def test_the_same_results_make_the_same_page() -> None:
    found = results()
    assert page(found) == page(found)


def test_where_it_loses_is_said_first_and_plainly() -> None:
    losses = re.search(r"Against \*rule\* it (.*)", page(results(learned=1_000.0)))
    wins = re.search(r"Against \*rule\* it (.*)", page(results(learned=2_000.0)))
    assert losses is not None
    assert wins is not None
    assert losses[1].startswith("**loses** in as calibrated (-1,5")
    assert wins[1].startswith("**wins** in as calibrated (+1,")


def test_an_interval_that_holds_zero_tells_nothing_apart() -> None:
    assert verdict(difference("rule", np.array([-3.0, 2.0, 4.0, -2.0]))) == ("is not told apart")


def test_days_before_the_scored_ones_do_not_count() -> None:
    played = sold(learned=1.0, rule=1.0)
    played.days["rule"].margin_usd[:LEAD] = 1e9
    world = world_of("as calibrated", CONFIG, 0, played, LEAD, LAW)
    assert abs(world.differences[0].value) < 5.0


def test_sellers_meet_the_same_jobs_and_their_own_prices() -> None:
    workload = build_workload(
        None, "generator", start_us=CONFIG.start_us, seed=CONFIG.seed, shape=CONFIG.shape
    )
    sellers = (
        Seller(name="fixed", price=fixed),
        Seller(name="dear", price=followed(1.5, LAW)),
        Seller(name=LEARNED, learned=LAW),
    )
    found = play([CONFIG], workload, sellers, rule=RuleConfig(), traces=None, days=1).days
    still, dear, learned = found["fixed"], found["dear"], found[LEARNED]
    assert np.allclose(still.price_ratio, 1.0)
    assert not still.priced_out.any()
    assert dear.price_ratio.mean() > 1.2
    assert (dear.priced_out <= dear.refused).all()
    assert dear.priced_out.sum() > 0.0
    assert (dear.asked == still.asked).all()
    assert (still.asked == learned.asked).all()
    assert (learned.price_ratio != 1.0).all()
