"""One run of docker-compose.yml as a project of its own, driven by Compose as a person would."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, Final

import msgspec

from compose.engine import Engine
from compose.images import Images
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.twin.config import TwinConfig

ROOT: Final = Path(__file__).resolve().parents[2]
NAME: Final = "gpuloop-test"
PORTS: Final = ("KAFKA_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
RECOVERY_SECONDS: Final = 600.0
OURS: Final = ("topics", "causes", "learner", "clickhouse-embedded")
"""One service per image target."""


@dataclass
class Project:
    """The containers of one project, and how people outside them reach the loop.

    `tree` is the checkout whose Compose file is used: another one is another version.
    """

    engine: Engine
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    name: str = NAME
    tree: Path = ROOT

    def write(self, images: Images, twin: TwinConfig, *, prefix: str = "") -> None:
        """Write the settings as a person would, and the one override file."""
        absent = images.absent
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / "before", ignore_errors=True)  # A recording of the last run.
        ports = {name: str(port) for name, port in zip(PORTS, _free_ports(), strict=True)}
        profiles = {"kafka", "twin", "stores", "sinks", "monitoring"}
        stores = {}
        if "clickhouse" in absent:
            profiles.add("local")
            stores = {"GPULOOP_CLICKHOUSE_URL": "http://clickhouse-embedded:8080"}
        values = ports | {
            "COMPOSE_PROFILES": ",".join(sorted(profiles)),
            "ACCESS_DIR": str(self.access),
            "GPULOOP_TOPIC_PREFIX": prefix,
            "GPULOOP_SPEED": "60",
            "GPULOOP_START": "2017-10-16T08:00:00",
            **stores,
        }
        example = (ROOT / ".env.example").read_text()
        for name, value in values.items():
            example, found = re.subn(rf"^{name}=.*$", f"{name}={value}", example, flags=re.M)
            assert found == 1, name
        (self.folder / "env").write_text(example)
        (self.folder / "twin.json").write_bytes(msgspec.json.encode(twin))
        (self.folder / "twin.json").chmod(0o644)
        self.folder.chmod(0o755)
        lines = [
            "services:",
            "  twin:",
            "    environment: {GPULOOP_TWIN_CONFIG: /run/twin.json}",
            f'    volumes: ["{self.folder}/twin.json:/run/twin.json:ro"]',
        ]
        if not images.registry:
            lines += [f"  {name}: {{build: {{network: host}}}}" for name in OURS]
        lines += [f"  {name}: {{image: '{tag}'}}" for name, tag in images.replaced.items()]
        lines += [f"  {name}: {{profiles: !override [absent]}}" for name in sorted(absent)]
        (self.folder / "override.yml").write_text("\n".join(lines) + "\n")
        self.environment = {
            "GPULOOP_BOOTSTRAP_SERVERS": f"localhost:{ports['KAFKA_PORT']}",
            "GPULOOP_TOPIC_PREFIX": prefix,
        }
        self.environment |= ports

    @property
    def access(self) -> Path:
        """Return where identities lie, if this stack is a secured one."""
        return self.folder / "access"

    @property
    def identity(self) -> Path | None:
        """Return what a person signs in with; None where Kafka trusts everybody."""
        found = self.environment.get("GPULOOP_KAFKA_CONFIG")
        return None if found is None else Path(found)

    def secure(self) -> None:
        """Make identities as the documentation says, and go on with the secured stack."""
        shutil.rmtree(self.access, ignore_errors=True)
        self.access.mkdir()
        self.engine.docker(
            "run", "--rm", f"--user={os.getuid()}", f"--volume={self.access}:/access",
            "--entrypoint=gpuloop", "gpuloop-base:0.1.0", "access", "make", "/access",
            "--host=kafka", "--host=localhost",
        )  # fmt: skip
        self.environment["GPULOOP_KAFKA_CONFIG"] = str(self.access / "operator/kafka.properties")

    def build(self) -> None:
        """Build our images from this tree."""
        here = self.compose("config", "--services").split()
        self.compose("build", *(one for one in OURS if one in here))

    def versions(self) -> set[str]:
        """Return the tags of our images that run now."""
        found = json.loads("[" + ",".join(self.compose("ps", "--format=json").splitlines()) + "]")
        return {
            one["Image"].partition(":")[2] for one in found if one["Image"].startswith("gpuloop-")
        }

    def compose(self, *arguments: str, check: bool = True, timeout: float = 1800.0) -> str:
        """Run `docker compose` for this project and return what it printed."""
        secured = [] if self.identity is None else [f"--file={self.tree}/docker-compose.secure.yml"]
        return self.engine.docker(
            "compose", "--progress=plain", f"--project-name={self.name}",
            f"--env-file={self.folder}/env", f"--file={self.tree}/docker-compose.yml", *secured,
            f"--file={self.folder}/override.yml",
            *arguments, check=check, timeout=timeout,
        ).stdout  # fmt: skip

    def keep_logs(self) -> Path:
        """Write down what the containers said, which is gone when they are."""
        path = self.folder / "logs"
        path.write_text(self.compose("logs", "--no-color", check=False))
        return path

    def services(self, *, once: bool = False) -> list[str]:
        """Return the services that run on, or those that run once."""
        config = json.loads(self.compose("config", "--format=json"))["services"]
        return [
            name for name, body in config.items() if (body["restart"] == "on-failure:3") is once
        ]

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine says of a service's container."""
        number = self.compose("ps", "--all", "--quiet", service).strip()
        (found,) = json.loads(self.engine.docker("inspect", number).stdout)
        return dict(found)

    def crash(self, service: str) -> float:
        """Kill everything in a container but its init; return how long until it is healthy."""
        before = self.inspect(service)["RestartCount"]
        began = monotonic()
        self.compose("exec", "-T", service, "sh", "-c", "kill -9 -1", check=False)
        deadline = began + RECOVERY_SECONDS
        while True:
            found = self.inspect(service)
            healthy = found["State"].get("Health", {}).get("Status") == "healthy"
            if found["RestartCount"] > before and found["State"]["Running"] and healthy:
                return monotonic() - began
            assert monotonic() < deadline, f"{service} did not come back: {found['State']}"
            Event().wait(0.5)

    def command(self, *arguments: str, timeout: float = 300.0) -> str:
        """Run `gpuloop` outside the containers, but where only their files hold the answer."""
        if arguments[:2] == ("audit", "verify"):
            return self.compose("exec", "-T", "auditor", "gpuloop", *arguments)
        if arguments[0] == "record":
            signed_in = [f"--volume={self.access}/operator:/run/gpuloop/access:ro"]
            return self.compose(
                "run", "--rm", "--no-deps", "--no-TTY", f"--user={os.getuid()}:{os.getgid()}",
                *(signed_in if self.identity is not None else []),
                f"--volume={self.folder}:/recordings", "--entrypoint=gpuloop",
                "decider", "record", f"/recordings/{arguments[1]}",
            )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "gpuloop.ops.cli", *arguments],
            cwd=self.folder,
            env=os.environ | {k: v for k, v in self.environment.items() if k.startswith("GPU")},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def broker(self) -> KafkaBroker:
        """Return a client outside the containers, on the advertised listener."""
        return KafkaBroker(
            self.environment["GPULOOP_BOOTSTRAP_SERVERS"],
            prefix=self.environment["GPULOOP_TOPIC_PREFIX"],
            config=self.identity,
        )

    def left(self) -> list[str]:
        """Return every container, volume and network that the project has now."""
        label = f"--filter=label=com.docker.compose.project={self.name}"
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return [
            line
            for kind in kinds
            for line in self.engine.docker(*kind, "--quiet", label).stdout.split()
        ]


def _free_ports() -> list[int]:
    sockets = [socket.socket() for _ in PORTS]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
