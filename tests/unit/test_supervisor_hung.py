"""The supervisor starts again what lives and answers no more, and only that."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import pytest

from gpuloop.loop.services.health import Health, HealthServer
from gpuloop.ops.stack import local, ports
from gpuloop.ops.stack.unit import Answer, Phase, Watched
from processes import alive, process_unit, until


class Probed:
    """A watched process whose answer the test gives, one a second of time that the test moves."""

    def __init__(self, tmp_path: Path, workers: ThreadPoolExecutor) -> None:
        self.answer = Answer(True, "well")
        self.now = 0.0
        unit = process_unit("service", probe=lambda: self.answer, hung_seconds=60.0)
        self.watched = Watched(unit, log=tmp_path / "log", workers=workers)
        until(lambda: self.watched.phase is Phase.READY, self.second)

    def second(self) -> None:
        self.now += 1.0
        asked: list[object] = []
        for _ in range(50):  # An answer is given by another thread.
            self.watched.step(self.now, needs_ready=True)
            asked.append(self.watched._asked)
            if asked[-1] is None and len(asked) > 1:
                return
            sleep(0.001)


@pytest.fixture
def probed(tmp_path: Path) -> Iterator[Probed]:
    with ThreadPoolExecutor(1) as workers:
        made = Probed(tmp_path, workers)
        yield made
        if made.watched.child is not None:
            made.watched.child.kill_group()


def test_process_that_lives_but_answers_no_more_is_started_again_and_says_why(
    probed: Probed,
) -> None:
    watched = probed.watched
    assert watched.child is not None
    first = watched.child.pid
    probed.answer = Answer(False, "no answer", answered=False)
    began = probed.now
    until(lambda: watched.restarts == 1, probed.second)
    assert 60.0 < probed.now - began < 75.0
    until(lambda: not alive(first))
    probed.answer = Answer(True, "well")
    until(lambda: watched.phase is Phase.READY, probed.second)
    assert watched.state().detail == "well"
    assert watched.state().last_failure.startswith("hung: no answer for 6")


def test_process_that_answers_now_and_then_is_slow_and_not_hung(probed: Probed) -> None:
    for second in range(400):
        answered = second % 50 == 0
        probed.answer = Answer(answered, "slow", answered=answered)
        probed.second()
    assert probed.watched.restarts == 0


def test_process_that_says_it_is_not_ready_is_not_hung(probed: Probed) -> None:
    probed.answer = Answer(False, "no fleet clock yet")
    for _ in range(400):
        probed.second()
    assert (probed.watched.phase, probed.watched.restarts) == (Phase.UNREADY, 0)


def test_process_that_waits_for_a_part_of_the_loop_has_not_settled(probed: Probed) -> None:
    assert probed.watched.settled()
    probed.answer = Answer(False, "no fleet clock yet")
    until(lambda: probed.watched.phase is Phase.UNREADY, probed.second)
    assert not probed.watched.settled()


def test_supervisor_that_was_itself_asleep_kills_nobody(probed: Probed) -> None:
    probed.answer = Answer(False, "no answer", answered=False)
    for _ in range(5):
        probed.second()
    probed.now += 3600.0
    probed.answer = Answer(True, "well")
    for _ in range(5):
        probed.second()
    assert (probed.watched.phase, probed.watched.restarts) == (Phase.READY, 0)


def test_answer_for_a_loop_that_stands_is_no_answer() -> None:
    health = Health("decider")
    health.progress("cut 7")
    server = HealthServer(health, host=ports.LOOPBACK, port=0)
    try:
        assert local.ask(server.port, loop_seconds=60.0) == Answer(True, "cut 7")
        stands = local.ask(server.port, loop_seconds=0.0)
        assert stands == Answer(False, "its loop stands at: cut 7", answered=False)
    finally:
        server.close()
    assert not local.ask(server.port, loop_seconds=60.0).answered
