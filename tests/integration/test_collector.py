"""The collector's real process on a real Kafka: a driver's library, exporters, a dead broker."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

import fake_nvml
from fake_nvml import Machine
from gpuloop.loop.shells.broker import read_between
from gpuloop.loop.shells.clock import wall_us
from gpuloop.loop.shells.framer import Framer
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.timekeeping import newest_anchors
from gpuloop.ops.stack.ports import free_ports
from gpuloop.schemas.codec import decode, encode
from gpuloop.schemas.messages import ClockAnchor, Fault, GpuSample, JobEvent, Message
from gpuloop.schemas.units import HOUR_US
from own_kafka import OwnKafka

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpus(library: Path, tmp_path: Path) -> Machine:
    return Machine(tmp_path, devices=2)


class Collector:
    """`python -m gpuloop.loop.services collector` on a machine with the fake driver."""

    def __init__(self, servers: str, prefix: str, folder: Path, library: Path, gpus: Machine):
        self.broker = KafkaBroker(servers, prefix=prefix)
        self.port = next(free_ports(folder))
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPULOOP_")}
        self.environment = kept | {
            "GPULOOP_BOOTSTRAP_SERVERS": servers,
            "GPULOOP_TOPIC_PREFIX": prefix,
            "GPULOOP_HTTP_PORT": str(self.port),
            "GPULOOP_NODE": "n1",
            "GPULOOP_POOL": "h100",
            "GPULOOP_RACK": "r1",
            "GPULOOP_COLLECT_SECONDS": "0.1",
            "LD_LIBRARY_PATH": str(library.parent),
            "FAKE_NVML": str(gpus.path),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        command = [sys.executable, "-m", "gpuloop.loop.services", "collector"]
        self.process = subprocess.Popen(command, env=self.environment | environment)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15.0)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.broker.close()

    def ask(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return ""

    def health(self) -> dict[str, Any]:
        return dict(json.loads(self.ask("/health") or "{}"))

    def metric(self, pattern: str) -> float:
        found = re.search(rf"^{pattern} (\S+)$", self.ask("/metrics"), re.M)
        return float(found[1]) if found else 0.0

    def until(self, condition: Callable[[], Any], *, seconds: float = 30.0) -> Any:
        """Wait for something to hold while the process lives; return it."""
        deadline = monotonic() + seconds
        while not (found := condition()):
            assert self.process is None or self.process.poll() is None, "the collector ended"
            assert monotonic() < deadline, f"waited in vain: {self.health()}"
            sleep(0.05)
        return found

    def said(self, topic: str) -> list[Message]:
        found = []
        for part in self.broker.partitions(topic):
            end = self.broker.ends([part])[part]
            found += [decode(record) for record in read_between(self.broker, part, 0, end)]
        return found

    def samples(self) -> list[GpuSample]:
        return [one for one in self.said("telemetry.gpu") if isinstance(one, GpuSample)]


@pytest.fixture
def collector(kafka: Any, tmp_path: Path, library: Path, gpus: Machine) -> Iterator[Collector]:
    found = Collector(kafka.bootstrap_servers, kafka.prefix(), tmp_path, library, gpus)
    yield found
    found.end()


def test_a_node_is_observed_by_its_drivers_library_and_framed(
    collector: Collector, gpus: Machine
) -> None:
    collector.start()
    collector.until(lambda: collector.health().get("ready"))
    collector.until(lambda: len(collector.samples()) > 20)
    gpus.raise_xid(1, 79)
    (fault,) = collector.until(lambda: collector.said("telemetry.faults"))
    gpus.set(1, lost=1)
    collector.until(lambda: len(collector.said("telemetry.faults")) > 1)
    anchors = collector.until(lambda: newest_anchors(collector.broker, "local"))
    framer = Framer(collector.broker, "local")
    framer.open()
    framed = 0
    while framed < 10:
        done = framer.advance()
        assert done.refused == []
        framed += done.samples
    framer.close()
    assert collector.stop() == 0

    samples = collector.samples()
    assert [one.seq for one in samples] == list(range(1, len(samples) + 1))
    assert {(one.node, one.pool, one.rack, one.boot) for one in samples} == {
        ("n1", "h100", "r1", samples[0].boot)
    }
    assert samples[0].power_watts == (350.0, 350.0)
    assert samples[0].detail is not None
    assert samples[-1].power_watts == (350.0, None)
    times = [one.event_time_us for one in samples]
    assert times == sorted(times)
    assert abs(times[-1] - wall_us()) < 60_000_000
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.xid, fault.gpu_index) == ("xid", 79, 1)
    assert [one.kind for one in collector.said("telemetry.faults")] == ["xid", "lost"]  # type: ignore[attr-defined]
    assert {(one.world, one.speed) for one in anchors} == {("wall", 1.0)}


def test_boot_rises_when_the_collector_is_killed_and_started_again(collector: Collector) -> None:
    collector.start()
    collector.until(lambda: len(collector.samples()) > 2)
    assert collector.process is not None
    collector.process.kill()
    collector.process.wait()
    before = collector.samples()
    collector.start()
    collector.until(lambda: len(collector.samples()) > len(before) + 2)
    boots = [one.boot for one in collector.samples()]
    assert boots == sorted(boots)
    assert len(set(boots)) == 2


def test_a_twins_fleet_is_left_alone_and_the_reason_is_told(
    collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    now_us = wall_us()
    long_ago_us = now_us - 1000 * HOUR_US
    twins = ClockAnchor(
        fleet="local", world="twin", anchor_us=long_ago_us, anchor_wall_us=now_us, speed=60
    )
    record = encode("telemetry.clock", "local", twins, event_id="a", source="t")
    collector.broker.produce([record])
    collector.start()
    collector.until(
        lambda: "runs on the clock of world twin" in collector.health().get("detail", "")
    )
    assert not collector.health()["ready"]
    collector.until(lambda: collector.metric(r".*dropped_total\{.*another clock.*\}") > 5)
    assert [one.world for one in newest_anchors(collector.broker, "local")] == ["twin"]
    logged = capfd.readouterr()
    assert (logged.out + logged.err).count("nothing is sent: fleet local runs on") == 1


def test_a_machine_without_a_driver_ends_with_one_line(
    kafka: Any, tmp_path: Path, collector: Collector
) -> None:
    environment = {k: v for k, v in collector.environment.items() if k != "FAKE_NVML"}
    done = subprocess.run(
        [sys.executable, "-m", "gpuloop.loop.services", "collector"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["message"].startswith("service failed: no NVIDIA driver on this machine")
    assert "exception" not in last


class Site(BaseHTTPRequestHandler):
    """An exporter of one node and a Prometheus server that knows one running job."""

    def do_GET(self) -> None:
        labels = 'gpu="0",UUID="GPU-9",Hostname="n9",modelName="H100"'
        self._answer(f"DCGM_FI_DEV_GPU_TEMP{{{labels}}} 54\nDCGM_FI_DEV_POWER_USAGE{{{labels} 3\n")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        labels = {"job_id": "j1", "node": "n9", "pool": "h100"}
        result = [{"metric": labels, "value": [1.0, "8"]}]
        data = {"resultType": "vector", "result": result}
        self._answer(json.dumps({"status": "success", "data": data}))

    def _answer(self, body: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_exporters_and_prometheus_are_observed_on_a_machine_without_gpus(
    collector: Collector, site: str, tmp_path: Path
) -> None:
    sources = {
        "dcgm": {"targets": [{"url": f"{site}/metrics", "pool": "h100", "rack": "r9"}]},
        "prometheus": {"url": site, "jobs": {"running": "gpus_held"}},
    }
    (tmp_path / "sources.json").write_text(json.dumps(sources))
    del collector.environment["FAKE_NVML"]
    collector.start(GPULOOP_COLLECT=str(tmp_path / "sources.json"))
    (event,) = collector.until(lambda: collector.said("telemetry.jobs"))
    (sample,) = collector.until(collector.samples)
    assert (sample.node, sample.pool, sample.rack, sample.gpu_ids) == (
        "n9",
        "h100",
        "r9",
        ("GPU-9",),
    )
    assert sample.temperature_celsius == (54.0,)
    assert isinstance(event, JobEvent)
    assert (event.job, event.kind, event.gpus, event.nodes) == ("j1", "progress", 8, ("n9",))
    assert collector.metric(r"gpuloop_collect_failures_total\{.*bad line.*\}") == 1
    assert collector.stop() == 0


def test_a_stop_is_granted_while_kafka_is_away(
    tmp_path: Path, library: Path, gpus: Machine
) -> None:
    collector = Collector("127.0.0.1:1", "", tmp_path, library, gpus)
    try:
        collector.start()
        collector.until(lambda: collector.metric("gpuloop_collect_buffered_records") > 10)
        assert collector.stop() == 0
    finally:
        collector.end()


def test_a_dead_broker_costs_the_oldest_samples_and_neither_order_nor_doubles(
    own_kafka: OwnKafka, tmp_path: Path, library: Path, gpus: Machine
) -> None:
    collector = Collector(own_kafka.bootstrap_servers, "", tmp_path, library, gpus)
    try:
        collector.start(GPULOOP_COLLECT_BUFFER="100")
        collector.until(lambda: len(collector.samples()) > 20)
        own_kafka.kill()
        collector.until(lambda: collector.metric("gpuloop_collect_buffered_records") > 20)
        gpus.raise_xid(0, 48)
        dropped = collector.until(
            lambda: collector.metric(r"gpuloop_dropped_total\{.*\"full\".*\}") > 20, seconds=60
        )
        assert dropped
        held = collector.metric("gpuloop_collect_buffered_records")
        assert held <= 100 + 50 + 1
        collector.until(lambda: "Kafka does not answer" in collector.health()["detail"])
        own_kafka.start()
        collector.until(lambda: collector.health()["ready"], seconds=60)
        collector.until(lambda: collector.metric("gpuloop_collect_buffered_records") < 3)
        lost = collector.metric(r"gpuloop_dropped_total\{.*\"full\".*\}")
        assert collector.stop() == 0
        seqs = [one.seq for one in collector.samples()]
        assert seqs == sorted(set(seqs)), "out of order, or twice"
        assert sum(later - sooner - 1 for sooner, later in pairwise(seqs)) == lost
        assert len(collector.said("telemetry.faults")) == 1
        assert {one.boot for one in collector.samples()} == {collector.samples()[0].boot}
    finally:
        collector.end()
