"""What the decider does with news that is old, late, ahead of its time or not there yet."""

import pytest

from builders import FLEET, control, pool_state, received
from decider_loop import Loop, commands, decisions, proposals, replace
from gpuloop.loop.decide.observation import DEMAND_SILENT_US, freshness
from gpuloop.schemas.messages import Approval, Fault
from gpuloop.schemas.messages.actions import ScaleTo
from gpuloop.schemas.messages.control import Objectives, SetMode
from gpuloop.schemas.units import HOUR_US, MINUTE_US

CALM = pool_state(allocated=190, running_jobs=40)
HUNGRY = pool_state(allocated=192, queued=16)
IDLE = pool_state(allocated=20)
NODE = "a100-d001"


def settled(*pools, mode: str = "auto") -> Loop:
    loop = Loop(mode=mode)
    for _ in range(2):
        loop.minute(*pools)
    assert decisions(loop.outputs)
    return loop


def approve(loop: Loop, command):
    approval = Approval(
        fleet=FLEET,
        command_id=command.command_id,
        digest=command.digest,
        approve=True,
        by="ann",
    )
    return loop.send(received("approvals", approval))


def waiting_to_shrink() -> tuple[Loop, object]:
    """Return a loop, and the command to shrink that waits for a person in it."""
    loop = settled(CALM, mode="advise")
    for _ in range(30):
        made = [one.command for one in proposals(loop.minute(IDLE))]
        for command in made:
            if command.actuator == "scaling":
                assert command.to.on_demand_nodes + command.to.spot_nodes < 24
                return loop, command
    raise AssertionError("it never wished to shrink")


def test_a_state_from_the_future_neither_stays_fresh_nor_stops_the_decisions():
    loop = settled(CALM)
    ahead = replace(IDLE, tick_us=loop.now_us + HOUR_US)
    loop.send(received("state.pools", ahead, "a100"))
    assert loop.state.pools["a100"].latest.gpus_allocated == 190
    assert loop.state.dropped == {"pools from the future": 1}
    assert commands(loop.minute(HUNGRY))


def test_a_yes_to_shrink_releases_it_while_everything_is_known():
    loop, command = waiting_to_shrink()
    (released,) = commands(approve(loop, command))
    assert released.to == command.to


def test_a_yes_to_shrink_releases_nothing_once_its_inputs_are_stale():
    for change in ({"shards_reported": 3}, {"nodes_heard": 3}, {"capacity_age_us": 6 * MINUTE_US}):
        loop, command = waiting_to_shrink()
        news = replace(IDLE, tick_us=loop.now_us + MINUTE_US, **change)
        loop.send(received("state.pools", news, "a100"))
        assert commands(approve(loop, command)) == []
    loop, command = waiting_to_shrink()
    loop.now_us += 6 * MINUTE_US
    outputs = approve(loop, command)
    assert commands(outputs) == []
    assert [one.state for one in proposals(outputs)] == ["stale"]


def test_a_yes_to_shrink_releases_nothing_once_work_runs_on_all_nodes():
    loop, command = waiting_to_shrink()
    busy = replace(CALM, tick_us=loop.now_us + MINUTE_US)
    loop.send(received("state.pools", busy, "a100"))
    assert commands(approve(loop, command)) == []


def strike(loop: Loop, node: str = NODE, age_us: int = 0) -> list:
    fault = Fault(
        fleet=FLEET,
        node=node,
        pool="a100",
        kind="thermal",
        event_time_us=loop.now_us - age_us,
        boot=1,
        seq=1,
    )
    return loop.send(received("telemetry.faults", fault))


def test_a_yes_to_shrink_does_not_take_the_room_that_a_move_needs():
    loop, command = waiting_to_shrink()
    loop.send(control(SetMode(pool="*", actuator="migration", mode="auto")))
    loop.running("j1")
    assert [one.target for one in commands(strike(loop))] == ["j1"]
    outputs = approve(loop, command)
    assert commands(outputs) == []
    assert [one.state for one in proposals(outputs)] == ["stale"]


def test_a_released_command_holds_what_it_needs_like_any_other():
    loop, command = waiting_to_shrink()
    assert commands(approve(loop, command))
    assert [(name, one.actuator) for name, one in loop.state.desk.leases.items()] == [
        ("room/a100", "scaling")
    ]


def test_moves_that_wait_for_a_person_never_outnumber_the_budget():
    loop = settled(CALM, mode="advise")
    for index in range(6):
        node = f"a100-d{index:03}"
        loop.running(f"j{index}a", f"j{index}b", node=node, gpus=8 + index)
        strike(loop, node)
    for _ in range(3):
        loop.minute(CALM)
    shown = [one.command for one in proposals(loop.outputs) if one.command.actuator == "migration"]
    assert len(shown) == 4  # A tenth of the forty jobs that run.
    sent = [one for command in shown for one in commands(approve(loop, command))]
    assert len(sent) == 4
    assert proposals(loop.minute(CALM)) == []


def test_growth_that_is_on_its_way_has_spent_the_budget_of_the_fleet():
    other = replace(CALM, pool="h100")
    loop = settled(CALM, other)
    spent = 2 * (16 * 29_000_000 + 8 * 12_000_000)
    loop.send(control(Objectives(pool="*", usd_micros_per_hour_max=spent + 12_000_000)))
    (first,) = commands(loop.minute(HUNGRY, other))
    assert first.to == ScaleTo(on_demand_nodes=16, spot_nodes=9)
    hungry = replace(HUNGRY, pool="h100")
    assert commands(loop.minute(HUNGRY, hungry)) == []
    loop.answer(first, "failed", "error")
    assert len(commands(loop.minute(CALM, hungry))) == 1


def test_a_fault_that_is_heard_of_too_late_moves_nothing():
    loop = settled(CALM)
    loop.running("j1")
    assert strike(loop, age_us=30 * MINUTE_US) == []
    assert commands(loop.minute(CALM)) == []
    assert [one.target for one in commands(strike(loop, age_us=29 * MINUTE_US))] == ["j1"]


SILENT = {"demand_age_us": DEMAND_SILENT_US + 1}


@pytest.mark.parametrize("pool", [HUNGRY, IDLE])
def test_a_pool_whose_jobs_fell_silent_neither_grows_nor_shrinks(pool):
    for age_us, acts in ((None, True), (DEMAND_SILENT_US, True), (DEMAND_SILENT_US + 1, False)):
        loop = settled(CALM)
        told = replace(pool, demand_age_us=age_us)
        made = [one for _ in range(20) for one in commands(loop.minute(told))]
        assert bool(made) is acts


def test_a_decision_says_that_demand_is_silent():
    loop = settled(CALM)
    (decision,) = decisions(loop.minute(replace(HUNGRY, **SILENT)))
    assert "demand not fresh" in decision.why_not
    assert {"allocated_ratio", "queued_gpus_ratio"} <= set(decision.stale_inputs)
    assert "utilisation" not in decision.stale_inputs


def test_the_silence_of_jobs_goes_on_while_no_state_comes():
    loop = settled(CALM)
    loop.minute(replace(HUNGRY, demand_age_us=DEMAND_SILENT_US - 2 * MINUTE_US))
    memory = loop.state.pools["a100"].latest
    assert freshness(memory, loop.now_us + 2 * MINUTE_US)[1]
    assert not freshness(memory, loop.now_us + 2 * MINUTE_US + 1)[1]


def test_a_yes_to_grow_releases_nothing_once_the_jobs_fell_silent():
    loop = settled(CALM, mode="advise")
    (proposal,) = proposals(loop.minute(HUNGRY))
    news = replace(HUNGRY, tick_us=loop.now_us + 1, **SILENT)
    loop.send(received("state.pools", news, "a100"))
    (ended,) = proposals(approve(loop, proposal.command))
    assert (ended.state, "demand" in ended.command.reason) == ("stale", True)


def test_a_world_of_an_earlier_time_is_passed_over_counted_and_told():
    loop = settled(CALM)
    old = replace(HUNGRY, tick_us=loop.now_us - 16 * MINUTE_US)
    assert loop.send(received("state.pools", old, "a100")) == []
    assert loop.state.dropped == {"pools from the past": 1}
    assert loop.state.behind_us == 16 * MINUTE_US
    loop.minute(CALM)
    assert loop.state.behind_us == 0


def test_a_state_that_comes_again_is_no_other_world():
    loop = settled(CALM)
    loop.send(received("state.pools", replace(HUNGRY, tick_us=loop.now_us - MINUTE_US), "a100"))
    assert (loop.state.dropped, loop.state.behind_us) == ({}, 0)
