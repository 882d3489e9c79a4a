"""Reflexes: what a fault or a cause makes the decider do before the next tick."""

import pytest

from builders import FLEET, START_US, control, pool_state, received
from decider_loop import Loop, commands, decisions, proposals, replace
from gpuloop.schemas.messages import Cause, Fault
from gpuloop.schemas.messages.actions import MigrateTo
from gpuloop.schemas.messages.control import Freeze
from gpuloop.schemas.messages.insight import Suspect
from gpuloop.schemas.units import MINUTE_US

CALM = pool_state(allocated=190, running_jobs=40)
NODE = "a100-d001"


def ready(mode: str = "auto") -> Loop:
    loop = Loop(mode=mode)
    loop.minute(CALM)
    loop.minute(CALM)
    loop.running("j1", "j2")
    loop.running("elsewhere", node="a100-d002")
    loop.outputs.clear()
    return loop


def fault(kind: str = "thermal", node: str = NODE, **changes) -> Fault:
    base = Fault(
        fleet=FLEET, node=node, pool="a100", kind=kind, event_time_us=START_US, boot=1, seq=1
    )
    return replace(base, **changes)


def strike(loop: Loop, one: Fault) -> list:
    return loop.send(received("telemetry.faults", replace(one, event_time_us=loop.now_us)))


@pytest.mark.parametrize(
    "one",
    [
        fault("thermal"),
        fault("ecc"),
        fault("lost"),
        fault("reclaim_notice"),
        fault("xid", xid=79),
        fault("xid", xid=48),
        fault("xid", xid=154, recovery_action=2),
    ],
)
def test_a_failing_node_is_relieved_of_its_jobs_at_once(one: Fault):
    outputs = strike(ready(), one)
    assert [out.topic for out in outputs] == ["decisions", *["actions.migration"] * 2]
    (decision,) = decisions(outputs)
    assert decision.level == "node"
    assert decision.executed_action == (16.0, 8.0, 1.0, 4.8)
    assert [command.target for command in commands(outputs)] == ["j1", "j2"]
    assert commands(outputs)[0].to == MigrateTo(pool="a100", avoid_nodes=(NODE,))


@pytest.mark.parametrize(
    "one",
    [
        fault("recovered"),
        fault("xid", xid=45),
        fault("xid", xid=94),
        fault("xid", xid=63),
        fault("xid", xid=13),
        fault("xid", xid=99_999),
        fault("xid", xid=154, recovery_action=0),
    ],
)
def test_a_symptom_or_an_applications_fault_moves_nothing(one: Fault):
    assert strike(ready(), one) == []


def test_an_applications_fault_that_keeps_coming_back_on_one_gpu_moves_the_jobs():
    loop = ready()
    for gpu in (0, 1, 0, 1):
        assert strike(loop, fault("xid", xid=31, gpu_index=gpu)) == []
    assert commands(strike(loop, fault("xid", xid=13, gpu_index=0)))


def test_a_second_fault_of_the_same_trouble_starts_nothing_new():
    loop = ready()
    assert commands(strike(loop, fault("xid", xid=79)))
    loop.running("j3")
    assert strike(loop, fault("xid", xid=48)) == []
    assert strike(loop, fault("thermal")) == []


def test_a_node_that_recovers_can_fail_again():
    loop = ready()
    strike(loop, fault("thermal"))
    strike(loop, fault("recovered"))
    assert loop.state.suspects.nodes == {}
    loop.running("j3")
    assert [one.target for one in commands(strike(loop, fault("lost")))] == ["j3"]


def test_two_nodes_that_fail_at_one_instant_get_two_decisions():
    loop = ready()
    first = decisions(strike(loop, fault("lost")))
    second = decisions(strike(loop, fault("lost", node="a100-d002")))
    assert first[0].decision_id != second[0].decision_id


def test_moves_keep_to_the_budget_and_the_rest_follows_when_it_allows():
    loop = ready()
    loop.running(*(f"j{index}" for index in range(9)))
    assert len(commands(strike(loop, fault()))) == 4
    assert [one for one in commands(loop.minute(CALM)) if one.actuator == "migration"] == []


def test_what_a_reflex_left_over_is_moved_at_the_next_ticks():
    loop = ready()
    strike(loop, fault())
    loop.running("j7")
    later = commands(loop.minute(CALM))
    assert [one.target for one in later] == ["j7"]
    assert "overheats" in later[0].reason


def test_a_job_is_not_moved_again_right_after_a_move():
    loop = ready()
    for command in commands(strike(loop, fault())):
        loop.answer(command, "applied")
    loop.running("j1", generation=1)
    assert commands(loop.minute(CALM)) == []


def test_a_move_that_failed_is_tried_again_and_one_under_way_is_not():
    loop = ready()
    first, second = commands(strike(loop, fault()))
    loop.answer(first, "failed", "error")
    again = commands(loop.minute(CALM))
    assert [one.target for one in again] == [first.target]
    for one in (*again, second):
        loop.answer(one, "failed", "error")
    assert not loop.state.desk.spared
    assert not loop.state.desk.leases


def test_a_job_that_found_no_room_is_tried_again_a_while_later_and_not_every_minute():
    loop = ready()
    first, second = commands(strike(loop, fault()))
    loop.answer(first, "failed", "no_capacity")
    loop.answer(second, "applied")
    tried = [[one.target for one in commands(loop.minute(CALM))] for _ in range(8)]
    assert [targets for targets in tried if targets] == [[first.target]]
    assert tried.index([first.target]) >= 4


@pytest.mark.parametrize("reason", ["superseded", "unknown_target"])
def test_a_job_that_is_not_there_to_be_moved_is_not_asked_for_again(reason: str):
    loop = ready()
    for one in commands(strike(loop, fault())):
        loop.answer(one, "failed", reason)
    assert commands(loop.minute(CALM)) == []


def test_a_move_that_failed_frees_the_room_only_once_no_other_is_under_way():
    loop = ready()
    first, second = commands(strike(loop, fault()))
    loop.answer(first, "failed", "no_capacity")
    assert set(loop.state.desk.leases) == {"room/a100", f"job/{second.target}"}
    loop.answer(second, "applied")
    assert set(loop.state.desk.leases) == {"room/a100", f"job/{second.target}"}


def test_no_pool_is_shrunk_while_its_jobs_are_being_moved():
    loop, idle = ready(), replace(CALM, gpus_allocated=40, running_jobs=4)
    for _ in range(12):
        loop.minute(idle)
    strike(loop, fault())
    made = [decisions(loop.minute(idle))[0] for _ in range(5)]
    held = [note for one in made for note in one.adjustments if note.stage == "arbiter"]
    assert held
    assert "mitigation" in held[0].reason
    assert not [one for one in commands(loop.outputs) if one.actuator == "scaling"]


def test_shadow_shows_the_moves_and_a_frozen_job_stays():
    loop = ready("shadow")
    assert [one.state for one in proposals(strike(loop, fault()))] == ["shadow"] * 2
    loop = ready()
    loop.send(control(Freeze(target="j1", until_us=loop.now_us + MINUTE_US)))
    assert [one.target for one in commands(strike(loop, fault()))] == ["j2"]


def cause(subject: str = NODE, score: float = 0.8) -> Cause:
    return Cause(
        fleet=FLEET,
        cause_id="0" * 64,
        anomaly_id="1" * 64,
        symptom="j1",
        pool="a100",
        symptom_metric="progress",
        event_time_us=START_US,
        suspects=(Suspect(subject=subject, metric="temperature", score=score),),
        tier="fast",
        method="graph",
        elapsed_us=1000,
        timed_out=False,
        summary="",
    )


def test_a_cause_that_names_a_node_moves_its_jobs():
    loop = ready()
    outputs = loop.send(received("insight.causes", cause()))
    assert [one.target for one in commands(outputs)] == ["j1", "j2"]
    assert "a100-d001 explains progress of j1" in commands(outputs)[0].reason
    assert loop.send(received("insight.causes", cause())) == []


@pytest.mark.parametrize("one", [cause(score=0.4), cause(subject="rack-1"), cause(subject="j1")])
def test_a_weak_cause_or_one_that_names_no_node_moves_nothing(one: Cause):
    assert ready().send(received("insight.causes", one)) == []


def test_a_suspicion_lapses():
    loop = ready()
    strike(loop, fault())
    for _ in range(31):
        loop.minute(CALM)
    assert loop.state.suspects.nodes == {}


def test_moves_of_jobs_that_have_ended_or_left_meanwhile_open_no_breaker():
    loop, sent = ready(), 0
    for index in range(6):
        loop.running(f"x{index}", node=f"n{index}")
        for command in commands(strike(loop, fault(node=f"n{index}"))):
            sent += 1
            reason = ("superseded", "unknown_target")[index % 2]
            loop.answer(command, "failed", reason)
    assert sent == 6
    assert loop.state.pools["a100"].failures == 0
    assert not loop.state.pools["a100"].breaker_open
