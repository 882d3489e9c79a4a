"""What a person's answer does, and what is looked at again before a yes counts."""

import pytest

from builders import FLEET, control, pool_state, received
from decider_loop import Loop, commands, decisions, proposals, replace
from gpuloop.loop.decide.vetoes import ASK_AGAIN_WALL_US
from gpuloop.schemas.messages import Approval, Command, Fault, Proposal
from gpuloop.schemas.messages.control import SetMode
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
