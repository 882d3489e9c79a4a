"""The `gpuloop` command: puts the groups together and turns expected failures into one line."""

import logging
import sys
from typing import Final

import msgspec
import typer

from gpuloop.loop.settings import SettingsError
from gpuloop.loop.shells.broker import BrokerError
from gpuloop.ops.cli import (
    access,
    audit,
    control,
    learning,
    recording,
    schemas,
    stack,
    tail,
    topics,
    traces,
    train,
)
from gpuloop.ops.stack.errors import StackError

app: Final = typer.Typer(
    name="gpuloop",
    help="Run a GPU fleet by itself: observe, reason, act, evaluate, on Kafka.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RUN: Final = "Run"
WATCH: Final = "Watch and judge"
STEER: Final = "Steer"

app.command(rich_help_panel=RUN)(stack.up)
app.command(rich_help_panel=RUN)(stack.down)
app.command(rich_help_panel=RUN)(stack.status)
app.command(rich_help_panel=RUN)(stack.logs)
app.add_typer(topics.app, name="topics", rich_help_panel=RUN)
app.add_typer(access.app, name="access", rich_help_panel=RUN)
app.add_typer(schemas.app, name="schemas", rich_help_panel=RUN)
app.add_typer(traces.app, name="traces", rich_help_panel=RUN)
app.command(rich_help_panel=WATCH)(tail.tail)
app.add_typer(audit.app, name="audit", rich_help_panel=WATCH)
app.command(rich_help_panel=WATCH)(recording.record)
app.command(rich_help_panel=WATCH)(recording.replay)
app.add_typer(control.app, name="control", rich_help_panel=STEER)
app.command(rich_help_panel=STEER)(train.train)
app.add_typer(learning.app, name="policy", rich_help_panel=STEER)


def main() -> int:
    """Run the command line; return the exit status."""
    # What it would say, line after line, is said once by the exception that ends the command.
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL)
    try:
        app()
    except (StackError, SettingsError, BrokerError, msgspec.ValidationError, OSError) as error:
        print(f"gpuloop: {_told(error)}", file=sys.stderr)
        return 1
    return 0


def _told(error: Exception) -> str:
    """Return an error in one line for a person: which file, and what about it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
