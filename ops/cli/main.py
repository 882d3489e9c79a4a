"""The `gpuloop` command: puts the groups together and turns expected failures into one line."""

import logging
import re
import sys
from typing import Final

import msgspec
import typer

# Typer's own copy of click, which nothing public of it names.
from typer._click.exceptions import NoArgsIsHelpError, UsageError

from gpuloop.loop.settings import SettingsError
from gpuloop.ops.cli import (
    access,
    audit,
    collect,
    control,
    features,
    learning,
    recording,
    scale,
    schemas,
    stack,
    tail,
    topics,
    traces,
    train,
)
from gpuloop.ops.stack.errors import StackError
from gpuloop.schemas.errors import Explained

app: Final = typer.Typer(
    name="gpuloop",
    help="Run a GPU fleet by itself: observe, reason, act, evaluate, on Kafka.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_PLAIN: Final = {
    r"Value error, ": "",
    r"Input should be a valid (number|integer), unable.*": r"not a \1",
    r"not a integer": "not a whole number",
    r"Input should be a valid datetime or date.*": "not a date like 2017-10-16",
    r"Input should be ": "must be ",
}
"""What the parser of options says, in words that tell nothing of the library it asks."""

RUN: Final = "Run"
WATCH: Final = "Watch and judge"
STEER: Final = "Steer"

app.command(rich_help_panel=RUN)(stack.up)
app.command(rich_help_panel=RUN)(stack.down)
app.command(rich_help_panel=RUN)(stack.status)
app.command(rich_help_panel=RUN)(stack.logs)
app.command(rich_help_panel=RUN)(scale.scale)
app.command(rich_help_panel=RUN)(collect.collect)
app.add_typer(topics.app, name="topics", rich_help_panel=RUN)
app.add_typer(access.app, name="access", rich_help_panel=RUN)
app.add_typer(schemas.app, name="schemas", rich_help_panel=RUN)
app.add_typer(traces.app, name="traces", rich_help_panel=RUN)
app.command(rich_help_panel=WATCH)(tail.tail)
app.add_typer(audit.app, name="audit", rich_help_panel=WATCH)
app.add_typer(features.app, name="features", rich_help_panel=WATCH)
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
        ended = app(standalone_mode=False)
    except UsageError as error:
        return _misused(error)
    except (StackError, SettingsError, Explained, msgspec.ValidationError, OSError) as error:
        print(f"gpuloop: {_told(error)}", file=sys.stderr)
        return 1
    return ended if isinstance(ended, int) else 0


def _misused(error: UsageError) -> int:
    """Say in one line what is wrong with a command as it was typed."""
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return 2
    said = " ".join(error.format_message().split())
    for pattern, words in _PLAIN.items():
        said = re.sub(pattern, words, said)
    asked = error.ctx.command_path if error.ctx is not None else "gpuloop"
    print(f"gpuloop: {said.rstrip('.')}; see `{asked} --help`", file=sys.stderr)
    return 2


def _told(error: Exception) -> str:
    """Return an error in one line for a person: which file, and what about it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
