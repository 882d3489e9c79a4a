"""The twin's real process on a real Kafka, killed again and again while it is given commands."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuloop.actuators.commands import Origin, Tariff, scale
from gpuloop.loop.services.keeper import lease
from gpuloop.loop.shells.broker import Broker, read_between
from gpuloop.loop.shells.clock import wall_us
from gpuloop.loop.shells.fold import encode_outputs
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.ops.stack.ports import free_ports
from gpuloop.schemas.codec import decode
from gpuloop.schemas.component import Output
from gpuloop.schemas.identity import decision_id
from gpuloop.schemas.messages import ClockAnchor, Command, GpuSample, Message, Outcome
from gpuloop.schemas.messages.actions import ScaleTo

pytestmark = pytest.mark.kafka

START_US = 1_508_112_000_000_000


class Service:
    """`python -m gpuloop.loop.services twin` under settings of its own."""

    def __init__(self, kafka: Any, folder: Path) -> None:
        prefix = kafka.prefix()
        self.port = next(free_ports(folder))
        self.broker = KafkaBroker(kafka.bootstrap_servers, prefix=prefix)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPULOOP_")}
        self.environment = kept | {
            "GPULOOP_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "GPULOOP_TOPIC_PREFIX": prefix,
            "GPULOOP_STATE_DIR": str(folder),
            "GPULOOP_HTTP_PORT": str(self.port),
            "GPULOOP_WORKLOAD": "generator:steady",
        }

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process and return when it says that it is ready."""
        command = [sys.executable, "-m", "gpuloop.loop.services", "twin"]
        process = subprocess.Popen(command, env=self.environment)
        for _ in range(300):
            assert process.poll() is None
            if self.health().get("ready"):
                return process
            time.sleep(0.1)
        raise AssertionError("the twin did not become ready")

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/health", timeout=2
            ) as answer:
                return dict(json.load(answer))
        except (urllib.error.URLError, ConnectionError):
            return {}


def messages(broker: Broker, topic: str) -> list[tuple[str, Message]]:
    found = []
    for part in broker.partitions(topic):
        end = broker.ends([part])[part]
        found += [(r.header("ce_id") or "", decode(r)) for r in read_between(broker, part, 0, end)]
    return found


def order(number: int, *, nodes: int, generation: int) -> Command:
    origin = Origin(
        fleet="local",
        decision_id=decision_id("local", "h100", "cluster", 1, START_US + number),
        pool="h100",
        epoch=1,
        now_us=START_US,
    )
    return scale(
        origin,
        before=ScaleTo(on_demand_nodes=24, spot_nodes=0),
        to=ScaleTo(on_demand_nodes=nodes, spot_nodes=0),
        generation=generation,
        tariff=Tariff(gpus_per_node=8, on_demand_usd_per_hour=80.0, spot_usd_per_hour=30.0),
        mode="auto",
        reason="test",
    )


def send(broker: Broker, command: Command) -> None:
    output = Output(
        topic="actions.scaling",
        key=command.target,
        message=command,
        event_id=command.command_id,
        time_us=command.issued_at_us,
    )
    broker.produce(encode_outputs([output], "test"))


def test_sigkill_loses_no_telemetry_and_applies_no_command_twice(
    kafka: Any, tmp_path: Path
) -> None:
    service = Service(kafka, tmp_path)
    service.broker.produce([lease("local", wall_us())])
    rng = np.random.default_rng(5)
    commands = []
    for number in range(4):
        process = service.start()
        commands.append(order(number, nodes=25 + number, generation=number))
        send(service.broker, commands[-1])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(float(rng.uniform(0.3, 1.5)))
        send(service.broker, commands[-1])
        process.kill()
        process.wait()
    process = service.start()
    assert "generator:steady" in service.health()["detail"]
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10.0) == 0

    applied: dict[str, set[str]] = {}
    for id_, outcome in messages(service.broker, "actions.outcomes"):
        assert isinstance(outcome, Outcome)
        if outcome.status == "applied":
            applied.setdefault(outcome.command_id, set()).add(id_)
    assert {c.command_id for c in commands} == set(applied)
    assert all(len(ids) == 1 for ids in applied.values())

    by_id: dict[str, Message] = {}
    seqs: dict[tuple[str, int], set[int]] = {}
    for id_, sample in messages(service.broker, "telemetry.gpu"):
        assert by_id.setdefault(id_, sample) == sample
        assert isinstance(sample, GpuSample)
        seqs.setdefault((sample.node, sample.boot), set()).add(sample.seq)
    assert len(seqs) >= 64
    for found in seqs.values():
        assert found == set(range(min(found), max(found) + 1))

    anchors = [m for _, m in messages(service.broker, "telemetry.clock")]
    assert len({a.world for a in anchors if isinstance(a, ClockAnchor)}) == 1
    last = anchors[-1]
    assert isinstance(last, ClockAnchor)
    assert last.speed == 0.0


def test_a_twin_without_a_broker_ends_with_an_error(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GPULOOP_")}
    process = subprocess.run(
        [sys.executable, "-m", "gpuloop.loop.services", "twin"],
        env=kept
        | {
            "GPULOOP_BOOTSTRAP_SERVERS": "127.0.0.1:1",
            "GPULOOP_STATE_DIR": str(tmp_path),
            "GPULOOP_WORKLOAD": "generator:steady",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    last = json.loads(process.stderr.splitlines()[-1])
    assert last["level"] == "critical"
    assert last["message"].startswith("service failed: 127.0.0.1:1")
