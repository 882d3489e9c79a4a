"""What every command shares: settings, the cluster to talk to, how people write times, tables.

Expected failures become one line on standard error and exit status 1, in `main`.
"""

import getpass
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.state import StackState, read

StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="The stack's folder.", show_default=".gpuloop"),
]
BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        help="Kafka to talk to, host:port,...; else that of the stack in this folder.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
By = Annotated[str, typer.Option("--by", help="Who says so.", show_default="your user name")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the record.")]

WIDE: Final = 240
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def user() -> str:
    """Return the name of the person at the keyboard, as the system knows it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def seconds(text: str) -> float:
    """Return a duration written like 90, 90s, 5m or 1h30m in seconds."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s, 5m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def layout(state_dir: Path | None) -> Layout:
    """Return the stack's folder: the option, else the environment, else `.gpuloop` here."""
    chosen = state_dir if state_dir is not None else Settings.from_environment().state_dir
    return Layout(chosen.resolve())


def running(where: Layout) -> StackState | None:
    """Return what the stack says of itself while its supervisor lives, else None."""
    return read(where.state) if where.owner() is not None else None


def settings(state_dir: Path | None = None, bootstrap_servers: str | None = None) -> Settings:
    """Return settings that reach the cluster meant.

    That is the one named, else the one in the environment, else that of the running stack.
    """
    where, found = layout(state_dir), Settings.from_environment()
    chosen = bootstrap_servers
    if chosen is None and "GPULOOP_BOOTSTRAP_SERVERS" in found.environment():
        chosen = found.bootstrap_servers
    if chosen is not None:  # The folder may then be one that is not ours to look into.
        found = msgspec.structs.replace(found, bootstrap_servers=chosen)
    elif (state := running(where)) is not None:
        found = Settings.from_environment(state.environment)
    else:
        raise StackError(
            f"no stack is up in {where.root}: start one with `gpuloop up`, "
            "or name a cluster with --bootstrap-servers"
        )
    return msgspec.structs.replace(found, state_dir=where.root)


def broker(chosen: Settings) -> AbstractContextManager[KafkaBroker]:
    """Return the settings' cluster, closed at the end of the block."""
    return closing(
        KafkaBroker(
            chosen.bootstrap_servers, prefix=chosen.topic_prefix, config=chosen.kafka_config
        )
    )


def show(rows: Sequence[Mapping[str, object]], *, as_json: bool, empty: str) -> None:
    """Print rows of one shape as a table, or as a JSON array."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(rows[0]):
        numeric = all(isinstance(row[name], int | float) for row in rows)
        # The first column names its row, for other commands too: it is never cut.
        least = None if place else max(len(str(row[name])) for row in rows)
        justify: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(name.replace("_", " "), justify=justify, min_width=least)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    typer.echo(json.dumps(msgspec.to_builtins(value), indent=2))
