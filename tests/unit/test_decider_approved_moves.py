"""A yes to moving a job counts only while the reason for it does, and within what may be moved."""

from builders import FLEET, pool_state, received
from decider_loop import Loop, commands, proposals
from gpuloop.loop.decide.release import ANSWER_WALL_US, Waiting
from gpuloop.loop.decide.suspects import SUSPICION_US
from gpuloop.schemas.component import Output
from gpuloop.schemas.messages import Approval, Command, Fault
from gpuloop.schemas.units import MINUTE_US, SECOND_US

CALM = pool_state(allocated=190, running_jobs=50)
NODE = "a100-d001"
MINUTES_TO_LAPSE = SUSPICION_US // MINUTE_US + 1


def news(loop: Loop, kind: str) -> list[Output]:
    fault = Fault(fleet=FLEET, node=NODE, pool="a100", kind=kind, event_time_us=loop.now_us,
                  boot=1, seq=1)  # fmt: skip
    return loop.send(received("telemetry.faults", fault))


def asked(*jobs: str) -> tuple[Loop, list[Command]]:
    """Return a loop in which a person is asked to let these jobs leave a failing node."""
    loop = Loop(mode="advise")
    loop.minute(CALM)
    loop.running(*jobs, node=NODE)
    return loop, [one.command for one in proposals(news(loop, "lost"))]


def moves_waiting(loop: Loop) -> list[Waiting]:
    return [one for one in loop.state.desk.waiting.values() if one.command.actuator == "migration"]


def approve(loop: Loop, command: Command) -> tuple[list[str], str]:
    """Return the jobs that a yes moves, and how the proposal ended."""
    yes = Approval(
        fleet=FLEET, command_id=command.command_id, digest=command.digest, approve=True, by="ada"
    )
    outputs = loop.send(received("approvals", yes))
    (ended,) = proposals(outputs)
    return [one.target for one in commands(outputs)], f"{ended.state}: {ended.command.reason}"


def test_a_yes_while_the_reason_holds_moves_the_job():
    loop, (command,) = asked("j1")
    assert approve(loop, command)[0] == ["j1"]


def test_a_yes_after_the_node_has_recovered_moves_nothing():
    loop, (command,) = asked("j1")
    news(loop, "recovered")
    moved, ended = approve(loop, command)
    assert moved == []
    assert ended.startswith("stale: no node that j1 runs on is under suspicion any more")


def test_a_question_whose_reason_is_gone_is_withdrawn_and_says_why():
    loop, _ = asked("j1")
    news(loop, "recovered")
    (ended,) = proposals(loop.minute(CALM))
    assert ended.state == "stale"
    assert "under suspicion" in ended.command.reason


def test_a_yes_on_a_demand_that_is_hours_old_moves_nothing():
    loop, (command,) = asked("j1")
    for _ in range(120):
        loop.minute()
    moved, ended = approve(loop, command)
    assert moved == []
    assert "demand" in ended


def test_a_yes_beyond_the_budget_of_now_moves_nothing():
    loop, waiting = asked("j1", "j2", "j3", "j4", "j5")
    assert len(waiting) == 5
    loop.minute(pool_state(running_jobs=4))
    answers = [approve(loop, command) for command in waiting]
    assert [len(moved) for moved, _ in answers] == [1, 0, 0, 0, 0]
    assert "budget" in answers[1][1]


def test_a_suspicion_outlasts_its_time_while_a_person_is_asked_about_its_node():
    loop, (command,) = asked("j1")
    for _ in range(MINUTES_TO_LAPSE):
        loop.minute(CALM)
    assert loop.wall_us < loop.state.desk.waiting[command.command_id].answer_by_wall_us
    assert approve(loop, command)[0] == ["j1"]


def test_a_suspicion_ends_with_the_time_to_answer_and_is_not_asked_about_again():
    loop, _ = asked("j1")
    for _ in range(MINUTES_TO_LAPSE):
        loop.minute(CALM)
    loop.wall_us += ANSWER_WALL_US
    loop.minute(CALM)
    assert not loop.state.suspects.nodes
    loop.minute(CALM)
    assert moves_waiting(loop) == []


def test_a_question_put_after_its_time_keeps_no_suspicion_alive():
    loop, _ = asked("j1")
    for _ in range(MINUTES_TO_LAPSE):
        loop.minute(CALM)
    loop.running("j2", node=NODE)
    loop.minute(CALM)
    loop.wall_us += ANSWER_WALL_US - 20 * SECOND_US
    loop.minute(CALM)
    assert [one.command.target for one in moves_waiting(loop)] == ["j2"]
    assert not loop.state.suspects.nodes
