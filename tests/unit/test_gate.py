"""A policy earns alpha only with evidence, and luck is evidence one time in twenty at most."""

import numpy as np
import pytest

from gpuloop.loop.learn.gate import ALPHAS, check_alpha, earn_alpha, student_t

CHECKS = 1500


def passed(*, days: int, leaning: float, effect: float = 0.0, seed: int = 0) -> float:
    """Return the share of random checks that pass; alphas share `leaning` of their variance."""
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(CHECKS):
        common = rng.standard_normal(days)
        differences = {
            alpha: list(
                effect
                + np.sqrt(leaning) * common
                + np.sqrt(1.0 - leaning) * rng.standard_normal(days)
            )
            for alpha in ALPHAS
        }
        count += earn_alpha(differences).alpha > 0
    return count / CHECKS


def test_a_policy_that_wins_every_day_earns_its_best_alpha():
    gate = earn_alpha({0.25: [10, 12, 9, 11, 10], 0.5: [20, 25, 18, 22, 21]})
    assert gate.alpha == 0.5


def test_a_policy_that_wins_on_average_by_one_lucky_day_earns_nothing():
    gate = earn_alpha({0.5: [500, -20, -30, -10, -25, -15, -5]})
    assert gate.checks[0].mean_usd_per_day > 0
    assert gate.alpha == 0.0


@pytest.mark.parametrize("leaning", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("days", [5, 7])
def test_of_policies_without_effect_at_most_one_in_twenty_passes(days, leaning):
    spread = np.sqrt(0.05 * 0.95 / CHECKS)
    assert passed(days=days, leaning=leaning) <= 0.05 + 2 * spread


def test_a_clear_effect_still_passes():
    assert passed(days=7, leaning=0.5, effect=2.0) > 0.9


def test_an_interval_widens_with_the_alphas_that_are_tried():
    days = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    alone, among = check_alpha(0.5, days, tried=1), check_alpha(0.5, days, tried=3)
    assert among.low_usd_per_day < alone.low_usd_per_day < alone.mean_usd_per_day
    assert among.high_usd_per_day > alone.high_usd_per_day


@pytest.mark.parametrize(
    ("beyond", "freedom", "value"),
    [(0.05, 6, 1.943), (0.025, 4, 2.776), (0.05, 1, 6.314), (0.005, 30, 2.750)],
)
def test_student_t_is_that_of_the_tables(beyond, freedom, value):
    assert student_t(beyond, freedom) == pytest.approx(value, abs=1e-3)


def test_one_good_day_is_not_evidence():
    gate = earn_alpha({0.5: [900.0]})
    assert gate.alpha == 0.0
    assert gate.checks[0].low_usd_per_day < 0


def test_a_policy_that_does_what_the_rule_does_earns_nothing():
    assert earn_alpha({0.5: [0.0] * 7}).alpha == 0.0


def test_no_evidence_earns_nothing():
    assert earn_alpha({}).alpha == 0.0


def test_the_figures_of_a_check_are_its_interval():
    figures = earn_alpha({0.5: [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]}).figures()
    low, mean, high = (figures[f"alpha_0.5_{n}_usd_per_day"] for n in ("low", "mean", "high"))
    assert low < mean < high
