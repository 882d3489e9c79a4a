"""A broker of its own, processes of ours on it, and what they take."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final

import psutil

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.ops.stack.ports import free_ports
from gpuloop.ops.stack.process import Child, Program
from gpuloop.ops.stack.topics import Admin, wanted
from gpuloop.schemas.codec import encode
from gpuloop.schemas.messages import ClockAnchor
from own_kafka import OwnKafka

FLEET: Final = "bench"
PEERS: Final = Path(__file__).parent / "peers"
START_SECONDS: Final = 60.0
STUCK_SECONDS: Final = 300.0


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """Run a Kafka and yield its address."""
    kafka = OwnKafka(folder)
    kafka.start()
    try:
        yield kafka.bootstrap_servers
    finally:
        kafka.kill()


@dataclass(frozen=True)
class Sight:
    """A process at one moment: CPU seconds it has used, its positions, its resident bytes."""

    at: float
    cpu: float
    positions: dict[str, int]
    resident: int


class Service:
    """A process of ours, as the stack runs it."""

    def __init__(self, name: str, environment: dict[str, str], port: int, log: Path) -> None:
        program = Program(
            arguments=(sys.executable, "-m", "gpuloop.loop.services", name),
            environment=environment | {"GPULOOP_HTTP_PORT": str(port)},
        )
        self._child = Child(program, log)
        self._address = f"http://127.0.0.1:{port}"
        self._name = name
        self._log = log

    def ask(self, path: str) -> str:
        """Return what the process answers."""
        with urllib.request.urlopen(self._address + path, timeout=5) as answer:  # noqa: S310
            return str(answer.read().decode())

    def ready(self) -> None:
        """Wait until it works."""
        deadline = monotonic() + START_SECONDS
        while monotonic() < deadline:
            if self._child.exit_status() is not None:
                break
            with suppress(OSError):
                if json.loads(self.ask("/health"))["ready"]:
                    return
            Event().wait(0.1)
        sys.exit(f"{self._name} did not start:\n{self._log.read_text()[-3000:]}")

    def see(self, topic: str) -> Sight:
        """Return what it has used, and its positions on a topic, none before it answers."""
        answer = ""
        with suppress(OSError):
            answer = self.ask("/metrics")
        process = psutil.Process(self._child.pid)
        times, resident = process.cpu_times(), process.memory_info().rss
        found = re.findall(
            rf'^gpuloop_position{{.*partition="{topic}/(\d+)"}} (\S+)$', answer, re.M
        )
        positions = {number: int(float(at)) for number, at in found}
        return Sight(monotonic(), times.user + times.system, positions, resident)

    def latencies(self, topic: str) -> dict[float, float]:
        """Return the cumulative counts of its latency histogram by upper bound in seconds."""
        found = re.findall(
            rf'^gpuloop_telemetry_to_state_seconds_bucket{{le="(\S+)",topic="{topic}"}} (\S+)$',
            self.ask("/metrics"),
            re.M,
        )
        return {float(bound): float(count) for bound, count in found}

    def stop(self) -> None:
        """End it."""
        self._child.ask_to_stop()
        if not self._child.reap(15.0):
            self._child.kill_group()


@dataclass
class Stage:
    """Topics under a prefix of their own, and the observe stage's processes on them."""

    servers: str
    prefix: str
    folder: Path

    def __post_init__(self) -> None:
        """Create the topics and start the fleet's clock at the wall's time."""
        Admin(self.servers).apply(wanted(self.prefix))
        self.broker = KafkaBroker(self.servers, prefix=self.prefix)
        now_us = clock.wall_us()
        anchor = ClockAnchor(
            fleet=FLEET, world="bench", anchor_us=now_us, anchor_wall_us=now_us, speed=1.0
        )
        record = encode("telemetry.clock", FLEET, anchor, event_id="clock", source="bench")
        self.broker.produce([record])
        self._ports = free_ports(self.folder / self.prefix)

    def start(self, name: str, replica: str = "main") -> Service:
        """Start a process of ours."""
        environment = {
            "GPULOOP_BOOTSTRAP_SERVERS": self.servers,
            "GPULOOP_TOPIC_PREFIX": self.prefix,
            "GPULOOP_FLEET": FLEET,
            "GPULOOP_REPLICA": replica,
            "GPULOOP_LOG_LEVEL": "warning",
        }
        log = self.folder / f"{self.prefix}{name}-{replica}.log"
        return Service(name, environment, next(self._ports), log)

    def ends(self, topic: str) -> dict[str, int]:
        """Return where each partition of a topic ends now."""
        ends = self.broker.ends(self.broker.partitions(topic))
        return {str(part.number): at for part, at in ends.items()}

    def stored_bytes(self, topic: str) -> int:
        """Return the bytes of a topic in the broker's folder, as they were sent."""
        data = self.folder / "data"
        return sum(path.stat().st_size for path in data.glob(f"{self.prefix}{topic}-*/*.log"))

    def partitions(self, topic: str) -> list[Partition]:
        """Return a topic's partitions."""
        return list(self.broker.partitions(topic))


def peer(
    script: str, servers: str, topic: str, records: int, folder: Path, python: str = sys.executable
) -> dict[str, float] | None:
    """Run a peer over a topic; return what it took, or None with its last words printed."""
    state = folder / f"peer-{script}"
    state.mkdir()
    done = subprocess.run(  # noqa: S603
        [python, "-W", "ignore", f"{script}.py", servers, topic, str(records), str(state)],
        cwd=PEERS,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=STUCK_SECONDS,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(f"  {script} did not finish: {done.stderr.strip()[-400:]}")
        return None
    took: dict[str, float] = json.loads(lines[-1])
    return took
