"""The loop in containers: what `tests/integration/test_end_to_end.py` sees, seen from outside.

`run.py` starts the containers and then runs this file; a plain pytest does not collect it.
"""

import json
import os
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import msgspec
import pytest

from compose.engine import Engine
from compose.next_version import VERSION, next_version
from compose.project import ROOT, Project
from gpuloop.schemas.messages import Control, Decision, PoolState
from gpuloop.schemas.messages.control import Claim
from gpuloop.schemas.units import MINUTE_US
from integration.test_end_to_end import (  # noqa: F401  Collected here once more.
    applied,
    letters,
    messages,
    test_a_burst_leads_to_a_scaling_command_that_the_twin_applies,
    test_a_fault_leads_to_a_cause_and_to_a_migration,
    test_a_forced_alpha_shows_in_the_decisions,
    test_a_price_change_moves_demand,
    test_an_advised_command_waits_is_approved_and_is_applied,
    test_rewards_arrive_and_a_policy_version_appears,
    test_the_audit_chain_verifies_and_the_recording_replays,
)
from loop_stack import LoopStack, Watch, listening

pytestmark = pytest.mark.timeout(3600)
GIVEN = json.loads(os.environ["TEST_COMPOSE"])
PROJECT, BESIDE = (
    Project(
        Engine(Path(GIVEN["engine"]), GIVEN["docker"]),
        Path(given["folder"]),
        given["environment"],
        given["name"],
    )
    for given in GIVEN["projects"]
)
SERVICES = PROJECT.services()


class PatientWatch(Watch):
    """Containers, broker and tests share this machine with whatever else runs on it."""

    def until(self, what, found, patience_s=900.0):
        return super().until(what, found, patience_s)


@pytest.fixture(scope="module")
def stack():
    return PROJECT


@contextmanager
def watched(broker):
    """Watch what a loop says for as long as is needed."""
    watching = PatientWatch(broker)
    thread = threading.Thread(target=watching.run, daemon=True)
    thread.start()
    try:
        yield watching
    finally:
        watching.stopped.set()
        thread.join()
        broker.close()


@pytest.fixture(scope="module")
def watch():
    with watched(PROJECT.broker()) as watching:
        yield watching


def kcat(*arguments, say=""):
    done = subprocess.run(
        ["kcat", "-q", "-b", PROJECT.environment["GPULOOP_BOOTSTRAP_SERVERS"], *arguments],
        input=say, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("kcat") is None, reason="needs kcat")
@pytest.mark.skipif(PROJECT.identity is not None, reason="librdkafka 2.0.2 cannot sign in")
def test_kcat_reads_the_topics_and_its_approval_is_obeyed(stack, watch):
    assert kcat("-C", "-t", "actions.scaling", "-o", "beginning", "-e")
    assert kcat("-C", "-t", "audit", "-o", "beginning", "-e", "-c", "5")
    stack.command("control", "mode", "a100", "scaling", "advise")
    stack.command("control", "objectives", "a100", "--utilisation-target", "0.5")
    approved = set()

    def waiting():
        newest = {}
        for proposal in kcat("-C", "-t", "proposals", "-o", "beginning", "-e"):
            newest[proposal["command"]["command_id"]] = proposal
        return [
            found["command"]
            for found in newest.values()
            if found["state"] == "awaiting"
            and found["command"]["pool"] == "a100"
            and found["command"]["command_id"] not in approved
        ]

    def obeyed():
        for command in waiting():
            approved.add(command["command_id"])
            yes = {
                "fleet": "local",
                "command_id": command["command_id"],
                "digest": command["digest"],
                "approve": True,
                "by": "ada",
            }
            kcat("-P", "-t", "approvals", "-k", "ada", say=json.dumps(yes) + "\n")
        return [o for o in applied(watch, "scaling") if o.command_id in approved]

    assert watch.until("an approval put by kcat to be obeyed", obeyed)
    stack.command("control", "mode", "a100", "scaling", "auto")


def prometheus(path):
    address = f"http://127.0.0.1:{PROJECT.environment['PROMETHEUS_PORT']}/api/v1/"
    with urllib.request.urlopen(address + path, timeout=10) as answer:
        return json.load(answer)["data"]


def monitored(query):
    return prometheus("query?" + urllib.parse.urlencode({"query": query}))["result"]


def test_prometheus_scrapes_every_service_and_has_its_rules():
    up = monitored('up{job="gpuloop"}')
    assert {one["metric"]["service"]: one["value"][1] for one in up if one["value"][1] != "1"} == {}
    assert len(up) >= 12
    rules = [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    checked = PROJECT.compose(
        "exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml"
    )
    assert "FAILED" not in checked


def rows():
    """Return how many states of pools PostgreSQL has."""
    ask = (
        'PGPASSWORD="$POSTGRES_PASSWORD" psql -h 127.0.0.1 -U gpuloop -d gpuloop'
        ' -Atc "select count(*) from gpuloop.pool_states"'
    )
    return int(PROJECT.compose("exec", "-T", "timescaledb", "sh", "-c", ask))


def test_history_arrives_in_both_stores(watch):
    before = rows()
    watch.until("more history in PostgreSQL", lambda: rows() > before)
    counted = "sum by (component) (gpuloop_sink_rows_total) > 0"

    def writing():
        return {one["metric"]["component"] for one in monitored(counted)}

    watch.until("rows of both sinks", lambda: writing() == {"sink-timescale", "sink-clickhouse"})


@pytest.mark.parametrize("name", SERVICES)
def test_a_killed_container_comes_back_and_the_loop_goes_on(watch, name):
    tick = max(d.tick_us for d in messages(watch, Decision, "decisions"))
    healthy = PROJECT.crash(name)

    def on():
        return any(d.tick_us > tick + MINUTE_US for d in messages(watch, Decision, "decisions"))

    watch.until(f"decisions to go on without the old {name}", on)
    with listening(watch.broker, name) as spoke:
        watch.until(f"{name} to do its own work again", spoke)
    print(f"RECOVERED {name} {healthy:.1f} s")


def test_more_containers_share_the_observe_stage(watch):
    def whole(after_us):
        return [
            state
            for state in messages(watch, PoolState, "state.pools")
            if state.tick_us > after_us and state.shards_reported == state.shards_expected
        ]

    for count in (3, 1):
        PROJECT.compose(
            "up", "--detach", "--wait", "--no-build", "--no-deps", f"--scale=observe={count}",
            "observe",
        )  # fmt: skip
        assert len(PROJECT.compose("ps", "--quiet", "observe").split()) == count
        tick_us = max(s.tick_us for s in messages(watch, PoolState, "state.pools"))
        watch.until(f"whole states by {count}", lambda tick_us=tick_us: whole(tick_us + MINUTE_US))


def test_everything_killed_at_once_comes_back(watch):
    known = decisions_of(watch)
    PROJECT.compose("kill")
    began = monotonic()
    PROJECT.compose("up", "--detach", "--wait", "--no-build")
    print(f"RESTARTED {monotonic() - began:.1f} s")
    watch.until("decisions after the restart", lambda: decisions_of(watch) - known)


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    return next_version(tmp_path_factory.mktemp("newer"))


def decisions_of(watch):
    return {d.decision_id for d in messages(watch, Decision, "decisions")}


def take_over(tree, watch):
    """Go to a version as docs/operating.md says: the executor first, then everything else."""
    known, epoch = decisions_of(watch), claimed(watch)
    PROJECT.tree = tree
    PROJECT.build()
    began = monotonic()
    PROJECT.compose("up", "--detach", "--wait", "--no-build", "--no-deps", "twin")
    PROJECT.compose("up", "--detach", "--wait", "--no-build")
    print(f"TOOK OVER {monotonic() - began:.1f} s")
    watch.until("a claim by the decider that took over", lambda: claimed(watch) > epoch)
    watch.until("decisions of the version that took over", lambda: decisions_of(watch) - known)
    (version,) = PROJECT.versions()
    return version


def test_the_next_version_takes_over_and_gives_back(newer, watch):
    was = PROJECT.versions()
    assert take_over(newer, watch) == VERSION
    # The decider may take over on a state that the version before has still told.
    watch.until(
        "a state that the next version tells",
        lambda: any(b"told_by" in one.record.value for one in watch.of("state.pools")[-10:]),
    )
    assert {take_over(ROOT, watch)} == was
    assert letters(watch) == []


@pytest.mark.skipif(PROJECT.identity is not None, reason="the plain stack shows it")
def test_the_next_version_runs_beside_this_one(newer, watch):
    BESIDE.tree = newer
    BESIDE.compose("up", "--detach", "--wait", "--no-build")
    try:
        with watched(BESIDE.broker()) as other:
            other.until("decisions of the version beside", lambda: decisions_of(other))
            known = decisions_of(watch)
            watch.until("decisions of this one meanwhile", lambda: decisions_of(watch) - known)
        assert (BESIDE.versions(), VERSION in PROJECT.versions()) == ({VERSION}, False)
    finally:
        BESIDE.compose("down", "--volumes")
    assert BESIDE.left() == []


def test_the_audit_is_whole_after_it_all(stack, watch):
    once = [outcome.command_id for outcome in applied(watch)]
    assert len(once) == len(set(once))
    assert "verified" in stack.command("audit", "verify")
    assert letters(watch) == []


def claimed(watch):
    bodies = [control.body for control in messages(watch, Control, "controls")]
    return max((body.epoch for body in bodies if isinstance(body, Claim)), default=0)


def backup(what, folder):
    subprocess.run(
        [str(ROOT / "ops/docker/backup.sh"), what, str(folder)],
        env=os.environ | PROJECT.engine.environment | {"COMPOSE_PROJECT_NAME": PROJECT.name},
        check=True, timeout=600,
    )  # fmt: skip


def test_a_backup_restored_into_nothing_is_the_fleet_it_was_under_a_higher_epoch(
    stack, watch, tmp_path
):
    PROJECT.keep_logs()
    watch.stopped.set()
    epoch, known = claimed(watch), {d.decision_id for d in messages(watch, Decision, "decisions")}
    PROJECT.compose("stop")
    backup("save", tmp_path)
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    PROJECT.compose("down", "--volumes")
    assert PROJECT.left() == []
    began = monotonic()
    backup("restore", tmp_path)
    PROJECT.compose("up", "--detach", "--wait", "--no-build")
    print(f"RESTORED {monotonic() - began:.1f} s")
    with watched(PROJECT.broker()) as again:

        def decided():
            return {d.decision_id for d in messages(again, Decision, "decisions")} - known

        again.until("decisions after the restore", decided)
        assert known <= {d.decision_id for d in messages(again, Decision, "decisions")}
        again.until("a higher epoch", lambda: claimed(again) > epoch)
        once = [outcome.command_id for outcome in applied(again)]
        assert len(once) == len(set(once))
    assert "verified" in stack.command("audit", "verify")


def test_every_container_ends_in_time_when_asked_and_nothing_is_left(watch):
    watch.stopped.set()
    PROJECT.compose("stop")
    ended = {name: PROJECT.inspect(name)["State"] for name in SERVICES}
    assert {name for name, state in ended.items() if state["ExitCode"] == 137} == set()
    assert {name for name, state in ended.items() if state["OOMKilled"]} == set()
    PROJECT.compose("down", "--volumes")
    assert PROJECT.left() == []


def test_a_recording_made_on_the_host_replays_in_a_container(tmp_path):
    host = LoopStack(tmp_path, {"COLUMNS": "200"})
    without = [f"--without={one}" for one in ("learner", "causes", "clickhouse", "postgres")]
    host.command("up", "--detach", "--speed", "120", *without)
    try:
        with watched(host.broker()) as watching:
            watching.until(
                "decisions on the host", lambda: len(messages(watching, Decision, "decisions")) > 60
            )
        host.command("record", "recording")
    finally:
        host.command("down", check=False)
    for path in [tmp_path, *(tmp_path / "recording").rglob("*")]:
        path.chmod(0o755)
    (tmp_path / "recording").chmod(0o755)
    said = PROJECT.engine.docker(
        "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--tmpfs=/tmp",
        f"--volume={tmp_path}/recording:/recording:ro", "--entrypoint=gpuloop",
        "gpuloop-base:0.1.0", "replay", "/recording", "--json",
    ).stdout  # fmt: skip
    (report,) = msgspec.json.decode(said)
    assert (report["different"], report["absent"]) == (0, 0)
    assert report["equal"] > 50
