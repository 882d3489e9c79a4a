"""The envelope, guard by guard: what it holds back and what it says about it."""

import numpy as np
import pytest

from builders import START_US, batch, envelope_state
from gpuloop.actuators.envelope import (
    ASKED,
    REHEARSED,
    SENT,
    EnvelopeConfig,
    Executed,
    apply_envelope,
)
from gpuloop.schemas.policy import EPOCH_US, MIGRATION, ON_DEMAND, PRICE, SPOT
from gpuloop.schemas.units import MINUTE_US, SECOND_US

CONFIG = EnvelopeConfig()


def execute(wish: list[float], state=None, strange: bool = False, **columns) -> Executed:
    pool = batch(**columns)
    return apply_envelope(
        np.array([wish]), pool, state or envelope_state(), CONFIG, np.array([strange])
    )


def stages(executed: Executed) -> set[str]:
    return {one.stage for one in executed.adjustments[0]}


def test_a_modest_wish_passes_unchanged_and_without_a_word():
    executed = execute([18.0, 8.0, 0.0, 4.1])
    assert executed.action[0].tolist() == [18.0, 8.0, 0.0, 4.1]
    assert executed.adjustments == ((),)


@pytest.mark.parametrize("stale", ["capacity_fresh", "demand_fresh", "telemetry_fresh"])
def test_nothing_shrinks_on_a_stale_input(stale: str):
    executed = execute([12.0, 6.0, 0.0, 4.0], **{stale: [False]})
    assert executed.action[0, :2].tolist() == [16.0, 8.0]
    assert stages(executed) == {"freshness"}


def test_growing_takes_a_fresh_demand_and_nothing_else():
    grown = execute([18.0, 8.0, 0.0, 4.0], capacity_fresh=[False], telemetry_fresh=[False])
    held = execute([18.0, 8.0, 0.0, 4.0], demand_fresh=[False])
    assert grown.action[0, ON_DEMAND] == 18
    assert held.action[0, ON_DEMAND] == 16


def test_prices_hold_on_a_stale_market_and_migration_stops_on_stale_demand():
    assert execute([16, 8, 0, 4.1], market_fresh=[False]).action[0, PRICE] == 4.0
    assert execute([16, 8, 1, 4.0], demand_fresh=[False]).action[0, MIGRATION] == 0.0


def test_a_step_is_bounded_and_rounded_towards_the_present():
    executed = execute([40.0, 8.9, 0.0, 9.0])
    assert executed.action[0].tolist() == [21.0, 8.0, 0.0, 4.2]
    assert {"bounds", "delta"} <= stages(executed)


def test_prices_move_at_epochs_only():
    assert execute([16, 8, 0, 4.1], price_epoch=[False]).action[0, PRICE] == 4.0


@pytest.mark.parametrize("late_us", [0, 50 * SECOND_US, 2 * MINUTE_US])
def test_a_price_may_move_at_every_epoch_however_late_the_last_was_decided(late_us: int):
    past = envelope_state(last_price_us=[START_US - EPOCH_US + late_us])
    assert execute([16, 8, 0, 4.1], past).action[0, PRICE] == 4.1


def test_a_price_that_was_approved_at_the_end_of_an_epoch_stays_through_the_next():
    past = envelope_state(last_price_us=[START_US - MINUTE_US])
    assert execute([16, 8, 0, 4.1], past).action[0, PRICE] == 4.0


def test_a_price_moves_once_in_an_epoch():
    past = envelope_state(last_price_us=[START_US + 40 * SECOND_US])
    again = execute([16, 8, 0, 4.1], past, tick_us=[START_US + MINUTE_US])
    assert again.action[0, PRICE] == 4.0
    assert stages(again) == {"hysteresis"}


def test_the_pool_shrinks_only_some_time_after_it_grew():
    soon = envelope_state(last_growth_us=[START_US - 14 * MINUTE_US])
    later = envelope_state(last_growth_us=[START_US - 15 * MINUTE_US])
    assert execute([14.0, 8.0, 0.0, 4.0], soon).action[0, ON_DEMAND] == 16
    assert execute([14.0, 8.0, 0.0, 4.0], later).action[0, ON_DEMAND] == 14


def test_growth_never_waits_for_a_cooldown():
    just_now = envelope_state(last_growth_us=[START_US], last_shrink_us=[START_US])
    assert execute([18.0, 8.0, 0.0, 4.0], just_now).action[0, ON_DEMAND] == 18


def test_stops_are_bounded_per_window_and_never_rounded_down_to_none():
    spent = envelope_state(stopped=[5.0])
    assert execute([12.0, 8.0, 0.0, 4.0], spent).action[0, ON_DEMAND] == 15
    tiny = {"present": [[2.0, 0.0, 0.0, 4.0]], "low": [[1.0, 0.0, 0.0, 2.0]], "nodes_min": [1.0]}
    assert execute([1.0, 0, 0, 4.0], gpus_allocated=[4.0], **tiny).action[0, ON_DEMAND] == 1


def test_starts_are_bounded_per_window():
    spent = envelope_state(started=[47.0])
    assert execute([20.0, 8.0, 0.0, 4.0], spent).action[0, ON_DEMAND] == 17


def test_running_work_keeps_its_nodes():
    executed = execute([12.0, 8.0, 0.0, 4.0], gpus_allocated=[23 * 8.0])
    assert executed.action[0, ON_DEMAND] == 15


def test_migration_stops_when_the_window_is_spent():
    assert execute([16, 8, 1, 4.0], envelope_state(migrated=[2.0])).action[0, MIGRATION] == 0.0
    assert execute([16, 8, 1, 4.0], envelope_state(migrated=[1.0])).action[0, MIGRATION] == 1.0


def test_growth_over_both_kinds_stays_under_the_ceiling_of_the_pool():
    present = [[30.0, 16.0, 0.0, 4.0]]
    executed = execute([33.0, 19.0, 0.0, 4.0], present=present)
    assert executed.action[0, :2].sum() == 48


def test_growth_stays_within_the_budget_of_the_pool():
    spent = 16 * 29.0 + 8 * 12.0
    executed = execute([20.0, 10.0, 0.0, 4.0], budget=[spent + 60.0])
    assert executed.action[0, :2].tolist() == [17.0, 10.0]
    assert "projection" in stages(executed)


def test_pools_share_the_budget_of_their_fleet_and_only_of_theirs():
    spent = 2 * (16 * 29.0 + 8 * 12.0)
    three = batch(3, fleet=[0, 0, 1], fleet_budget=[spent + 58.0, spent + 58.0, np.inf])
    wish = np.array([[18.0, 8.0, 0.0, 4.0]] * 3)
    executed = apply_envelope(wish, three, envelope_state(3), CONFIG)
    assert executed.action[:, ON_DEMAND].tolist() == [17.0, 17.0, 18.0]


def test_a_billing_that_nobody_offers_is_not_bought():
    executed = execute([18.0, 10.0, 0.0, 4.0], node_cost=[[29.0, np.inf]])
    assert executed.action[0, :2].tolist() == [18.0, 8.0]


UNKNOWN = [[29.0, np.inf]]
"""Prices of a node: the spot nodes that stand have none."""


@pytest.mark.parametrize("budget", [{"budget": [9_999.0]}, {"fleet_budget": [9_999.0]}])
def test_a_budget_denies_growth_while_nobody_knows_what_stands_costs(budget: dict):
    executed = execute([18.0, 8.0, 0.0, 4.0], node_cost=UNKNOWN, **budget)
    assert executed.action[0, :2].tolist() == [16.0, 8.0]
    assert "not known" in executed.adjustments[0][-1].reason


def test_unknown_costs_of_one_pool_deny_growth_to_its_fleet_and_to_no_other():
    three = batch(3, fleet=[0, 0, 1], fleet_budget=[9_999.0] * 3, node_cost=[*UNKNOWN, [29, 12],
                                                                             [29, 12]])  # fmt: skip
    wish = np.array([[18.0, 8.0, 0.0, 4.0]] * 3)
    action = apply_envelope(wish, three, envelope_state(3), CONFIG).action
    assert action[:, ON_DEMAND].tolist() == [16.0, 16.0, 18.0]


def test_an_unknown_cost_still_lets_nodes_go():
    executed = execute([15.0, 7.0, 0.0, 4.0], node_cost=UNKNOWN, budget=[9_999.0])
    assert executed.action[0, :2].tolist() == [15.0, 7.0]


GROWING = np.array([[18.0, 8.0, 0.0, 4.0]] * 2)
SPENT = 2 * (16 * 29.0 + 8 * 12.0)


@pytest.mark.parametrize("tier", [ASKED, REHEARSED])
def test_growth_that_is_not_sent_takes_nothing_from_a_pool_that_acts(tier: int):
    two = batch(2, fleet_budget=[SPENT + 58.0] * 2)
    executed = apply_envelope(GROWING, two, envelope_state(2, tier=[SENT, tier]), CONFIG)
    assert executed.action[:, ON_DEMAND].tolist() == [18.0, 16.0]


@pytest.mark.parametrize("held", ["frozen", "breaker_open"])
def test_growth_that_is_held_takes_nothing_from_a_pool_that_acts(held: str):
    two = batch(2, fleet_budget=[SPENT + 58.0] * 2)
    executed = apply_envelope(GROWING, two, envelope_state(2, **{held: [False, True]}), CONFIG)
    assert executed.action[:, ON_DEMAND].tolist() == [18.0, 16.0]


def test_rehearsals_share_what_those_that_act_leave():
    three = batch(3, fleet_budget=[1.5 * SPENT + 4 * 29.0] * 3)
    past = envelope_state(3, tier=[REHEARSED, SENT, REHEARSED])
    wish = np.array([[18.0, 8.0, 0.0, 4.0]] * 3)
    executed = apply_envelope(wish, three, past, CONFIG)
    assert executed.action[:, ON_DEMAND].tolist() == [17.0, 18.0, 17.0]


def test_what_a_rehearsal_would_save_is_not_there_to_be_spent():
    two = batch(2, fleet_budget=[SPENT] * 2)
    wish = np.array([[18.0, 8.0, 0.0, 4.0], [14.0, 8.0, 0.0, 4.0]])
    shown = apply_envelope(wish, two, envelope_state(2, tier=[SENT, REHEARSED]), CONFIG).action
    done = apply_envelope(wish, two, envelope_state(2), CONFIG).action
    assert shown[:, ON_DEMAND].tolist() == [16.0, 14.0]
    assert done[:, ON_DEMAND].tolist() == [18.0, 14.0]


def test_a_wish_that_is_not_a_number_is_replaced_by_the_rules():
    executed = execute([np.nan, 8.0, 0.0, 4.0], rule=[[18.0, 8.0, 0.0, 4.0]])
    assert executed.action[0, ON_DEMAND] == 18
    assert stages(executed) == {"fallback"}


def test_the_rules_wish_passes_every_guard_again():
    executed = execute([np.inf, 8.0, 0.0, 4.0], rule=[[40.0, 8.0, 0.0, 4.0]])
    assert executed.action[0, ON_DEMAND] == 21
    assert stages(executed) == {"fallback", "delta"}


def test_a_policy_outside_its_training_range_is_replaced_by_the_rule():
    executed = execute([18.0, 8.0, 0.0, 4.0], strange=True)
    assert executed.action[0, ON_DEMAND] == 16
    assert stages(executed) == {"out_of_range"}


def test_an_empty_plan_is_refused_even_from_the_rule():
    executed = execute([0.0, 0.0, 0.0, 4.0], rule=[[0.0, 0.0, 0.0, 4.0]], low=[[0, 0, 0, 2.0]])
    assert executed.action[0, :2].tolist() == [16.0, 8.0]
    assert "fallback" in stages(executed)


def test_an_open_breaker_and_a_freeze_hold_everything():
    for held in (envelope_state(breaker_open=[True]), envelope_state(frozen=[True])):
        executed = execute([18.0, 8.0, 1.0, 4.2], held)
        assert executed.action[0].tolist() == [16.0, 8.0, 0.0, 4.0]


def test_nothing_is_asked_for_while_a_command_is_under_way():
    busy = envelope_state(scaling_in_flight=[True], pricing_in_flight=[True])
    assert execute([18.0, 8.0, 0.0, 4.2], busy).action[0].tolist() == [16.0, 8.0, 0.0, 4.0]


def test_a_pool_outside_its_bounds_is_never_forced_only_let_back():
    over = {"present": [[50.0, 8.0, 0.0, 4.0]]}
    assert execute([50.0, 8.0, 0.0, 4.0], **over).action[0, ON_DEMAND] == 50
    assert execute([55.0, 8.0, 0.0, 4.0], **over).action[0, ON_DEMAND] == 50
    assert execute([45.0, 8.0, 0.0, 4.0], **over).action[0, ON_DEMAND] == 45


def test_spot_only_pools_may_not_rent_on_demand():
    pool = {"present": [[0.0, 16.0, 0.0, 4.0]], "high": [[0.0, 48.0, 1.0, 8.0]],
            "low": [[0.0, 8.0, 0.0, 2.0]]}  # fmt: skip
    assert execute([3.0, 18.0, 0.0, 4.0], **pool).action[0, :2].tolist() == [0.0, 18.0]
    assert batch(**pool).delta[0, ON_DEMAND] == 0.0
    assert batch(**pool).delta[0, SPOT] > 0.0
