"""The auditor as a process on a real Kafka: stopped, killed, resumed, forged against."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from gpuloop.loop.evaluate.audit import verify_recording, verify_topic
from gpuloop.loop.replay.record import record
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.ops.stack.ports import free_ports
from gpuloop.schemas.codec import Encoded

pytestmark = pytest.mark.kafka

PATIENCE_S = 60.0


@pytest.fixture
def settings(kafka: Any, tmp_path: Path) -> Settings:
    return Settings(
        bootstrap_servers=kafka.bootstrap_servers,
        topic_prefix=kafka.prefix(),
        state_dir=tmp_path / "state",
        http_port=next(free_ports(tmp_path)),
    )


@pytest.fixture
def broker(settings: Settings) -> Iterator[KafkaBroker]:
    broker = KafkaBroker(settings.bootstrap_servers, prefix=settings.topic_prefix)
    yield broker
    broker.close()


@contextmanager
def auditor(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Start the auditor's process; whatever the test does, it is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuloop.loop.services", "auditor"],
        env={**os.environ, **settings.environment()},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def happen(broker: KafkaBroker, topic: str, count: int) -> None:
    broker.produce(
        [
            Encoded(topic=topic, key=b"p", headers=(("ce_id", b"%d" % n),), value=b"%d" % n)
            for n in range(count)
        ]
    )


def positions(settings: Settings) -> dict[str, int]:
    try:
        with urlopen(f"http://127.0.0.1:{settings.http_port}/health", timeout=5) as answer:
            return dict(json.load(answer)["positions"])
    except (URLError, ConnectionError):
        return {}


def await_audited(settings: Settings, **expected: int) -> None:
    deadline = monotonic() + PATIENCE_S
    while not expected.items() <= positions(settings).items():
        assert monotonic() < deadline, positions(settings)
        sleep(0.05)


def test_a_chain_survives_stop_and_kill_and_a_forgery_is_named(
    settings: Settings, broker: KafkaBroker, tmp_path: Path
) -> None:
    happen(broker, "decisions", 300)
    happen(broker, "controls", 20)
    with auditor(settings) as process:
        await_audited(settings, **{"decisions/0": 300, "controls/0": 20})
        asked = monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert monotonic() - asked < 10
    report = verify_topic(settings)
    assert report.first_bad is None
    assert (report.records, report.chains, report.unsigned_records) == (320, 2, 0)

    happen(broker, "decisions", 2500)
    with auditor(settings) as process:
        await_audited(settings, **{"decisions/0": 2800})
        happen(broker, "rewards", 200)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with auditor(settings) as process:
        await_audited(settings, **{"decisions/0": 2800, "rewards/0": 200})
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    report = verify_topic(settings)
    assert report.first_bad is None
    assert (report.records, report.chains, report.unsigned_records) == (3020, 3, 0)
    assert report.anchors >= report.checkpoints > 3

    record(broker, tmp_path / "recording", fleet="local", settings={}, topics=["audit"])
    assert verify_recording(tmp_path / "recording", settings).records == 3020

    broker.produce([Encoded(topic="audit", key=b"decisions/0", headers=(), value=b"{}")])
    forged = verify_topic(settings)
    assert not forged.ok
    assert "foreign record" in str(forged.first_bad)
    assert forged.records == 3020
