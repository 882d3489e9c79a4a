"""A policy earns alpha only with evidence."""

from gpuloop.loop.learn.gate import earn_alpha


def test_a_policy_that_wins_every_day_earns_its_best_alpha():
    gate = earn_alpha({0.25: [10, 12, 9, 11, 10], 0.5: [20, 25, 18, 22, 21]}, seed=0)
    assert gate.alpha == 0.5


def test_a_policy_that_wins_on_average_by_one_lucky_day_earns_nothing():
    gate = earn_alpha({0.5: [500, -20, -30, -10, -25, -15, -5]}, seed=0)
    assert gate.checks[0].mean_usd_per_day > 0
    assert gate.alpha == 0.0


def test_one_good_day_is_not_evidence():
    assert earn_alpha({0.5: [900.0]}, seed=0).alpha == 0.0


def test_no_evidence_earns_nothing():
    assert earn_alpha({}, seed=0).alpha == 0.0


def test_the_verdict_is_a_function_of_the_seed_and_the_days():
    days = {0.5: [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]}
    assert earn_alpha(days, seed=1) == earn_alpha(days, seed=1)
    figures = earn_alpha(days, seed=1).figures()
    low, mean, high = (figures[f"alpha_0.5_{n}_usd_per_day"] for n in ("low", "mean", "high"))
    assert low < mean < high
