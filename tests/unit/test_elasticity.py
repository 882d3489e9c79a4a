"""Curves of demand: what they recover from quotes, what they are not believed for, what ends it."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from gpuloop.reasoning import elasticity as curves
from gpuloop.schemas.policy import EPOCH_US, Floats
from gpuloop.schemas.units import HOUR_US

NORMAL = NormalDist()
SHARE = 0.85
"""Of tenants that accept the anchor."""
DAY = 24 * HOUR_US // EPOCH_US
HOLD = 6 * HOUR_US // EPOCH_US
POOLS = 60


def logistic(log_quote: Floats, elasticity: float) -> Floats:
    """Return the share that accepts in the family that is fitted."""
    odds = np.log(SHARE / (1.0 - SHARE)) - abs(elasticity) / (1.0 - SHARE) * log_quote
    return 1.0 / (1.0 + np.exp(-odds))


def lognormal(log_quote: Floats, elasticity: float) -> Floats:
    """Return the share that accepts in the twin's family, which is another."""
    z = NORMAL.inv_cdf(SHARE)
    sigma = NORMAL.pdf(z) / SHARE / abs(elasticity)
    return np.array([NORMAL.cdf(z - one / sigma) for one in log_quote])


def answers(rng: np.random.Generator, share: Floats, log_quote: Floats, a_day: float) -> Floats:
    jobs = rng.poisson(a_day / DAY, len(share))
    yes = rng.binomial(jobs, share)
    return np.stack([yes, log_quote, jobs - yes, log_quote], axis=-1)[:, None]


Family = Callable[[Floats, float], Floats]


def lived(
    elasticity: float,
    *,
    days: int,
    a_day: float,
    spread: float,
    after: float | None = None,
    family: Family = logistic,
) -> tuple[Floats, Floats]:
    """Return curves after days of quotes at +-spread, and whether each was ever trusted.

    From half of the days on the share that accepts is `after` at any price, if that is said.
    """
    rng = np.random.Generator(np.random.PCG64(7))
    found, ever = curves.blank(POOLS, 1), np.zeros(POOLS)
    log_quote = np.zeros(POOLS)
    for epoch in range(days * DAY):
        if epoch % (2 * HOLD) == 0:
            log_quote = spread * rng.choice([-1.0, 1.0], POOLS)
        elif epoch % HOLD == 0:
            log_quote = -log_quote
        gone = after is not None and epoch >= days * DAY // 2
        share = np.full(POOLS, after) if gone else family(log_quote, elasticity)
        said = answers(rng, share, log_quote, a_day)
        found = curves.fold(found, said, np.ones((POOLS, 1)))
        ever = np.maximum(ever, curves.trusted(found)[:, 0])
    return found, ever


RANGE = [-0.3, -0.6, -1.1, -2.0]


def estimates(found: Floats) -> tuple[Floats, Floats, Floats]:
    middle, low, high = curves.elasticity(found, np.zeros((POOLS, 1)))
    return middle[:, 0], low[:, 0], high[:, 0]


@pytest.mark.parametrize("elasticity", RANGE)
def test_known_elasticities_lie_within_their_intervals(elasticity: float) -> None:
    found, ever = lived(elasticity, days=28, a_day=120, spread=0.15)
    middle, low, high = estimates(found)
    assert np.mean((low <= elasticity) & (elasticity <= high)) >= 0.85
    assert np.median(middle) == pytest.approx(elasticity, rel=0.25)
    assert np.mean(ever) >= 0.9


@pytest.mark.parametrize("elasticity", RANGE)
def test_demand_of_another_family_is_recovered_nearly_as_well(elasticity: float) -> None:
    found, _ = lived(elasticity, days=28, a_day=120, spread=0.1, family=lognormal)
    assert np.median(estimates(found)[0]) == pytest.approx(elasticity, rel=0.25)


def test_more_answers_make_the_interval_narrower() -> None:
    def width(a_day: float) -> float:
        found, _ = lived(-1.0, days=7, a_day=a_day, spread=0.1)
        _, low, high = estimates(found)
        return float(np.median(np.log(low / high)))

    assert width(400) < 0.7 * width(40)


def test_prices_that_stand_still_tell_nothing_of_the_slope() -> None:
    found, ever = lived(-2.0, days=14, a_day=400, spread=0.0)
    before = curves.blank(1, 1)[0, 0]
    assert np.allclose(found[:, 0, curves.SLOPE], before[curves.SLOPE], atol=1e-9)
    assert np.allclose(found[:, 0, curves.SLOPE_PRECISION], before[curves.SLOPE_PRECISION])
    assert not ever.any()


def test_tenants_that_do_not_mind_the_price_are_not_believed_to() -> None:
    found, ever = lived(-1e-6, days=28, a_day=120, spread=0.1)
    assert np.mean(ever) <= 0.25
    assert np.mean(curves.trusted(found)) <= 0.1


def test_a_curve_whose_demand_has_drifted_is_retired() -> None:
    before, ever = lived(-2.0, days=8, a_day=300, spread=0.1)
    assert curves.trusted(before).mean() > 0.9
    after, ever = lived(-2.0, days=16, a_day=300, spread=0.1, after=SHARE)
    assert ever.mean() > 0.9
    assert curves.trusted(after).mean() <= 0.1


def test_a_curve_that_loses_its_lead_is_retired_at_once() -> None:
    found = curves.blank(1, 1)
    found[..., [curves.TRUSTED, curves.LEAD]] = 1.0, 0.5
    found[..., curves.LEVEL], found[..., curves.LEVEL_PRECISION] = 3.0, 1e3
    refused = np.array([[[0.0, 0.0, 1.0, 0.0]]])
    after = curves.fold(found, refused, np.ones((1, 1)))
    assert not curves.trusted(after).any()
    assert after[0, 0, curves.ANSWERED] > 0.0


def test_a_belief_without_news_becomes_the_prior_again() -> None:
    found, _ = lived(-2.0, days=7, a_day=300, spread=0.1)
    silence = np.zeros((POOLS, 1, curves.SAID))
    for _ in range(300 * DAY):
        found = curves.fold(found, silence, np.zeros((POOLS, 1)))
    prior = curves.blank(1, 1)[0, 0]
    columns = [curves.LEVEL, curves.SLOPE, curves.LEVEL_PRECISION, curves.SLOPE_PRECISION]
    assert np.allclose(found[..., columns], prior[columns], atol=0.05)


def test_a_curve_is_the_same_alone_and_beside_others() -> None:
    found, _ = lived(-1.1, days=3, a_day=200, spread=0.1)
    rng = np.random.Generator(np.random.PCG64(1))
    said = answers(rng, np.full(POOLS, 0.8), np.full(POOLS, 0.05), 500)
    together = curves.fold(found, said, np.ones((POOLS, 1)))
    alone = curves.fold(found[3:4], said[3:4], np.ones((1, 1)))
    assert np.array_equal(together[3:4], alone)


def test_what_was_said_is_the_growth_of_counts_at_their_mean_quotes() -> None:
    before = np.array([[4.0, 1.0, 8.0, 3.0]])
    after = np.array([[6.0, 2.0, 8.0 + 2 * 2.2, 3.0 + 2.4]])
    (said,) = curves.said_between(before, after, np.array(2.0))
    assert said == pytest.approx([2.0, np.log(1.1), 1.0, np.log(1.2)])


def test_counts_that_ran_back_say_nothing() -> None:
    before, after = np.array([[4.0, 1.0, 8.0, 3.0]]), np.array([[6.0, 0.0, 12.0, 0.0]])
    assert not curves.said_between(before, after, np.array(2.0)).any()
