"""SIGKILL a live shell on a real Kafka, anywhere and often: nothing is lost, nothing differs."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo import FLEET, Echo, anchor, fault_output

from gpuloop.loop.replay.player import replay
from gpuloop.loop.replay.record import record
from gpuloop.loop.replay.recording import Recording
from gpuloop.loop.shells.broker import Partition, read_between
from gpuloop.loop.shells.clock import monotonic_us, wall_us
from gpuloop.loop.shells.fold import encode_outputs
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.simulation import Simulation
from gpuloop.schemas.codec import decode
from gpuloop.schemas.messages import Anomaly

pytestmark = pytest.mark.kafka

CONTRACT = Path(__file__).parents[1] / "contract"
FAULTS = 400
OUTPUTS = Partition("insight.anomalies", 0)
STEPS = ("stepped", "journaled", "produced", "committed")


class Fixture:
    """A prefix of its own on the session's Kafka, and a process that is killed and restarted."""

    def __init__(self, kafka: Any, *, speed: float) -> None:
        self.bootstrap = kafka.bootstrap_servers
        self.prefix = kafka.prefix()
        self.broker = KafkaBroker(self.bootstrap, prefix=self.prefix)
        self.broker.produce([anchor(wall_us=wall_us(), speed=speed)])
        self.starts = 0

    def start(self, step: str = "", occurrence: int = 0) -> subprocess.Popen[bytes]:
        self.starts += 1
        script = [sys.executable, str(CONTRACT / "live_process.py")]
        place = [self.bootstrap, self.prefix, f"run-{self.starts}"]
        process = subprocess.Popen([*script, *place, step, str(occurrence)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.startswith("resumed") or process.wait() == -signal.SIGKILL
        assert "0 disagree" in line or not line
        return process

    def outputs(self) -> list[tuple[str, bytes]]:
        end = self.broker.ends([OUTPUTS])[OUTPUTS]
        records = read_between(self.broker, OUTPUTS, 0, end)
        return [(r.header("ce_id") or "", r.value or b"") for r in records]

    def echoes(self) -> dict[str, bytes]:
        """Return the outputs by id, after checking that copies of one id are equal."""
        found: dict[str, bytes] = {}
        for id_, value in self.outputs():
            assert found.setdefault(id_, value) == value
        return found

    def feed(self, first: int, last: int) -> None:
        faults = [fault_output(n, node=f"n{n % 5}") for n in range(first, last)]
        self.broker.produce(encode_outputs(faults, "test"))

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the answer to the last fault and stop the process cleanly."""
        deadline = monotonic_us() + 60_000_000
        while not any(
            f'/local/n{(FAULTS - 1) % 5}/1/{FAULTS - 1}"'.encode() in value
            for _, value in self.outputs()
        ):
            assert process.poll() is None, "the process ended by itself"
            assert monotonic_us() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(10.0) == 0


def undisturbed() -> dict[str, Anomaly]:
    simulation = Simulation([Echo()], seed=7, start_us=0)
    outputs = simulation.collect("insight.anomalies")
    simulation.send([fault_output(n, node=f"n{n % 5}") for n in range(FAULTS)])
    return {m.id: m.message for m in outputs if isinstance(m.message, Anomaly)}


def decoded(fixture: Fixture) -> dict[str, object]:
    end = fixture.broker.ends([OUTPUTS])[OUTPUTS]
    return {
        r.header("ce_id") or "": decode(r) for r in read_between(fixture.broker, OUTPUTS, 0, end)
    }


def test_sigkill_at_each_step_leaves_the_outputs_of_an_undisturbed_run(kafka: Any) -> None:
    fixture = Fixture(kafka, speed=0.0)
    for number, step in enumerate(STEPS):
        process = fixture.start(step, occurrence=3)
        fixture.feed(number * 100, (number + 1) * 100)
        assert process.wait(30.0) == -signal.SIGKILL
    fixture.finish(fixture.start())
    fixture.echoes()
    assert decoded(fixture) == undisturbed()


@pytest.mark.parametrize("seed", [1, 2])
def test_sigkill_at_random_moments_loses_nothing_and_replays(
    kafka: Any, tmp_path: Path, seed: int
) -> None:
    fixture = Fixture(kafka, speed=600.0)
    rng = np.random.default_rng(seed)
    for number in range(4):
        process = fixture.start()
        for part in range(5):
            fixture.feed(number * 100 + part * 20, number * 100 + (part + 1) * 20)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(float(rng.uniform(0.0, 0.15)))
        process.kill()
        process.wait()
    fixture.finish(fixture.start())
    echoes = fixture.echoes()
    heard = [id_ for id_ in undisturbed() if id_ in echoes]
    assert len(heard) == FAULTS
    record(fixture.broker, tmp_path / "r", fleet=FLEET, settings={"seed": "7"})
    report = replay(Recording(tmp_path / "r"), Echo())
    assert report.identical, report
    assert report.equal == len(echoes)
