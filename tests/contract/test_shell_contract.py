"""One component, one story, four shells: the outputs are the same."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from echo import FLEET, START_US, Echo, EchoState, Silent, anchor, fault_output, weights_output

from gpuloop.loop.replay.player import replay
from gpuloop.loop.replay.record import record
from gpuloop.loop.replay.recording import Recording
from gpuloop.loop.shells.broker import Broker, Partition, read_between
from gpuloop.loop.shells.fold import encode_outputs
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.live import LiveConfig, LiveShell
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.simulation import Simulation
from gpuloop.schemas.codec import decode
from gpuloop.schemas.component import Output
from gpuloop.schemas.messages import Message
from gpuloop.schemas.units import SECOND_US

WALL_US = 1_700_000_000_000_000
SPEED = 60.0
SEED = 7
ANOMALIES = Partition("insight.anomalies", 0)

Story = Sequence[tuple[int, Sequence[Output]]]
"""What arrives from outside, by second of fleet time since the start."""

STORY: Story = (
    (10, [fault_output(n) for n in range(5)]),
    (30, [weights_output(b"weights" * 100)]),
    (59, [fault_output(5, node="n2"), fault_output(6, node="n2")]),
    (61, []),
    (65, [fault_output(7)]),
    (185, []),
    (200, [fault_output(n, node=f"n{n}") for n in range(8, 30)]),
    (245, []),
)


class Wall:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.now_us = WALL_US

    def __call__(self) -> int:
        return self.now_us


def live(broker: Broker, wall: Callable[[], int], **config: int) -> LiveShell[EchoState]:
    return LiveShell(
        Echo(),
        broker,
        LiveConfig(fleet=FLEET, seed=SEED, run="run-1", poll_us=50_000, **config),
        Silent(),
        wall=wall,
    )


def play(broker: Broker, story: Story, **config: int) -> None:
    """Tell the story to a live shell, waiting until each part of it is consumed."""
    wall = Wall()
    broker.produce([anchor(wall_us=WALL_US)])
    shell = live(broker, wall, **config)
    shell.open()
    for second, outputs in story:
        wall.now_us = WALL_US + round(second * SECOND_US / SPEED)
        broker.produce(encode_outputs(outputs, "test"))
        ends = broker.ends(list(shell.saved.positions))
        for _ in range(100):
            if shell.saved.positions == ends and not shell.advance():
                break
            shell.advance()
        assert shell.saved.positions == ends
    shell.close()


def written(broker: Broker) -> list[tuple[str, Message]]:
    end = broker.ends([ANOMALIES])[ANOMALIES]
    records = read_between(broker, ANOMALIES, 0, end)
    return [(r.header("ce_id") or "", decode(r)) for r in records]


def simulated(story: Story) -> list[tuple[str, Message]]:
    simulation = Simulation([Echo()], seed=SEED, start_us=START_US, speed=SPEED)
    outputs = simulation.collect("insight.anomalies")
    for second, arriving in story:
        simulation.run(START_US + second * SECOND_US)
        simulation.send(arriving)
    return [(m.id, m.message) for m in outputs if m.message is not None]


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
