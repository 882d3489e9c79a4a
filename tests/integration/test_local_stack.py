"""`gpuloop up` on a real Kafka and a real PostgreSQL: started, found, killed, resumed, stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
import pytest

from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.ops.stack import kafka_jars, postgres, process
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.ports import free_ports
from gpuloop.ops.stack.state import StackState, read
from gpuloop.ops.stack.topics import Admin, Wanted, wanted
from gpuloop.schemas.catalogue import CATALOGUE

PATIENCE_S = 120.0
SMALL = ("--only", "keeper", "--only", "auditor", "--only", "postgres")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = monotonic() + PATIENCE_S
    while not condition():
        assert monotonic() < deadline, f"waited in vain until {what}"
        sleep(0.05)


class Folder:
    """A folder in which a person types `gpuloop`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("GPULOOP_")}

    def run(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gpuloop.ops.cli", *arguments],
            cwd=self.path,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def state(self) -> StackState:
        found = read(self.path / ".gpuloop" / "stack.json")
        assert found is not None
        return found

    @property
    def pids(self) -> list[int]:
        return [p.pid for p in self.state.processes if p.pid is not None]

    @property
    def ports(self) -> list[int]:
        return [p.port for p in self.state.processes if p.port is not None]

    def gone(self) -> bool:
        """Return whether no process and no port of the stack is left."""
        return not any(map(_alive, self.pids)) and not any(map(_listens, self.ports))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    tmp_path.chmod(0o755)
    made = Folder(tmp_path / "stack")
    yield made
    if (made.path / ".gpuloop").exists():
        made.run("down")
        postgres.wipe((made.path / ".gpuloop").resolve())


@pytest.mark.kafka
@pytest.mark.stores
def test_stack_starts_is_found_resumes_after_a_kill_and_stops_cleanly(folder: Folder) -> None:
    assert "running" in folder.run("up", "--detach", *SMALL)
    shown: dict[str, Any] = json.loads(folder.run("status", "--json"))
    phases = {entry["name"]: entry["phase"] for entry in shown["processes"]}
    assert phases == dict.fromkeys(("kafka", "postgres", "topics", "auditor", "keeper"), "ready")
    assert "PostgreSQL" in next(p["detail"] for p in shown["processes"] if p["name"] == "postgres")
    password = (folder.path / ".gpuloop" / "postgres.password").read_text()
    assert password not in json.dumps(shown)
    assert shown["resident_bytes"] > 0

    assert "already up" in folder.run("up", status=1)
    assert "every topic as declared" in folder.run("topics", "diff")
    folder.run("control", "mode", "*", "pricing", "shadow", "--by", "ann")
    assert "mode/*/pricing" in folder.run("tail", "controls", "--no-follow", "-n", "50")

    keeper = next(p for p in folder.state.processes if p.name == "keeper")
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGKILL)
    until(lambda: _named(folder.state, "keeper").restarts == 1, "the keeper is restarted")
    until(lambda: _named(folder.state, "keeper").phase == "ready", "the keeper is ready again")

    os.kill(folder.state.pid, signal.SIGKILL)
    until(folder.gone, "the kernel has ended what the dead supervisor left")

    folder.run("up", "--detach", *SMALL)
    held = json.loads(folder.run("control", "list", "--json"))
    assert {"ann"} == {row["by"] for row in held if row["scope"] == "mode/*/pricing"}
    assert "verified" in folder.run("audit", "verify")
    folder.run("down")
    assert folder.gone()
    assert folder.state.phase == "stopped"
    assert not (folder.path / ".gpuloop" / "stack.lock").exists()


@pytest.mark.kafka
def test_two_stacks_run_side_by_side(tmp_path: Path) -> None:
    small = ("--only", "keeper")
    folders = [Folder(tmp_path / name) for name in ("a", "b")]
    try:
        for folder in folders:
            folder.run("up", "--detach", *small)
        assert not set(folders[0].ports) & set(folders[1].ports)
        for folder in folders:
            assert "keeper" in folder.run("status")
    finally:
        for folder in folders:
            folder.run("down")
    assert all(folder.gone() for folder in folders)


def test_requested_port_that_is_taken_is_named_and_nothing_starts(folder: Folder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = folder.run("up", "--only", "keeper", "--port", str(port), status=1)
    assert f"port {port}, requested for Kafka, is already in use" in said


@pytest.mark.kafka
def test_existing_cluster_gets_topics_only_when_asked(folder: Folder, kafka: Any) -> None:
    there = ("--bootstrap-servers", kafka.bootstrap_servers, "--only", "keeper", "--for", "1s")
    folder._environment["GPULOOP_TOPIC_PREFIX"] = "mine."
    assert "run `gpuloop topics apply`" in folder.run("up", *there, status=1)
    admin = Admin(kafka.bootstrap_servers)
    assert not any(name.startswith("mine.") for name in admin.partitions())
    folder.run("up", *there, "--apply-topics")
    assert admin.diff(wanted("mine.")) == []


@pytest.mark.kafka
def test_topics_are_created_once_and_settings_brought_back(kafka: Any) -> None:
    admin = Admin(kafka.bootstrap_servers)
    topics = wanted("apply.")
    assert {d.what for d in admin.diff(topics)} == {"topic"}
    assert admin.apply(topics, replication_factor=1) == []
    assert admin.diff(topics) == []
    assert len(topics) > len(CATALOGUE)  # The changelogs of the observe stage are among them.

    longer = [Wanted(name="apply.decisions", partitions=1, config={"retention.ms": "1000"})]
    admin.apply(longer)
    until(lambda: [d.found for d in admin.diff(topics)] == ["1000"], "the broker knows")
    admin.apply(topics)
    until(lambda: admin.diff(topics) == [], "the broker knows")


@pytest.mark.kafka
def test_other_number_of_partitions_is_reported_and_left_alone(kafka: Any) -> None:
    admin = Admin(kafka.bootstrap_servers)
    admin.apply([Wanted(name="few.telemetry.gpu", partitions=1)], replication_factor=1)
    asked = [Wanted(name="few.telemetry.gpu", partitions=4)]
    (left,) = admin.apply(asked, replication_factor=1)
    assert (left.what, left.wanted, left.found) == ("partitions", "4", "1")
    assert admin.partitions()["few.telemetry.gpu"] == 1
    broker = KafkaBroker(kafka.bootstrap_servers, prefix="few.")
    try:
        assert len(broker.partitions("telemetry.gpu")) == 1
    finally:
        broker.close()


@pytest.mark.kafka
def test_damaged_jar_is_fetched_again_and_a_wrong_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jar = next(jar for jar in kafka_jars.listed() if jar.artifact == "slf4j-api")
    told: list[tuple[int, int]] = []
    path = jar.path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut short")
    assert kafka_jars.fetch(tmp_path, lambda *at: told.append(at), [jar]) == (path,)
    assert jar.is_whole(tmp_path)
    assert told == [(0, 1), (1, 1)]
    kafka_jars.fetch(tmp_path, lambda *_: pytest.fail("fetched what was there"), [jar])

    monkeypatch.setattr(kafka_jars, "ATTEMPTS", 1)
    forged = kafka_jars.Jar(jar.group, jar.artifact, jar.version, "0" * 64)
    with pytest.raises(StackError, match="SHA-256 is not the pinned one"):
        kafka_jars.fetch(tmp_path, lambda *_: None, [forged])
    assert not path.exists()


@pytest.mark.stores
@pytest.mark.parametrize("source", ["system", "wheel"])
def test_postgres_of_the_system_or_of_a_wheel_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    if source == "wheel":
        monkeypatch.setattr(postgres.shutil, "which", lambda _: None)
        monkeypatch.setattr(postgres, "DEBIAN", tmp_path / "nowhere")
    try:
        server = postgres.locate(tmp_path.resolve())
    except StackError:
        pytest.skip(f"no PostgreSQL from the {source}")
    port = next(free_ports(tmp_path))
    postgres.create(server)
    child = process.Child(server.program(port), tmp_path / "postgres.log")
    try:
        until(lambda: _describes(server.dsn(port)) or child.exit_status() is not None, "it answers")
        assert "PostgreSQL" in _describes(server.dsn(port)), (tmp_path / "postgres.log").read_text()
        stranger = server.dsn(port).replace(server.password, "guess")
        with pytest.raises(StackError, match="password"):
            postgres.describe(stranger)
        child.ask_to_stop()
        assert child.reap(10.0)
        assert child.exit_status() == 0
    finally:
        child.kill_group()
        postgres.wipe(tmp_path.resolve())


def _describes(dsn: str) -> str:
    try:
        return postgres.describe(dsn)
    except StackError:
        return ""


def _named(state: StackState, name: str) -> Any:
    return next(entry for entry in state.processes if entry.name == name)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
