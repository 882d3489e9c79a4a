"""Who owns the fleet: one start of one process, as the log of claims has it."""

from builders import FLEET, START_US, at, control, echo, pool_state, received
from decider_loop import WALL_US, Loop, commands, decisions
from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.decide.state import DeciderState
from gpuloop.schemas.component import Output, Received, Tick
from gpuloop.schemas.messages.control import Claim
from gpuloop.schemas.units import MINUTE_US

CALM = pool_state(allocated=190)
HUNGRY = pool_state(allocated=192, queued=16)
NOW = Tick(tick_us=START_US)


class Process:
    """A decider with an owner's name that others may have too, and a run that is its own."""

    def __init__(self, run: str, state: DeciderState | None = None) -> None:
        self.run = run
        self.decider = Decider(FLEET, owner="decider/0")
        self.state = state or self.decider.initial()

    def step(self, event: Received | Tick) -> list[Output]:
        context = at(START_US, WALL_US, run=self.run)
        self.state, outputs = self.decider.step(self.state, event, context)
        return [one for one in outputs if one.topic == "controls"]

    @property
    def owns(self) -> bool:
        return self.state.governance.owns


def quarrel(log: list[Output], *rivals: Process) -> list[Output]:
    """Let all read the log to its end, with what they add to it."""
    for output in log:
        for rival in rivals:
            log += rival.step(echo(output))
    return log


def test_of_two_deciders_of_one_name_that_start_together_one_owns_the_fleet():
    rivals = [Process("run-1"), Process("run-2")]
    log = [output for rival in rivals for output in rival.step(NOW)]
    assert len({one.event_id for one in log}) == 2
    quarrel(log, *rivals)
    assert [rival.owns for rival in rivals] == [False, True]
    assert [rival.state.governance.deposed for rival in rivals] == [True, False]


def test_a_process_that_goes_on_from_a_snapshot_claims_before_it_does_anything():
    first = Process("run-1")
    log = quarrel(first.step(NOW), first)
    assert first.owns
    second = Process("run-2", first.state)
    (claim,) = second.step(received("state.pools", CALM))
    assert claim.message.body == Claim(owner="decider/0@run-2", epoch=2)
    assert not second.owns
    quarrel([*log, claim], second)
    assert second.owns


def test_the_process_whose_place_was_taken_owns_nothing_once_it_reads_so():
    first = Process("run-1")
    log = quarrel(first.step(NOW), first)
    copy = Loop(own=False).decider.initial()
    second = Process("run-2", copy)
    for output in log:
        second.step(echo(output))
    quarrel(second.step(NOW), first, second)
    assert (first.owns, second.owns) == (False, True)


def test_a_decider_that_was_deposed_claims_again_when_it_is_started_anew():
    first = Process("run-1")
    quarrel(first.step(NOW), first)
    first.step(control(Claim(owner="another", epoch=5)))
    assert first.step(NOW) == []
    second = Process("run-2", first.state)
    quarrel(second.step(NOW), second)
    assert (second.owns, second.state.governance.epoch) == (True, 6)


def ready() -> Loop:
    loop = Loop()
    loop.minute(CALM)
    loop.minute(CALM)
    return loop


def test_an_outcome_of_a_higher_epoch_silences_the_decider_until_it_has_claimed_above_it():
    loop = ready()
    (command,) = commands(loop.minute(HUNGRY))
    loop.answer(command, "rejected", "stale_epoch", epoch=7)
    assert not loop.state.governance.owns
    fresh = loop.send(received("state.pools", CALM))
    assert decisions(fresh) == []
    loop.minute(HUNGRY)
    (again,) = commands(loop.minute(HUNGRY))
    assert again.epoch == 8


def test_an_outcome_of_a_higher_epoch_claims_nothing_once_the_others_claim_is_read():
    loop = ready()
    (command,) = commands(loop.minute(HUNGRY))
    loop.answer(command, "rejected", "stale_epoch", epoch=7)
    loop.send(control(Claim(owner="another", epoch=7)))
    for _ in range(3):
        assert decisions(loop.minute(HUNGRY)) == []
    assert loop.state.governance.epoch == 1


def test_an_outcome_of_its_own_epoch_that_comes_before_its_claim_is_read_changes_nothing():
    process = Process("run-1")
    (claim,) = process.step(NOW)
    loop = ready()
    (command,) = commands(loop.minute(HUNGRY))
    loop.answer(command, "applied")
    assert loop.state.governance.owns
    assert process.step(echo(claim)) == []
    assert process.owns
    assert START_US % MINUTE_US == 0
