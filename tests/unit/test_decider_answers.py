"""What a person's answer does, and what is looked at again before a yes counts."""

import pytest

from builders import FLEET, control, offer, pool_state, received
from decider_loop import Loop, commands, decisions, proposals, replace
from gpuloop.loop.decide.vetoes import ASK_AGAIN_WALL_US
from gpuloop.schemas.messages import Approval, Command, Fault, Proposal
from gpuloop.schemas.messages.control import Objectives, SetMode
from gpuloop.schemas.units import MINUTE_US

CALM = pool_state(allocated=190, running_jobs=40)
HUNGRY = pool_state(allocated=192, queued=16)
IDLE = pool_state(allocated=20)


def asked_to_grow() -> tuple[Loop, Command]:
    """Return a loop, and the growth by two spot nodes that waits for a person in it."""
    loop = Loop(mode="advise")
    loop.minute(CALM)
    loop.minute(CALM)
    (proposal,) = proposals(loop.minute(HUNGRY))
    return loop, proposal.command


def answer(loop: Loop, command: Command, *, yes: bool, why: str = "") -> list[Proposal]:
    approval = Approval(
        fleet=FLEET,
        command_id=command.command_id,
        digest=command.digest,
        approve=yes,
        by="ann",
        reason=why,
    )
    return proposals(loop.send(received("approvals", approval)))


def test_after_a_no_the_same_direction_is_not_asked_for_again_and_the_decision_says_so():
    loop, command = asked_to_grow()
    (ended,) = answer(loop, command, yes=False, why="too dear")
    assert ended.command.reason.startswith("ann said no: too dear; holds for 30 minutes; ")
    hungrier = replace(HUNGRY, gpus_allocated=300)
    for pool in (HUNGRY, hungrier):
        outputs = loop.minute(pool)
        assert proposals(outputs) == []
        assert "ann said no: too dear" in decisions(outputs)[0].why_not
        assert decisions(outputs)[0].executed_action[:2] == (16.0, 8.0)


def test_a_no_is_forgotten_after_its_wall_time_and_survives_a_restart_until_then():
    loop, command = asked_to_grow()
    answer(loop, command, yes=False)
    loop.restart()
    loop.wall_us += ASK_AGAIN_WALL_US - 3_000_000
    assert proposals(loop.minute(HUNGRY)) == []
    loop.wall_us += 2_000_000
    assert [one.state for one in proposals(loop.minute(HUNGRY))] == ["awaiting"]
    assert loop.state.desk.vetoes == {}


def test_a_no_to_growing_leaves_shrinking_and_other_pools_alone():
    loop, command = asked_to_grow()
    answer(loop, command, yes=False)
    other = replace(HUNGRY, pool="h100")
    made = [one for _ in range(3) for one in proposals(loop.minute(HUNGRY, other))]
    assert [one.command.pool for one in made] == ["h100"]
    made = [one.command for _ in range(30) for one in proposals(loop.minute(IDLE, other))]
    assert any(one.pool == "a100" and one.actuator == "scaling" for one in made)


def test_a_no_to_moving_one_job_leaves_the_others_alone():
    loop = Loop(mode="advise")
    loop.minute(CALM)
    loop.minute(CALM)
    loop.running("j1", "j2")
    fault = Fault(fleet=FLEET, node="a100-d001", pool="a100", kind="thermal",
                  event_time_us=loop.now_us, boot=1, seq=1)  # fmt: skip
    asked = {one.command.target: one.command
             for one in proposals(loop.send(received("telemetry.faults", fault)))}  # fmt: skip
    answer(loop, asked["j1"], yes=False)
    answer(loop, asked["j2"], yes=True)
    loop.running("j3")
    assert [one.command.target for one in proposals(loop.minute(CALM))] == ["j3"]


def test_a_mode_granted_after_a_no_is_the_newer_word():
    loop, command = asked_to_grow()
    answer(loop, command, yes=False)
    loop.send(control(SetMode(pool="*", actuator="scaling", mode="auto")))
    assert len(commands(loop.minute(HUNGRY))) == 1


@pytest.mark.parametrize(
    ("mode", "why"), [("shadow", "scaling is in mode shadow now"), ("off", "mode off")]
)
def test_a_proposal_that_cannot_be_released_says_why(mode: str, why: str):
    loop, command = asked_to_grow()
    loop.send(control(SetMode(pool="*", actuator="scaling", mode=mode)))
    (ended,) = answer(loop, command, yes=True)
    assert (ended.state, why in ended.command.reason) == ("stale", True)


def test_a_proposal_that_nobody_answers_says_so():
    loop, _ = asked_to_grow()
    loop.wall_us += 10 * MINUTE_US
    assert "nobody answered in time" in proposals(loop.minute(HUNGRY))[0].command.reason


SPENT = 16 * 29_000_000 + 8 * 12_000_000


def refused(loop: Loop, command: Command) -> str:
    """Say yes, check that nothing is sent, and return the reason given."""
    (ended,) = answer(loop, command, yes=True)
    assert (ended.state, commands(loop.outputs)) == ("stale", [])
    return ended.command.reason


def test_a_yes_to_growth_releases_it_while_everything_allows_it():
    loop, command = asked_to_grow()
    budget = Objectives(pool="*", usd_micros_per_hour_max=SPENT + 2 * 12_000_000)
    loop.send(control(budget))
    assert [one.state for one in answer(loop, command, yes=True)] == ["approved"]
    assert [one.to for one in commands(loop.outputs)] == [command.to]


@pytest.mark.parametrize("pool", ["*", "a100"])
def test_a_yes_to_growth_releases_nothing_beyond_a_budget_set_meanwhile(pool: str):
    loop, command = asked_to_grow()
    budget = Objectives(pool=pool, usd_micros_per_hour_max=SPENT + 12_000_000)
    loop.send(control(budget))
    assert "a budget" in refused(loop, command)


def test_a_yes_to_growth_releases_nothing_beyond_a_ceiling_set_meanwhile():
    loop, command = asked_to_grow()
    loop.send(control(Objectives(pool="a100", nodes_max=25)))
    assert "ceiling" in refused(loop, command)


def test_a_yes_to_growth_releases_nothing_once_the_demand_is_not_fresh():
    loop, command = asked_to_grow()
    loop.now_us += 6 * MINUTE_US
    assert "held: demand" in refused(loop, command)


def test_a_second_yes_releases_nothing_when_the_first_has_spent_the_budget():
    loop = Loop(mode="advise")
    for _ in range(2):
        loop.minute(CALM, replace(CALM, pool="h100"))
    one, other = (
        found.command for found in proposals(loop.minute(HUNGRY, replace(HUNGRY, pool="h100")))
    )
    budget = Objectives(pool="*", usd_micros_per_hour_max=2 * SPENT + 3 * 12_000_000)
    loop.send(control(budget))
    assert answer(loop, one, yes=True)[0].state == "approved"
    (ended,) = answer(loop, other, yes=True)
    assert (ended.state, "a budget" in ended.command.reason) == ("stale", True)
    assert [sent.pool for sent in commands(loop.outputs)] == ["a100"]


def asked_for_a_price() -> tuple[Loop, Command]:
    """Return a loop, and the new quote that waits for a person in it, in the middle of an epoch."""
    loop = Loop(mode="advise")
    loop.minute(CALM)
    loop.send(received("market.offers", offer("on_demand", 6.0, at_us=loop.now_us)))
    made = [one.command for _ in range(16) for one in proposals(loop.minute(CALM))]
    (command,) = [one for one in made if one.actuator == "pricing"]
    for _ in range(3):
        loop.minute(CALM)
    return loop, command


def test_a_yes_to_a_price_releases_it_between_epochs_too():
    loop, command = asked_for_a_price()
    assert [one.state for one in answer(loop, command, yes=True)] == ["approved"]


def test_a_yes_to_a_price_releases_nothing_once_the_market_is_not_known():
    loop, command = asked_for_a_price()
    loop.now_us += 3 * 60 * MINUTE_US
    loop.send(received("state.pools", replace(CALM, tick_us=loop.now_us), "a100"))
    assert "market not fresh" in refused(loop, command)


def test_a_yes_to_a_price_releases_nothing_above_a_ceiling_set_meanwhile():
    loop, command = asked_for_a_price()
    loop.send(control(Objectives(pool="a100", price_ceiling_usd_micros=4_800_000)))
    assert "bounds" in refused(loop, command)
