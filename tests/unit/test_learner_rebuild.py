"""A learner that starts again reads its topics in step, and so learns from the same transitions."""

import threading
from collections.abc import Mapping

import pytest

from gpuloop.loop.learn import experience
from gpuloop.loop.learn.rounds import RoundConfig
from gpuloop.loop.services import learner
from gpuloop.loop.services.health import Health
from gpuloop.loop.services.learner import Learner
from gpuloop.loop.services.process import Process
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.memory import MemoryBroker, MemoryConsumer
from gpuloop.schemas.codec import Record, encode
from learning_builders import decision, reward

TICKS = 400
NEVER = RoundConfig(first_after=10**9)


class Until(Health):
    """Stops a learner once it has said the same twice in a row: there is nothing more to read."""

    def __init__(self) -> None:
        super().__init__("learner")
        self.stop = threading.Event()
        self.learner: Learner | None = None
        self.most = 0
        self._last: Mapping[str, int] | None = None

    def progress(self, detail: str, positions: Mapping[str, int] | None = None) -> None:
        """Compare where it has come with where it was, and see how much it holds."""
        assert self.learner is not None
        for join in self.learner._experience.joins.values():
            self.most = max(self.most, len(join.decisions), len(join.rewards))
        if positions == self._last:
            self.stop.set()
        self._last = positions


class OneByOne(MemoryConsumer):
    """Reads a partition to its end before it looks at the next, as a client may."""

    def _take(self, max_records: int) -> list[Record]:
        for part in self._order:
            if part not in self._paused and (found := self._read(part, max_records)):
                return found
        return []

    def _read(self, part: Partition, most: int) -> list[Record]:
        found = self._broker.read(part, self._positions[part], most)
        self._positions[part] += len(found)
        return found

    @property
    def _order(self) -> list[Partition]:
        return sorted(self._positions, reverse=self._broker.rewards_first)


class Lopsided(MemoryBroker):
    """A broker whose consumers read one topic first."""

    def __init__(self, *, rewards_first: bool) -> None:
        super().__init__()
        self.rewards_first = rewards_first

    def consumer(self, positions, *, group=""):
        return OneByOne(self, positions)


def produce(broker, topic, ticks):
    for tick in ticks:
        message = decision(tick) if topic == "decisions" else reward(tick)
        broker.produce([encode(topic, "p", message, event_id=str(tick), source="s")])


def rebuilt(broker, folder, config=NEVER):
    health = Until()
    settings = Settings(state_dir=folder, fleet="f")
    one = Learner(Process(settings=settings, health=health, stop=health.stop), broker, config)
    health.learner = one
    one.run()
    return one, health.most


@pytest.fixture
def little_room(monkeypatch):
    monkeypatch.setattr(experience, "MAX_PENDING", 60)
    monkeypatch.setattr(learner, "MAX_RECORDS", 50)


@pytest.mark.parametrize("rewards_first", [False, True])
def test_a_rebuild_makes_every_transition_in_bounded_memory_whichever_topic_comes_first(
    little_room, tmp_path, rewards_first
):
    broker = Lopsided(rewards_first=rewards_first)
    for topic in ("decisions", "rewards"):
        produce(broker, topic, range(1, TICKS))
    one, most = rebuilt(broker, tmp_path)
    assert len(one._experience.transitions) == TICKS - 2
    assert one._experience.joins[0].skipped == 0
    assert most < 60 + 50


def test_a_topic_that_stays_behind_holds_the_other_without_loss_and_training_goes_on(
    little_room, tmp_path
):
    broker = MemoryBroker()
    produce(broker, "decisions", range(1, TICKS))
    produce(broker, "rewards", range(1, 200))
    one, most = rebuilt(broker, tmp_path, RoundConfig(first_after=150, gradient_steps=1))
    assert one._rounds_done == 1
    assert most < 60 + 50
    produce(broker, "rewards", range(200, TICKS))
    assert len(rebuilt(broker, tmp_path)[0]._experience.transitions) == TICKS - 2
