"""One component, one story, four shells: the outputs are the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from echo import FLEET, START_US, Echo, fault_output
from stage import SEED, SPEED, STORY, Stage, play, simulated, written

from gpuloop.loop.replay.player import replay
from gpuloop.loop.replay.record import record
from gpuloop.loop.replay.recording import Recording
from gpuloop.loop.shells.broker import Broker
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.memory import MemoryBroker, MemoryConsumer
from gpuloop.loop.shells.simulation import Simulation
from gpuloop.schemas.codec import Record


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if request.param == "memory":
        yield MemoryBroker()
        return
    kafka = request.getfixturevalue("kafka")
    found = KafkaBroker(kafka.bootstrap_servers, prefix=kafka.prefix())
    yield found
    found.close()


def test_live_says_what_the_simulation_says(broker: Broker) -> None:
    play(broker, STORY)
    expected = simulated(STORY)
    assert len(expected) == 30 + 4
    assert written(broker) == expected


def test_what_has_arrived_waits_for_company_only_as_long_as_the_shell_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: set[float] = set()
    poll = MemoryConsumer.poll

    def watched(
        reader: MemoryConsumer, *, max_records: int, timeout_s: float, linger_s: float = 60.0
    ) -> list[Record]:
        waited.add(linger_s)
        return poll(reader, max_records=max_records, timeout_s=timeout_s)

    stage = Stage(MemoryBroker())
    stage.start(linger_us=3_000)
    monkeypatch.setattr(MemoryConsumer, "poll", watched)
    stage.tell(10, [fault_output(0)])
    stage.settle()
    assert waited == {0.003}


def test_a_recording_replays_to_the_same_bytes(broker: Broker, tmp_path: Path) -> None:
    play(broker, STORY)
    record(broker, tmp_path / "r", fleet=FLEET, settings={"seed": str(SEED)})
    report = replay(Recording(tmp_path / "r"), Echo())
    assert report.identical
    assert (report.equal, report.absent, report.unconfirmed) == (34, 0, 0)
    assert report.from_cut == 0
    assert report.records == 31


def test_another_seed_says_something_else() -> None:
    changed = Simulation([Echo()], seed=SEED + 1, start_us=START_US, speed=SPEED)
    outputs = changed.collect("insight.anomalies")
    changed.send([fault_output(0)])
    assert [(m.id, m.message) for m in outputs] != simulated([(0, [fault_output(0)])])


def test_a_recording_without_cuts_proves_nothing(tmp_path: Path) -> None:
    broker = MemoryBroker()
    play(broker, [])
    record(broker, tmp_path / "r", fleet=FLEET, settings={"seed": str(SEED)})
    report = replay(Recording(tmp_path / "r"), Echo())
    assert report.cuts == 0
    assert not report.identical


def test_a_replay_under_changed_code_names_the_first_difference(tmp_path: Path) -> None:
    broker = MemoryBroker()
    play(broker, STORY)
    record(broker, tmp_path / "r", fleet=FLEET, settings={"seed": str(SEED)})
    report = replay(Recording(tmp_path / "r"), Echo(salt="changed "))
    assert not report.identical
    assert report.different == 34
    assert report.first_difference is not None
    assert report.first_difference.cut == 1
    assert '"metric":"changed 1/0/0/' in report.first_difference.recomputed
    assert '"metric":"1/0/0/' in report.first_difference.recorded
