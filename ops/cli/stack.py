"""`gpuloop up`, `down`, `status` and `logs`: the stack in this folder."""

import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Annotated, Final

import msgspec
import typer

from gpuloop.loop.settings import Settings, plain
from gpuloop.loop.shells.clock import wall_us
from gpuloop.ops.cli import context, live
from gpuloop.ops.cli.context import AsJson, StateDir
from gpuloop.ops.stack import preflight, process, report
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.local import Options
from gpuloop.ops.stack.logbook import supervisor_log
from gpuloop.ops.stack.moment import StopRequest
from gpuloop.ops.stack.report import write_report
from gpuloop.ops.stack.run import end_leftovers, run
from gpuloop.ops.stack.state import ProcessState, StackState, read

DETACH_SECONDS: Final = 600.0
DOWN_SECONDS: Final = 90.0
LOOK_SECONDS: Final = 0.1

_NAMES = "Services, or kafka, postgres, clickhouse; repeat for more."
Only = Annotated[list[str] | None, typer.Option(help=_NAMES, show_default="all")]
Without = Annotated[list[str] | None, typer.Option(help=_NAMES, show_default="none")]


def up(
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the world that is here and begin another.")
    ] = False,
    for_: Annotated[
        str | None,
        typer.Option("--for", help="Stop this long after it is ready, e.g. 90s or 5m."),
    ] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write the final report here, as JSON.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once everything is ready.")
    ] = False,
    speed: Annotated[
        float | None, typer.Option(help="Fleet seconds per wall second.", show_default="60")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Root of all random draws.", show_default="0")
    ] = None,
    start: Annotated[
        datetime | None,
        typer.Option(help="Fleet time of a fresh world.", show_default="2017-10-16"),
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            help="Folder of public traces.", show_default="GPULOOP_TRACES, else generated workload"
        ),
    ] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Use this Kafka cluster instead of an own broker.")
    ] = None,
    apply_topics: Annotated[
        bool, typer.Option("--apply-topics", help="Create missing topics on that cluster.")
    ] = False,
    replication_factor: Annotated[
        int, typer.Option(help="Copies of each partition there; -1 leaves it to the cluster.")
    ] = -1,
    port: Annotated[
        int | None, typer.Option(help="Port of the own broker.", show_default="a free one")
    ] = None,
    only: Only = None,
    without: Without = None,
    state_dir: StateDir = None,
) -> None:
    """Start the stack here, watch it, stop it with Ctrl-C; it resumes its world.

    Runs Kafka, PostgreSQL, ClickHouse's engine and every service as processes of this machine.
    Two of them keep history in the stores; --without postgres or clickhouse leaves theirs out.
    The world is kept in the stack's folder; --fresh or another --state-dir begins another.
    """
    asked: dict[str, object] = {
        "speed": speed,
        "seed": seed,
        "start": start.replace(tzinfo=UTC) if start is not None else None,
        "traces": traces,
        "bootstrap_servers": bootstrap_servers,
    }
    settings = _with(Settings.from_environment(), {k: v for k, v in asked.items() if v is not None})
    options = Options(
        root=context.layout(state_dir).root,
        settings=settings,
        existing_cluster="GPULOOP_BOOTSTRAP_SERVERS" in settings.environment(),
        apply_topics=apply_topics,
        replication_factor=replication_factor,
        kafka_port=port,
        only=tuple(only or ()),
        without=tuple(without or ()),
    )
    duration = context.seconds(for_) if for_ is not None else None
    preflight.check(options, fresh=fresh)
    if report_file is not None:
        _begin_report(report_file)
    if detach:
        _detached(Layout(options.root))
        return
    try:
        _run_in_foreground(options, fresh=fresh, duration=duration, report_file=report_file)
    except OSError as error:
        # What has no name of its own was written where the stack keeps its things.
        raise StackError(f"{error.filename or options.root}: {error.strerror}") from None


def _with(settings: Settings, given: dict[str, object]) -> Settings:
    """Return settings with some replaced, checked like those from the environment."""
    whole = msgspec.structs.asdict(settings) | given
    try:
        return msgspec.convert(whole, Settings, dec_hook=lambda _, value: value)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        option = "--" + where.rstrip("`").replace("_", "-")
        raise StackError(f"{option}: {plain(what)}") from None


def _begin_report(path: Path) -> None:
    """Make room for a report, and leave none of an earlier run that could be taken for it."""
    if path.is_dir():
        raise StackError(f"--report {path} is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


def _run_in_foreground(
    options: Options, *, fresh: bool, duration: float | None, report_file: Path | None
) -> None:
    stop = StopRequest()
    layout = Layout(options.root)
    try:
        with live.view(lambda: stop.set(hasty=True)) as view, supervisor_log(layout):
            ended = run(options, view, stop, fresh=fresh, seconds=duration)
    except KeyboardInterrupt:
        raise StackError("interrupted twice: everything was killed, nothing was counted") from None
    if ended.report is not None:
        if ended.report.seconds_to_ready is not None or ended.report.decisions:
            typer.echo("\n".join(report.lines(ended.report)))
        if report_file is not None:
            write_report(report_file, ended.report)
    for name in ended.failed:
        if layout.log(name).exists():
            typer.echo(f"{name} was given up; see {layout.log(name)}", err=True)
    if ended.problem:
        raise StackError(f"{ended.problem}; see {layout.logs}")
    if ended.failed:
        raise typer.Exit(1)


def _detached(layout: Layout) -> None:
    """Start the same command in the background and return once it is ready."""
    layout.create()
    log = layout.log("up")
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "gpuloop.ops.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = monotonic() + DETACH_SECONDS
    while monotonic() < deadline:
        if child.poll() is not None:
            raise StackError(_last_words(log))
        state = read(layout.state)
        if state is not None and state.pid == child.pid and state.phase == "running":
            typer.echo(_headline(state))
            failed = [f"{p.name}: {p.detail}" for p in state.processes if p.phase == "failed"]
            if failed:
                raise StackError("; ".join(failed))
            return
        Event().wait(LOOK_SECONDS)
    raise StackError(f"not ready within {DETACH_SECONDS:.0f} s; see {log}")


def _last_words(log: Path) -> str:
    """Return what a start that failed in the background said at its end."""
    said = [line for line in log.read_text().splitlines() if line.startswith("gpuloop: ")]
    return said[-1].removeprefix("gpuloop: ") if said else f"it ended; see {log}"


def down(state_dir: StateDir = None) -> None:
    """Stop the stack in this folder; its world is kept."""
    layout = context.layout(state_dir)
    owner = layout.owner()
    if owner is None:
        left = end_leftovers(layout)
        typer.echo(f"ended {', '.join(left)}" if left else f"no stack is up in {layout.root}")
        return
    os.kill(owner, signal.SIGTERM)
    deadline = monotonic() + DOWN_SECONDS
    while layout.owner() is not None or process.runs(owner):
        if monotonic() > deadline:
            raise StackError(f"process {owner} did not stop within {DOWN_SECONDS:.0f} s")
        Event().wait(LOOK_SECONDS)
    typer.echo(f"stopped the stack in {layout.root}")


def status(as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """Show every process of the stack: state, restarts, what it says of itself."""
    layout = context.layout(state_dir)
    state = context.running(layout)
    if state is None:
        if as_json:
            context.print_json({"phase": "down", "processes": []})
        else:
            typer.echo(f"no stack is up in {layout.root}")
        raise typer.Exit(1)
    if as_json:
        shown = {name: _public(value) for name, value in state.environment.items()}
        context.print_json(msgspec.structs.replace(state, environment=shown))
        return
    typer.echo(_headline(state))
    for notice in state.notices:
        typer.echo(f"! {notice}")
    context.show([_row(entry) for entry in state.processes], as_json=False, empty="")


def logs(
    names: Annotated[list[str] | None, typer.Argument(help="Processes; all by default.")] = None,
    last: Annotated[int, typer.Option("-n", min=0, help="Begin with this many lines.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Print what processes wrote."""
    layout = context.layout(state_dir)
    there = sorted(path.stem for path in layout.logs.glob("*.log"))
    for name in names or ():
        if name not in there:
            raise StackError(f"no log of {name}; there are {', '.join(there) or 'none'}")
    chosen = list(names or there)
    width = max(map(len, chosen), default=0)
    places = {name: _print_tail(layout.log(name), name, last, width) for name in chosen}
    try:
        while follow:
            for name, place in places.items():
                places[name] = _print_new(layout.log(name), name, place, width)
            Event().wait(LOOK_SECONDS)
    except KeyboardInterrupt:
        return


def _print_tail(log: Path, name: str, last: int, width: int) -> int:
    data = log.read_bytes()
    for text in data.decode("utf-8", "replace").splitlines()[-last:] if last else []:
        typer.echo(f"{name:<{width}}  {text}")
    return len(data)


def _print_new(log: Path, name: str, place: int, width: int) -> int:
    """Print whole lines after `place`; a log that became shorter was rotated."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(place if log.stat().st_size >= place else 0)
        start = file.tell()
        whole, newline, _ = file.read().rpartition(b"\n")
    for text in whole.decode("utf-8", "replace").splitlines():
        typer.echo(f"{name:<{width}}  {text}")
    return start + len(whole) + len(newline)


def _headline(state: StackState) -> str:
    minutes = (wall_us() - state.started_wall_us) / 60e6
    return (
        f"{state.phase} for {minutes:.0f} min as process {state.pid}; "
        f"Kafka at {Settings.from_environment(state.environment).bootstrap_servers}; "
        f"{state.resident_bytes / 2**30:.2f} GiB resident, peak "
        f"{state.resident_peak_bytes / 2**30:.2f}"
    )


def _row(entry: ProcessState) -> dict[str, object]:
    alive = entry.pid is not None and process.created(entry.pid) is not None
    return {
        "name": entry.name,
        "state": entry.phase,
        "pid": entry.pid if alive else None,
        "port": entry.port,
        "restarts": entry.restarts,
        "detail": entry.detail,
        "last failure": entry.last_failure,
    }


def _public(value: str) -> str:
    """Return a setting without the password that a connection string may hold."""
    return re.sub(r"(?<=://)([^:@/]*):[^@/]*@", r"\1@", value)
