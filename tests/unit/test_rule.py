"""The rule: grows at once, shrinks late, follows prices in steps."""

import dataclasses

import numpy as np
import pytest
from msgspec.structs import replace

from builders import batch
from gpuloop.reasoning.rule import RuleConfig, rule_action, spot_ideal_share, with_offsets
from gpuloop.schemas.policy import MIGRATION, ON_DEMAND, PRICE, SPOT, PoolBatch
from gpuloop.schemas.units import MINUTE_US

RULE = RuleConfig(
    forecast_weight=1.0, stuck_us=5 * MINUTE_US, spot_share=0.5, scarcity=0.5, usual_load=0.5
)


def nodes(wish: np.ndarray) -> float:
    return float(wish[0, ON_DEMAND] + wish[0, SPOT])


def test_a_queue_that_does_not_fit_is_answered_at_once():
    wish = rule_action(batch(gpus_allocated=[192.0], gpus_queued=[64.0]), RULE)
    assert nodes(wish) == 32


def test_a_trusted_forecast_grows_the_pool_ahead_of_its_demand():
    forecast = [[[180.0, 240.0, 300.0]] * 3]
    calm = rule_action(batch(gpus_allocated=[180.0]), RULE)
    ahead = rule_action(batch(gpus_allocated=[180.0], forecast_gpus=forecast), RULE)
    assert nodes(ahead) == 30 > nodes(calm)


def test_capacity_is_kept_while_demand_was_high_within_the_window():
    assert nodes(rule_action(batch(gpus_demanded_peak=[190.0]), RULE)) == 24
    assert nodes(rule_action(batch(gpus_demanded_peak=[100.0]), RULE)) == 13


def test_a_queue_that_fits_by_count_but_waits_gets_nodes_of_its_own():
    waiting = {"gpus_queued": [16.0], "oldest_wait_us": [10 * MINUTE_US]}
    assert nodes(rule_action(batch(**waiting), RULE)) == 26
    assert nodes(rule_action(batch(**waiting, nodes_arriving=[2.0]), RULE)) < 26


def test_the_wish_stays_within_the_bounds_of_the_pool():
    assert nodes(rule_action(batch(gpus_queued=[10_000.0]), RULE)) == 48
    none = [[[0.0] * 3] * 3]
    idle = batch(gpus_allocated=[0.0], gpus_demanded_peak=[0.0], forecast_gpus=none)
    assert nodes(rule_action(idle, RULE)) == 8


def lean(nodes: float) -> RuleConfig:
    return replace(RULE, spare_nodes=-nodes)


def test_a_pool_may_be_kept_short_of_what_its_queue_asks_for_but_not_of_what_runs():
    hungry = batch(gpus_allocated=[192.0], gpus_queued=[64.0])
    assert nodes(rule_action(hungry, lean(2))) == 32 - 2
    assert nodes(rule_action(hungry, lean(8))) == 24
    assert nodes(rule_action(hungry, lean(20))) == 24


def test_a_pool_that_is_kept_short_lets_go_of_as_much_less():
    once = batch(gpus_allocated=[80.0], gpus_demanded_peak=[160.0])
    assert nodes(rule_action(once, RULE)) == 20
    assert nodes(rule_action(once, lean(4))) == 16
    assert nodes(rule_action(once, lean(20))) == nodes(rule_action(once, lean(10))), "work stays"


def test_a_queue_that_is_stuck_gets_as_many_nodes_less_as_the_pool_is_kept_short_of():
    waiting = batch(gpus_queued=[16.0], oldest_wait_us=[10 * MINUTE_US])
    assert nodes(rule_action(waiting, lean(1))) == nodes(rule_action(waiting, RULE)) - 1


@pytest.mark.parametrize("seed", range(20))
def test_more_spare_nodes_never_want_fewer(seed: int):
    rng = np.random.default_rng(seed)
    columns = {
        "gpus_allocated": [float(rng.integers(0, 250))],
        "gpus_queued": [float(rng.integers(0, 100) * rng.integers(0, 2))],
        "gpus_demanded_peak": [float(rng.integers(0, 350))],
        "oldest_wait_us": [int(rng.integers(0, 12) * MINUTE_US)],
        "nodes_arriving": [float(rng.integers(0, 2))],
    }
    knob = (-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
    wanted = [
        nodes(rule_action(batch(**columns), replace(RULE, spare_nodes=spare))) for spare in knob
    ]
    assert wanted == sorted(wanted)


def test_growth_goes_to_spot_while_spot_pays_and_to_on_demand_else():
    hungry = {"gpus_allocated": [192.0], "gpus_queued": [64.0]}
    cheap = rule_action(batch(**hungry), RULE)
    dear = rule_action(batch(**hungry, interruptions=[5.0]), RULE)
    assert cheap[0, SPOT] == 16
    assert cheap[0, ON_DEMAND] == 16
    assert dear[0, SPOT] == 8
    assert dear[0, ON_DEMAND] == 24


def test_shrinking_gives_up_the_dearer_nodes_first():
    wish = rule_action(batch(gpus_demanded_peak=[150.0], gpus_allocated=[150.0]), RULE)
    assert wish[0, SPOT] == 8
    assert wish[0, ON_DEMAND] == 11


@pytest.mark.parametrize(("column", "share"), [(ON_DEMAND, 1.0), (SPOT, 0.0)])
def test_a_pool_with_one_billing_uses_it_alone(column: int, share: float):
    high = np.array([[48.0, 48.0, 1.0, 8.0]])
    high[0, column] = 0.0
    assert spot_ideal_share(batch(high=high), RULE)[0] == share


def test_the_price_moves_towards_the_reference_by_one_step_per_epoch():
    step = batch(reference_price=[8.0])
    assert rule_action(step, RULE)[0, PRICE] == pytest.approx(4.2)
    between = batch(reference_price=[8.0], price_epoch=[False])
    assert rule_action(between, RULE)[0, PRICE] == 4.0


def test_the_price_holds_without_a_market():
    assert rule_action(batch(reference_price=[np.nan]), RULE)[0, PRICE] == 4.0


def test_scarcity_raises_the_price_and_idleness_lowers_it():
    scarce = batch(gpus_allocated=[380.0], present=[[48.0, 0.0, 0.0, 4.0]])
    idle = batch(gpus_allocated=[0.0])
    assert rule_action(scarce, RULE)[0, PRICE] > 4.0 > rule_action(idle, RULE)[0, PRICE]


def test_jobs_move_only_where_nodes_are_suspected():
    assert rule_action(batch(), RULE)[0, MIGRATION] == 0.0
    assert rule_action(batch(jobs_at_risk=[2.0]), RULE)[0, MIGRATION] == 1.0


def test_each_row_of_a_batch_is_decided_as_if_it_were_alone():
    rows = {"gpus_allocated": [20.0, 190.0, 100.0], "gpus_queued": [0.0, 50.0, 8.0]}
    together = rule_action(batch(3, **rows), RULE)
    for row in range(3):
        alone = rule_action(batch(**{name: [of[row]] for name, of in rows.items()}), RULE)
        np.testing.assert_array_equal(together[row], alone[0])


def asked(on_demand: float, spot: float) -> tuple[PoolBatch, np.ndarray]:
    """Return what is wished for where so many nodes are asked for beyond the rule's wish."""
    mixed = batch(gpus_queued=[64.0], node_cost=[[10.0, 4.0]])
    told = dataclasses.replace(mixed, rule=rule_action(mixed, RULE))
    offsets = np.array([[on_demand, spot, 0.0, 0.0]]) / np.maximum(told.delta, 1.0)
    return told, with_offsets(told, offsets, RULE)


@pytest.mark.parametrize("more", [(3.0, 0.0), (0.0, 3.0), (5.0, -2.0)])
def test_what_is_wished_for_beyond_the_rule_is_bought_as_the_rule_buys(more):
    told, wish = asked(*more)
    assert nodes(wish) == pytest.approx(nodes(told.rule) + 3.0)
    np.testing.assert_allclose(wish, asked(0.0, 3.0)[1])
    assert wish[0, PRICE] == told.rule[0, PRICE]


def test_without_an_offset_the_rule_s_wish_stays_and_what_is_no_number_stays_none():
    told, wish = asked(0.0, 0.0)
    np.testing.assert_array_equal(wish, told.rule)
    strange = with_offsets(told, np.full((1, 4), np.nan), RULE)
    assert np.isnan(strange).all()
