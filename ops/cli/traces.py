"""`gpuloop traces`: the public traces that the twin can replay."""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from gpuloop.loop.settings import Settings
from gpuloop.ops.cli.context import AsJson, show
from gpuloop.ops.stack.errors import StackError

app: Final = typer.Typer(
    help="Public traces: source, licence, what is at hand; lists them unless told otherwise.",
    invoke_without_command=True,
)

Folder = Annotated[
    Path | None, typer.Option("--folder", help="Where traces lie.", show_default="GPULOOP_TRACES")
]


@app.callback()
def default(context: typer.Context) -> None:
    """List the known traces when nothing else is asked."""
    if context.invoked_subcommand is None:
        list_traces()


@app.command("list")
def list_traces(folder: Folder = None, as_json: AsJson = False) -> None:
    """List the known traces with source and licence, and what of each is at hand."""
    from gpuloop.twin.traces import list_traces as known

    where = folder or Settings.from_environment().traces
    if where is not None and not where.is_dir():
        raise StackError(f"there is no folder of traces at {where}")
    rows = [
        {
            "name": status.trace.name,
            "at_hand": "yes" if status.complete else "partly" if status.at_hand else "no",
            "download": "yes" if status.trace.files else "no",
            "licence": status.trace.licence,
            "about": status.trace.about,
            "source": status.trace.source,
        }
        for status in known(where)
    ]
    show(rows, as_json=as_json, empty="no trace is known")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A trace, see `gpuloop traces list`.")],
    folder: Folder = None,
) -> None:
    """Download a trace where the network allows; resumes, and checks the SHA-256."""
    from gpuloop.twin.traces import TraceError, get_trace

    target = folder or Settings.from_environment().traces
    if target is None:
        raise StackError("say where to: --folder, or GPULOOP_TRACES")
    try:
        status = get_trace(name, target, _progress)
    except TraceError as error:
        raise StackError(str(error)) from None
    typer.echo(f"{name}: {status.size:,} bytes under {target}")


def _progress(name: str, done: int, size: int) -> None:
    """Show how far a file has come, on one line of a terminal and not at all elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done >= size else ""
        print(f"\r{name}  {done / 2**20:.1f} of {size / 2**20:.1f} MiB", end=end, file=sys.stderr)
