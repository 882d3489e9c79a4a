"""Budgets at the decider: who may spend them, and what is known when they are spent."""

import pytest

from builders import control, pool_state
from decider_loop import Loop, commands, decisions, replace
from gpuloop.schemas.messages.actions import ScaleTo
from gpuloop.schemas.messages.control import Freeze, Objectives, SetMode
from gpuloop.schemas.units import MINUTE_US

CALM = pool_state(allocated=190)
HUNGRY = pool_state(allocated=192, queued=16)
SPENT = 16 * 29_000_000 + 8 * 12_000_000
SPOT_NODE = 12_000_000


def two_pools_and_room_for(micros: int) -> Loop:
    """Return a loop over pools a100 and h100 whose fleet may spend this much more an hour."""
    loop = Loop()
    for _ in range(2):
        loop.minute(CALM, replace(CALM, pool="h100"))
    budget = Objectives(pool="*", usd_micros_per_hour_max=2 * SPENT + micros)
    loop.send(control(budget))
    return loop


@pytest.mark.parametrize("mode", ["shadow", "off", "advise"])
def test_what_is_not_sent_takes_nothing_of_the_budget_that_others_act_on(mode: str):
    loop = two_pools_and_room_for(2 * SPOT_NODE)
    loop.send(control(SetMode(pool="h100", actuator="scaling", mode=mode)))
    (command,) = commands(loop.minute(HUNGRY, replace(HUNGRY, pool="h100")))
    assert (command.pool, command.to) == ("a100", ScaleTo(on_demand_nodes=16, spot_nodes=10))


def test_a_frozen_pool_takes_nothing_of_the_budget_that_others_act_on():
    loop = two_pools_and_room_for(2 * SPOT_NODE)
    loop.send(control(Freeze(target="h100", until_us=loop.now_us + 5 * MINUTE_US)))
    (command,) = commands(loop.minute(HUNGRY, replace(HUNGRY, pool="h100")))
    assert (command.pool, command.to) == ("a100", ScaleTo(on_demand_nodes=16, spot_nodes=10))


def test_pools_that_act_share_the_budget():
    loop = two_pools_and_room_for(2 * SPOT_NODE)
    made = commands(loop.minute(HUNGRY, replace(HUNGRY, pool="h100")))
    assert [one.to for one in made] == [ScaleTo(on_demand_nodes=16, spot_nodes=9)] * 2


def test_a_fleet_under_a_budget_does_not_grow_beside_nodes_of_unknown_cost():
    loop = two_pools_and_room_for(100 * SPOT_NODE)
    loop.state.offers.clear()
    tranches = tuple(replace(one, usd_micros_per_node_hour=0) for one in CALM.tranches)
    outputs = loop.minute(HUNGRY, replace(CALM, pool="h100", tranches=tranches))
    assert commands(outputs) == []
    assert "not known" in decisions(outputs)[0].why_not
