"""`gpuloop up` refuses what cannot run before it starts, and tells what a person must know."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from typer.testing import CliRunner

from builders import FLEET, START_US, pool_state
from gpuloop.loop.services.twin import STORE_FILE, build
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.store import Store, Stored
from gpuloop.ops.cli.live import PlainView, draining_gpus
from gpuloop.ops.cli.main import app, main
from gpuloop.ops.stack import notices, preflight, world
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.local import Options
from gpuloop.ops.stack.moment import Moment, StopRequest
from gpuloop.ops.stack.monitor import Monitor, ends
from gpuloop.ops.stack.state import write
from gpuloop.ops.stack.tally import Tally
from gpuloop.schemas.codec import encode
from gpuloop.schemas.component import save
from gpuloop.schemas.messages import Control
from gpuloop.schemas.messages.control import ControlBody, Freeze, Kill, scope
from gpuloop.schemas.units import MINUTE_US, SECOND_US
from processes import stack_state

Said = Callable[..., list[str]]


@pytest.fixture
def said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Said:
    """Run the command line in an empty folder; return the lines of its complaint."""
    for name in [name for name in os.environ if name.startswith("GPULOOP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["gpuloop", *arguments])
        assert main() == 1
        return capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    jobs = tmp_path / "traces" / "philly" / "jobs.csv.gz"
    jobs.parent.mkdir(parents=True)
    with gzip.open(jobs, "wt") as file:
        file.write("timestamp,duration,num_gpus,cluster\n")
        for day in ("16", "17"):
            file.write(f"2017-10-{day} 08:00:00,600,1,a\n")
    return tmp_path / "traces"


def options(root: Path, **settings: object) -> Options:
    return Options(root=root, settings=msgspec.structs.replace(Settings(), **settings))


def begin(root: Path, settings: Settings) -> None:
    """Leave a world in a folder as a twin that was stopped would."""
    root.mkdir()
    (root / "logs").mkdir()
    world.remember(root / "world.json", settings)
    store = Store(root / STORE_FILE)
    data = save(build(settings).initial())
    store.commit(
        Stored(version=1, world="w", now_us=settings.start_us, data=data, positions={}),
        [],
        sent_through=0,
    )
    store.close()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--traces", "nowhere"), "there is no folder of traces at"),
        (("--traces", "empty"), "no known trace lies in"),
        (("--start", "9999-12-31"), "--start 9999-12-31 is not between 1971-01-01 and"),
        (("--port", "99999"), "port 99999, requested for Kafka, is not between"),
        (("--without", "dreamer"), "no service dreamer"),
        (("--speed", "0"), "--speed: expected a number > 0"),
        (("--speed", "nan"), "--speed: "),
        (("--report", "empty"), "--report empty is a folder; name a file"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_and_leaves_nothing(
    said: Said, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "empty").mkdir()
    for detach in ((), ("--detach",)):
        (line,) = said("up", *arguments, *detach)
        assert line.startswith(f"gpuloop: {complaint}")
        assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("up", "--seed", "-1"), "Invalid value for '--seed': must be greater than or equal to 0"),
        (("up", "--speed", "x"), "Invalid value for '--speed': not a number"),
        (("up", "--port", "x"), "Invalid value for '--port': not a whole number"),
        (("up", "--start", "x"), "Invalid value for '--start': not a date like 2017-10-16"),
        (("up", "--for", "5x"), "Invalid value: '5x' is no duration; write 90s, 5m or 1h30m"),
        (("control", "freeze", "a", "--for", "5x"), "Invalid value: '5x' is no duration"),
        (
            ("control", "mode", "a", "scalin", "off"),
            "Invalid value for 'actuator': 'scalin' is not",
        ),
        (("contrl",), "No such command 'contrl'. Did you mean 'control'?"),
    ],
)
def test_what_was_mistyped_is_told_in_one_line_without_words_of_a_library(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["gpuloop", *arguments])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gpuloop: {complaint}")
    assert line.endswith("--help`")


def test_start_outside_the_trace_is_refused_with_the_span_it_has(
    said: Said, tmp_path: Path, traces: Path
) -> None:
    (line,) = said("up", "--traces", str(traces), "--start", "2019-01-01")
    assert "from 2017-10-16T08:00:00 to 2017-10-17T08:00:00" in line
    assert not (tmp_path / ".gpuloop").exists()


def test_world_is_resumed_with_what_it_was_begun_with(tmp_path: Path) -> None:
    path, first = tmp_path / "world.json", Settings(seed=7, traces=tmp_path, speed=60.0)
    assert world.resume(path, first) == first
    assert not path.exists()
    world.remember(path, first)
    again = world.resume(path, Settings(speed=10.0))
    assert (again.seed, again.traces, again.speed) == (7, tmp_path, 10.0)
    world.remember(path, Settings(seed=9))
    assert world.resume(path, Settings()).seed == 7


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"seed": 8}, "begun with seed 7, not 8; --fresh"),
        ({"seed": 8, "workload": "generator"}, "seed 7, workload none, not 8, generator"),
    ],
)
def test_setting_that_is_not_the_worlds_is_refused_by_name(
    tmp_path: Path, given: dict[str, object], complaint: str
) -> None:
    world.remember(tmp_path / "world.json", Settings(seed=7))
    with pytest.raises(StackError, match=complaint):
        world.resume(tmp_path / "world.json", msgspec.structs.replace(Settings(), **given))


def test_world_begun_without_a_trace_is_not_resumed_with_one(tmp_path: Path, traces: Path) -> None:
    begin(tmp_path / "state", Settings())
    with pytest.raises(StackError, match=f"begun with traces none, not {traces}; --fresh"):
        preflight.check(options(tmp_path / "state", traces=traces), fresh=False)
    assert preflight.check(options(tmp_path / "state", traces=traces), fresh=True).traces == traces
    assert preflight.check(options(tmp_path / "state"), fresh=False) == Settings()


def test_world_whose_trace_became_another_is_not_resumed(tmp_path: Path, traces: Path) -> None:
    begin(tmp_path / "state", Settings(traces=traces))
    preflight.check(options(tmp_path / "state"), fresh=False)
    moved = traces.rename(tmp_path / "moved")
    with pytest.raises(StackError, match="there is no folder of traces"):
        preflight.check(options(tmp_path / "state"), fresh=False)
    preflight.check(options(tmp_path / "state", traces=moved), fresh=False)
    (moved / "philly" / "jobs.csv.gz").rename(moved / "philly" / "virtual_clusters.csv")
    with pytest.raises(StackError, match="begun with another trace, configuration or version"):
        preflight.check(options(tmp_path / "state", traces=moved), fresh=False)


def test_full_disk_names_the_stacks_folder(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gpuloop.ops.cli.stack.run", full)
    assert said("up") == [f"gpuloop: {tmp_path / '.gpuloop'}: No space left on device"]


def test_report_of_an_earlier_run_is_gone_before_the_next_one_begins(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "report.json"
    stale.touch()

    def seen(*_: object, **__: object) -> None:
        raise StackError("stale" if stale.exists() else "gone")

    monkeypatch.setattr("gpuloop.ops.cli.stack.run", seen)
    assert said("up", "--report", str(stale)) == ["gpuloop: gone"]


def heard(tally: Tally, body: ControlBody) -> list[str]:
    tally.take(Control(fleet=FLEET, by="ada", body=body), 0)
    return notices.of_people(tally)


def test_kill_switch_and_freezes_are_said_until_they_end() -> None:
    tally = Tally()
    tally.take(pool_state(tick_us=START_US), 0)
    (killed,) = heard(tally, Kill(engaged=True))
    assert killed.startswith("kill switch, by ada: nothing new starts")
    assert heard(tally, Kill(engaged=False)) == []
    (frozen,) = heard(tally, Freeze(target="a100", until_us=START_US + MINUTE_US))
    assert frozen == "a100 is frozen until 2017-10-16 00:01 fleet time"
    assert heard(tally, Freeze(target="a100", until_us=0)) == []
    assert heard(tally, Freeze(target="*", until_us=START_US)) == []


def test_state_that_no_longer_comes_is_said_with_its_age() -> None:
    tally = Tally()
    tally.take(pool_state(tick_us=START_US), 1_000_000)

    def after(seconds: int, ready: int = 0) -> str:
        now, began = (1_000 + seconds) * SECOND_US, (1_000 + ready) * SECOND_US
        return notices.of_state(tally, now_us=now, ready_us=began, speed=60.0)

    assert after(20) == ""
    assert after(40).startswith("no fresh state for 40 s")
    assert after(40, ready=30) == ""
    tally.fleet_us += 10 * MINUTE_US  # Decisions went on; what comes now is a catch-up.
    tally.take(pool_state(tick_us=START_US + MINUTE_US), 1_039_000)
    assert after(40).startswith("no fresh state for 40 s")


def test_monitor_hears_what_people_said_before_the_run() -> None:
    broker = MemoryBroker()
    kill = Control(fleet=FLEET, by="ada", body=Kill(engaged=True))
    broker.produce([encode("controls", scope(kill.body), kill, event_id="e", source="s")])
    monitor = Monitor(broker, ends(broker))
    try:
        assert monitor.catch_up(10)
        assert monitor.tally.killed_by == "ada"
    finally:
        monitor.close()


def test_more_busy_than_rented_is_shown_as_draining() -> None:
    assert draining_gpus(pool_state(on_demand=10, spot=0, allocated=80)) == 0
    assert draining_gpus(pool_state(on_demand=10, spot=0, allocated=96)) == 16
    assert draining_gpus(pool_state(on_demand=10, spot=0, allocated=40, nodes_heard=11)) == 8


def test_output_that_nobody_reads_any_more_asks_for_a_clean_stop() -> None:
    code = (
        "import os, sys\n"
        "from gpuloop.ops.cli.live import PlainView\n"
        "sys.stdout.flush(); asked = []\n"
        "view = PlainView(lambda: asked.append(1))\n"
        "for _ in range(3): view.say('x' * 100)\n"
        "os.write(2, str(len(asked)).encode())\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"1")


def test_termination_and_a_lost_reader_stop_in_haste_an_interrupt_does_not() -> None:
    for number, hasty in ((signal.SIGINT, False), (signal.SIGTERM, True)):
        stop = StopRequest()
        with stop.on_signals():
            signal.raise_signal(number)
        assert stop.wait(0)
        assert stop.hasty is hasty


def test_notice_is_printed_when_it_begins_and_not_ten_times_a_second(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = PlainView()
    nothing = cast(Any, SimpleNamespace(units={}))
    moment = Moment(
        phase="running",
        supervisor=nothing,
        monitor=None,
        elapsed_seconds=1.0,
        phase_seconds=1.0,
        stack=nothing,
        notices=("no fresh state for 21 s",),
    )
    view.refresh(moment)
    view.refresh(replace(moment, notices=("no fresh state for 22 s", "kill switch")))
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition("! ")[2] for line in shown] == ["no fresh state for 21 s", "kill switch"]


def test_status_shows_what_a_person_must_know(said: Said, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    layout.create()
    state = stack_state(notices=("kill switch, by ada",))
    with layout.locked():
        write(layout.state, state)
        shown = CliRunner().invoke(app, ["status", "--state-dir", str(layout.root)]).output
        plain = CliRunner().invoke(app, ["status", "--json", "--state-dir", str(layout.root)])
    assert "! kill switch, by ada" in shown
    assert json.loads(plain.output)["notices"] == ["kill switch, by ada"]
