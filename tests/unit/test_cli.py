"""The command line reads well, says errors in one line, and shows messages as they are."""

import errno
import json
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from builders import FLEET, job_state, pool_state
from gpuloop.loop.replay.recording import UNFINISHED
from gpuloop.loop.settings import Settings, plain
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.ops.cli import context, recording, tail
from gpuloop.ops.cli.context import seconds
from gpuloop.ops.cli.lines import line
from gpuloop.ops.cli.main import app, main
from gpuloop.ops.stack import controls, world
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.services import SERVICES
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import Encoded, encode
from gpuloop.schemas.messages import (
    AuditRecord,
    Fault,
    GpuSample,
    Proposal,
)
from messages_shown import COMMAND, DIGEST, outcome


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    for name in ("GPULOOP_BOOTSTRAP_SERVERS", "GPULOOP_STATE_DIR", "GPULOOP_TRACES"):
        monkeypatch.delenv(name, raising=False)
    return CliRunner()


def test_help_names_every_command(run: CliRunner) -> None:
    shown = run.invoke(app, ["--help"]).output
    commands = (
        "up down status logs topics schemas tail record replay audit traces train policy control"
    )
    for command in commands.split():
        assert f" {command} " in shown
        assert run.invoke(app, [command, "--help"]).exit_code == 0


def test_commands_without_a_stack_say_so_in_one_line(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpuloop", "tail", "actions"])
    assert main() == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no stack is up" in said
    assert "gpuloop up" in said
    assert run.invoke(app, ["status"]).exit_code == 1
    assert json.loads(run.invoke(app, ["status", "--json"]).output)["phase"] == "down"
    assert "no stack is up" in run.invoke(app, ["down"]).output


def test_misspelt_setting_is_refused_in_one_line(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPULOOP_SPED", "9")
    monkeypatch.setattr("sys.argv", ["gpuloop", "status"])
    assert main() == 1
    assert "GPULOOP_SPED" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["gpuloop", "up", "--state-dir", str(tmp_path / "file" / "x")])
    assert main() == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Not a directory" in said


def test_unknown_service_is_refused_before_anything_starts(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpuloop", "up", "--without", "dreamer"])
    assert main() == 1
    assert "no service dreamer" in capsys.readouterr().err
    assert not Path(".gpuloop").exists()


def test_topics_and_schemas_are_listed_as_json(run: CliRunner) -> None:
    topics = json.loads(run.invoke(app, ["topics", "list", "--json"]).output)
    assert [row["topic"] for row in topics] == list(CATALOGUE)
    schemas = json.loads(run.invoke(app, ["schemas", "list", "--json"]).output)
    by_name = {row["schema"]: row for row in schemas}
    assert by_name["gpuloop/actions.command/1"]["unknown_fields"] == "refused"
    assert by_name["gpuloop/telemetry.gpu/1"]["unknown_fields"] == "tolerated"


def test_traces_are_listed_where_nothing_else_is_asked(run: CliRunner) -> None:
    asked, listed = run.invoke(app, ["traces"]), run.invoke(app, ["traces", "list"])
    assert (asked.exit_code, asked.output) == (0, listed.output)


def test_traces_are_listed_with_licence_and_what_is_at_hand(run: CliRunner, tmp_path: Path) -> None:
    jobs = tmp_path / "t" / "philly" / "jobs.csv.gz"
    jobs.parent.mkdir(parents=True)
    jobs.touch()
    shown = run.invoke(app, ["traces", "list", "--json", "--folder", str(tmp_path / "t")]).output
    rows = {row["name"]: row for row in json.loads(shown)}
    assert rows["philly"]["at_hand"] == "yes"
    assert rows["openb"]["at_hand"] == "no"
    assert all(row["licence"] and row["source"] for row in rows.values())


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("0.5s", 0.5)]
)
def test_durations_are_read_as_people_write_them(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "5x", "m5", "5m!", "-5m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        seconds(text)


def test_tail_finds_topics_by_name_group_and_part() -> None:
    assert tail.named("decisions") == ("decisions",)
    assert "actions.outcomes" not in tail.named("actions")
    assert len(tail.named("actions")) == 5
    assert tail.named("outcomes") == ("actions.outcomes",)
    with pytest.raises(typer.BadParameter, match="no topic nonsense"):
        tail.named("nonsense")


def test_command_and_its_outcomes_are_readable_lines() -> None:
    assert line(COMMAND) == (
        "2017-10-16 00:00:00  scaling    a100: 16 -> 17 on-demand nodes  [abababababab]"
    )
    waiting = Proposal(fleet=FLEET, command=COMMAND, state="awaiting", answer_by_wall_us=0)
    assert line(waiting).endswith("answer by 1970-01-01 00:00:00 UTC")
    assert "stale_generation" in line(outcome("rejected", "stale_generation"))


def test_a_line_of_a_node_says_what_is_known_of_its_gpus() -> None:
    silent = GpuSample(
        fleet=FLEET,
        node="n1",
        pool="a100",
        rack="r1",
        gpu_model="A100",
        billing="spot",
        event_time_us=0,
        boot=0,
        seq=0,
        gpu_ids=("a", "b"),
    )
    half_known = msgspec.structs.replace(
        silent, utilisation=(0.5, None), temperature_celsius=(40.0, 61.2)
    )
    assert line(silent).endswith("  n1 2 GPUs")
    assert line(half_known).endswith("  n1 2 GPUs, 50% busy, up to 61 degrees")


def test_a_fault_without_a_detail_ends_where_its_words_end() -> None:
    fault = Fault(
        fleet=FLEET, kind="xid", node="n1", pool="a100", xid=79, event_time_us=0, boot=0, seq=0
    )
    assert line(fault).endswith("  xid XID 79 on n1 (a100)")


def test_a_line_of_a_job_says_its_phase_pool_and_gpus() -> None:
    running = job_state("j1", nodes=("n1", "n2"))
    assert line(running).endswith("  running      j1 8 GPUs in a100 on n1, n2")
    assert line(job_state("j1", phase="queued", nodes=())).endswith(" j1 8 GPUs in a100")


def test_complaints_about_json_keep_its_name() -> None:
    assert plain("JSON is malformed: trailing characters") == (
        "JSON is malformed: trailing characters"
    )
    assert plain("Expected `int`") == "expected a whole number"


def test_without_leaves_nothing_out_unless_told(run: CliRunner) -> None:
    shown = run.invoke(app, ["up", "--help"]).output
    assert "(none)" in shown.partition("--without ")[2]


def test_audit_line_shows_what_was_recorded() -> None:
    broker = MemoryBroker()
    broker.produce([encode("actions.scaling", "a100", COMMAND, event_id="e", source="s")])
    (record,) = tail.records(broker, ("actions.scaling",), last=5, follow=False)
    audited = AuditRecord(
        fleet=FLEET,
        topic=record.topic,
        partition=0,
        offset=0,
        timestamp_ms=0,
        key="",
        headers=tuple((k, _base64(v)) for k, v in record.headers),
        value=_base64(record.value or b""),
        previous_hash=DIGEST,
        hash=DIGEST,
    )
    shown = line(audited)
    assert "actions.scaling/0@0" in shown
    assert "16 -> 17 on-demand nodes" in shown


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_tail_shows_the_newest_of_all_partitions_and_survives_bad_input() -> None:
    broker = MemoryBroker()
    good = [
        encode("state.pools", f"p{i}", pool_state(f"p{i}"), event_id=str(i), source="s")
        for i in range(5)
    ]
    bad = Encoded(topic="state.pools", key=b"k", headers=(), value=b"{")
    broker.produce([*good, bad])
    found = list(tail.records(broker, ("state.pools",), last=3, follow=False))
    assert [record.offset for record in found] == [3, 4, 5]
    shown = [tail.readable(record) for record in found]
    assert "p3" in shown[0]
    assert "does not follow its contract" in shown[-1]


def test_policy_that_ships_is_not_dated_1970() -> None:
    shipped = controls.registry.shipped()
    assert shipped is not None
    assert shipped[0].created_wall_us == 0
    assert line(shipped[0], 1_000_000_000_000).startswith("2001-09-09 01:46:40  td3-")


@pytest.mark.parametrize("damage", ['{"a":', "[]", '{"GPULOOP_SEED": "many"}', "\xff"])
def test_a_damaged_world_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "world.json"
    path.write_bytes(damage.encode("latin-1"))
    with pytest.raises(StackError, match=r"world.json is damaged .*--fresh starts another"):
        world.resume(path, Settings())


def test_recording_keeps_no_addresses_or_passwords() -> None:
    chosen = Settings(
        seed=3, postgres_dsn="postgresql://u:secret@h/d", state_dir=Path("/x"), trusted_keys=("ab",)
    )
    assert recording.kept(chosen) == {"seed": "3", "trusted_keys": "ab"}


def test_status_hides_the_password_of_the_database() -> None:
    from gpuloop.ops.cli.stack import _public

    assert _public("postgresql://gpuloop:s3cret@127.0.0.1:5/postgres") == (
        "postgresql://gpuloop@127.0.0.1:5/postgres"
    )
    assert _public("127.0.0.1:9092") == "127.0.0.1:9092"


def test_table_of_services_names_only_what_exists() -> None:
    known = {*SERVICES, "topics"}
    for service in SERVICES.values():
        assert set(service.needs) <= known
        assert service.arguments == ("-m", "gpuloop.loop.services", service.name)
    touching = {name for name, service in SERVICES.items() if service.may_touch_fleet}
    assert touching == {
        name
        for name, service in SERVICES.items()
        if {"actions.scaling", "actions.outcomes"} & set(service.writes)
    }


def test_explicit_cluster_wins_over_environment(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULOOP_BOOTSTRAP_SERVERS", "a:1")
    assert context.settings().bootstrap_servers == "a:1"
    assert context.settings(None, "b:2").bootstrap_servers == "b:2"


def test_explicit_cluster_needs_no_look_into_a_folder_that_may_be_somebody_elses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(_: object) -> None:
        raise PermissionError("stack.lock")

    monkeypatch.setattr(context, "running", forbidden)
    assert context.settings(None, "b:2").bootstrap_servers == "b:2"


def said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, list[str]]:
    """Run the command line; return its status and the lines of its complaint."""
    monkeypatch.setattr("sys.argv", ["gpuloop", *arguments])
    return main(), capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("what", ["nothing", "file", "empty", "unfinished"])
def test_what_cannot_be_replayed_is_told_in_one_line(
    what: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / UNFINISHED).touch()
    folder = tmp_path / what
    status, complaint = said(capsys, monkeypatch, "replay", str(folder))
    assert (status, len(complaint)) == (1, 1)
    assert complaint[0].startswith(f"gpuloop: cannot replay {folder}: ")


def test_unreachable_cluster_is_told_in_one_line_that_names_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpuloop.loop.shells.kafka.METADATA_TIMEOUT_S", 0.5)
    cluster = ("--bootstrap-servers", "127.0.0.1:1")
    for command in (("tail",), ("record", str(tmp_path / "r")), ("audit", "verify")):
        status, complaint = said(capsys, monkeypatch, *command, *cluster)
        assert (status, len(complaint), caplog.records) == (1, 1, [])
        assert "127.0.0.1:1" in complaint[0]
    assert not (tmp_path / "r").exists()


def test_full_disk_ends_a_recording_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gpuloop.loop.replay.record.record", full)
    where = str(tmp_path / "r")
    status, complaint = said(
        capsys, monkeypatch, "record", where, "--bootstrap-servers", "127.0.0.1:1"
    )
    assert (status, complaint) == (
        1,
        [f"gpuloop: cannot record to {where}: No space left on device"],
    )


def test_key_that_others_can_read_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "keys" / "auditor.pem"
    key.parent.mkdir()
    key.touch(mode=0o644)
    arguments = ("--state-dir", str(tmp_path), "--bootstrap-servers", "127.0.0.1:1")
    status, complaint = said(capsys, monkeypatch, "audit", "verify", *arguments)
    assert (status, complaint) == (1, [f"gpuloop: {key} is readable by others; chmod 600 it"])


def test_what_names_a_row_is_never_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "WIDE", 40)
    context.show([{"policy": "sac-1-460c5d1aab22", "note": "x " * 60}], as_json=False, empty="")
    assert "sac-1-460c5d1aab22" in capsys.readouterr().out


def test_collect_once_without_a_driver_is_one_line(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: make setup EXTRAS=collect")
    from gpuloop.loop.collect import nvml
    from gpuloop.ops.cli import main as cli

    def no_driver() -> None:
        raise nvml.nvml.NVMLError(nvml.nvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(nvml.nvml, "nvmlInit", no_driver)
    monkeypatch.setattr("sys.argv", ["gpuloop", "collect", "--once"])
    assert cli.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gpuloop: no NVIDIA driver on this machine")
