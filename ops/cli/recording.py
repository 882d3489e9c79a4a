"""`gpuloop record` and `gpuloop replay`: topics to a folder, and through the same code again."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Final

import typer

from gpuloop.loop.settings import PREFIX, Settings
from gpuloop.loop.shells.broker import BrokerError, PositionLost
from gpuloop.ops.cli.context import (
    AsJson,
    BootstrapServers,
    StateDir,
    broker,
    print_json,
    settings,
)
from gpuloop.ops.cli.progress import shown
from gpuloop.ops.stack.errors import StackError

JOURNALED: Final = ("decider", "evaluator", "forecaster", "causes")
_PLACES: Final = frozenset(
    {
        "bootstrap_servers",
        "kafka_config",
        "topic_prefix",
        "state_dir",
        "http_host",
        "http_port",
        "traces",
        "twin_config",
        "postgres_dsn",
        "clickhouse_url",
        "audit_anchors",
    }
)
"""Settings that say where things are, not what a component does; some hold passwords."""


def kept(chosen: Settings) -> dict[str, str]:
    """Return the settings that a replay needs to build the same components."""
    named = {
        name.removeprefix(PREFIX).lower(): value for name, value in chosen.environment().items()
    }
    return {name: value for name, value in named.items() if name not in _PLACES}


def record(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    topic: Annotated[
        list[str] | None, typer.Option(help="Only these; repeat.", show_default="all that matter")
    ] = None,
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Write topics to a folder, whole and with their offsets, for `gpuloop replay`."""
    from gpuloop.loop.replay.record import record as write

    chosen = settings(state_dir, bootstrap_servers)
    with broker(chosen) as log, shown() as progress:
        try:
            manifest = write(
                log,
                folder,
                fleet=chosen.fleet,
                settings=kept(chosen),
                topics=topic or None,
                progress=progress,
            )
        except FileExistsError as error:
            why = f"cannot record to {folder}: {error.strerror}" if error.strerror else str(error)
            raise StackError(why) from None
        except OSError as error:
            raise StackError(f"cannot record to {folder}: {error.strerror}") from None
        except BrokerError as error:
            raise StackError(f"cannot record: {error}") from None
    records = sum(part.records for part in manifest.partitions)
    typer.echo(f"{records:,} records of {len(manifest.partitions)} partitions in {folder}")


def replay(
    folder: Annotated[Path, typer.Argument(help="A folder that `gpuloop record` wrote.")],
    component: Annotated[
        list[str] | None, typer.Option(help="Only these; repeat.", show_default="the decider")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recording through the same components and compare every output byte for byte.

    Proves that what was recorded follows from its inputs. It does not estimate what another
    policy would have been worth.
    """
    from gpuloop.loop.replay.player import ReplayReport
    from gpuloop.loop.replay.player import replay as follow
    from gpuloop.loop.replay.recording import Recording, RecordingError
    from gpuloop.loop.shells.journal import JournalBroken

    found: list[ReplayReport] = []
    try:
        recording = Recording(folder)
        own = {PREFIX + k.upper(): v for k, v in recording.manifest.settings.items()}
        own[PREFIX + "FLEET"] = recording.manifest.fleet
        settings = Settings.from_environment(own)
        for name in component or ["decider"]:
            if name not in JOURNALED:
                raise StackError(f"{name} keeps no journal; those that do: {', '.join(JOURNALED)}")
            service = import_module(f"gpuloop.loop.services.{name}")
            found.append(follow(recording, service.build(settings)))
    except (RecordingError, PositionLost, JournalBroken, OSError) as error:
        raise StackError(f"cannot replay {folder}: {error}") from None
    if as_json:
        print_json(found)
    else:
        for report in found:
            typer.echo(
                f"{report.component}: {report.cuts} cuts of {report.records:,} records gave "
                f"{report.outputs:,} outputs: {report.equal:,} identical, {report.different} "
                f"different, {report.absent} absent, {report.unconfirmed} not yet written"
            )
            if report.cuts == 0:
                typer.echo("  nothing followed the snapshot, so nothing is proven")
            if report.first_difference is not None:
                typer.echo(f"  first difference: {report.first_difference}")
    if not all(report.identical for report in found):
        raise typer.Exit(1)
