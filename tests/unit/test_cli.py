"""The command line reads well, says errors in one line, and shows messages as they are."""

import errno
import json
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from builders import FLEET, START_US, pool_state
from gpuloop.loop.replay.recording import UNFINISHED
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.ops.cli import context, control, recording, tail
from gpuloop.ops.cli.context import seconds
from gpuloop.ops.cli.lines import line
from gpuloop.ops.cli.main import app, main
from gpuloop.ops.stack import controls, report, world
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.report import Audited
from gpuloop.ops.stack.services import SERVICES
from gpuloop.ops.stack.tally import Tally
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import Encoded, decode, encode
from gpuloop.schemas.messages import (
    AuditRecord,
    Command,
    Control,
    Outcome,
    Proposal,
    Reward,
)
from gpuloop.schemas.messages.actions import ScaleTo
from gpuloop.schemas.messages.control import PolicyStage, SetMode

DIGEST = "ab" * 32
COMMAND = Command(
    fleet=FLEET,
    command_id=DIGEST,
    decision_id="d",
    actuator="scaling",
    target="a100",
    pool="a100",
    mode="auto",
    before=ScaleTo(on_demand_nodes=16, spot_nodes=8),
    to=ScaleTo(on_demand_nodes=17, spot_nodes=8),
    inverse=None,
    generation=0,
    epoch=1,
    issued_at_us=START_US,
    expires_at_us=START_US,
    gpus=8,
    usd_micros_per_hour=29_000_000,
    summary="a100: 16 -> 17 on-demand nodes",
    reason="queue",
    digest=DIGEST,
)


def outcome(status: str, reason: str) -> Outcome:
    return msgspec.convert(
        {
            "fleet": FLEET,
            "command_id": DIGEST,
            "decision_id": "d",
            "actuator": "scaling",
            "target": "a100",
            "pool": "a100",
            "status": status,
            "reason": reason,
            "generation": 1,
            "epoch": 1,
            "event_time_us": START_US,
        },
        Outcome,
    )


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


@pytest.fixture
def fleet(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    """Return what the control commands talk to."""
    broker = MemoryBroker()
    monkeypatch.setenv("GPULOOP_BOOTSTRAP_SERVERS", "a:1")
    monkeypatch.setattr(control, "broker", lambda _: nullcontext(broker))
    return broker


def test_control_of_an_unknown_pool_is_refused_with_those_there_are(
    fleet: MemoryBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = [
        encode("state.pools", p, pool_state(p), event_id=p, source="s") for p in ("a100", "l4")
    ]
    fleet.produce(state)
    for command in (("mode", "a10", "scaling", "advise"), ("objectives", "a10"),
                    ("policy", "sac-9", "--pool", "a10"), ("reset-breaker", "a10")):  # fmt: skip
        status, complaint = said(capsys, monkeypatch, "control", *command)
        assert (status, complaint) == (
            1,
            ["gpuloop: no pool a10, did you mean a100?; there are a100, l4, or '*' for all"],
        )
    assert not any(fleet.ends(fleet.partitions("controls")).values())
    for pool in ("a100", "*"):
        assert CliRunner().invoke(app, ["control", "mode", pool, "scaling", "off"]).stderr == ""


def test_control_of_a_pool_that_nobody_could_know_yet_is_obeyed_with_a_warning(
    fleet: MemoryBroker, run: CliRunner
) -> None:
    done = run.invoke(app, ["control", "mode", "a10", "scaling", "advise"])
    assert done.exit_code == 0
    assert "no pool has been heard of yet" in done.stderr


def test_control_of_an_unknown_policy_is_refused(
    fleet: MemoryBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, (complaint,) = said(capsys, monkeypatch, "control", "policy", "sac-nonsense")
    assert (status, "no policy sac-nonsense" in complaint) == (1, True)


def test_kill_and_clear_say_which_they_did(fleet: MemoryBroker, run: CliRunner) -> None:
    assert run.invoke(app, ["control", "kill"]).output.startswith("kill switch set: nothing new")
    assert run.invoke(app, ["control", "clear"]).output.startswith("kill switch cleared on fleet")


def test_policy_that_ships_is_not_dated_1970() -> None:
    shipped = controls.registry.shipped()
    assert shipped is not None
    assert shipped[0].created_wall_us == 0
    assert line(shipped[0], 1_000_000_000_000).startswith("2001-09-09 01:46:40  sac-")


def test_first_controls_of_a_twin_grant_auto_and_the_shipped_policy_its_earned_alpha() -> None:
    broker = MemoryBroker()
    assert controls.publish_first(broker, FLEET)
    said = [
        message.body
        for record in tail.records(broker, ("controls",), last=99, follow=False)
        if isinstance(message := decode(record), Control)
    ]
    modes = {body.actuator: body.mode for body in said if isinstance(body, SetMode)}
    assert modes == {"scaling": "auto", "pricing": "auto", "migration": "auto"}
    shipped = controls.registry.shipped()
    stages = [body for body in said if isinstance(body, PolicyStage)]
    assert [(s.policy_id, s.alpha) for s in stages] == (
        [] if shipped is None else [(shipped[0].policy_id, shipped[0].alpha)]
    )


def test_first_controls_never_overrule_what_was_said_before() -> None:
    broker = MemoryBroker()
    off = SetMode(pool="*", actuator="scaling", mode="off")
    controls.publish(broker, [off], fleet=FLEET, by="ann", reason="")
    assert not controls.publish_first(broker, FLEET)
    assert len(list(tail.records(broker, ("controls",), last=99, follow=False))) == 1


def test_tally_counts_applied_refused_and_money() -> None:
    tally = Tally()
    for message in (
        COMMAND,
        outcome("accepted", "ok"),
        outcome("applied", "ok"),
        outcome("rejected", "stale_epoch"),
        outcome("expired", "expired"),
        _reward(1_500_000, start=60),
        _reward(-500_000, start=0),
    ):
        tally.take(message, timestamp_ms=0)
    assert (tally.commands, tally.applied) == (1, 1)
    assert dict(tally.refused) == {"stale_epoch": 1, "expired": 1}
    assert tally.reward_total_usd_micros == 1_000_000
    assert (tally.rewarded_from_us, tally.rewarded_until_us) == (0, 120)
    assert len(tally.happened) == tally.happenings == 4


def _reward(micros: int, *, start: int) -> Reward:
    return Reward(
        fleet=FLEET,
        pool="a100",
        decision_id="d",
        start_us=start,
        end_us=start + 60,
        components={"revenue": micros},
        total_usd_micros=micros,
        overlap=0,
        censored=False,
        definition="x",
    )


def reported(tally: Tally, **changes: object) -> report.Report:
    built = report.build(
        tally,
        trace="philly",
        seed=3,
        events=10,
        audited=Audited(records=7, ok=True, problem=""),
        resident_bytes=5,
        restarts={},
        started_wall_us=0,
        ended_wall_us=60_000_000,
    )
    return msgspec.structs.replace(built, **changes)


def test_report_says_of_its_money_what_is_booked_and_what_is_simulated() -> None:
    tally = Tally()
    tally.take(_reward(1_500_000, start=START_US), timestamp_ms=0)
    simulated = report.Simulated(policy=2.0, rule=2.0, hours=0.5)
    shown = "\n".join(report.lines(report.with_simulation(reported(tally), simulated)))
    assert "reward, live         +1.50 USD" in shown
    assert "of fleet time, 2017-10-16 00:00 to" in shown
    assert "alpha 0: policy and rule are the same" in shown
    learned = report.with_simulation(reported(tally, alpha=0.5), simulated)
    assert "policy and rule are the same" not in "\n".join(report.lines(learned))


def test_report_says_that_the_loop_was_blind_or_a_process_failed() -> None:
    blind = reported(
        Tally(),
        seconds_without_fresh_state=40.0,
        decisions_held=12,
        troubles=("observe fails again and again: ended with status 75",),
        problem="nothing was decided",
    )
    shown = "\n".join(report.lines(blind))
    for words in ("NO FRESH STATE      for 40 s", "12 decisions wished", "observe fails again",
                  "PROBLEM             nothing was decided", "nothing was booked"):  # fmt: skip
        assert words in shown


def test_report_has_the_promised_keys_and_types() -> None:
    tally = Tally()
    tally.take(_reward(1_500_000, start=0), timestamp_ms=0)
    built = report.build(
        tally,
        trace="philly",
        seed=3,
        events=10,
        audited=Audited(records=7, ok=True, problem=""),
        resident_bytes=5,
        restarts={"twin": 1},
        started_wall_us=0,
        ended_wall_us=60_000_000,
    )
    plain = json.loads(msgspec.json.encode(built))
    promised = (
        "trace seed events decisions commands_applied commands_refused rewards reward_total "
        "reward_simulated_policy reward_simulated_rule alpha policy_versions causes audit_records "
        "audit_ok resident_bytes seconds_to_first_decision"
    )
    assert set(promised.split()) <= set(plain)
    assert plain["rewards"] == {"revenue": 1.5}
    assert plain["reward_total"] == 1.5
    assert plain["reward_simulated_rule"] is None
    assert plain["seconds_to_first_decision"] is None
    assert "verified" in "\n".join(report.lines(built))


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


@pytest.mark.parametrize(("on_terminal", "shown"), [(False, 2), (True, 20)])
def test_recording_says_how_far_it_has_come(
    on_terminal: bool, shown: int, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    counted = recording.Counted(on_terminal=on_terminal, clock=lambda: now)
    for second in range(1, 21):
        now = float(second)
        counted("telemetry.gpu/0", second * 100)
    said = capsys.readouterr().err
    assert said.count("records, at telemetry.gpu/0") == shown
    assert ("\n" in said) is not on_terminal


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
