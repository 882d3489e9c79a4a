"""`gpuloop schemas`: the contracts as JSON Schema and AsyncAPI."""

from pathlib import Path
from typing import Annotated, Final

import typer

from gpuloop.ops.cli.context import AsJson, show
from gpuloop.ops.stack.errors import StackError
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.messages import dataschema

app: Final = typer.Typer(help="Contracts of all messages.", no_args_is_help=True)


@app.command("list")
def list_schemas(as_json: AsJson = False) -> None:
    """List every message: its schema, where it stands, whether unknown fields are refused."""
    places: dict[str, list[str]] = {}
    strict: dict[str, bool] = {}
    for topic in CATALOGUE.values():
        for kind in topic.messages:
            places.setdefault(dataschema(kind), []).append(topic.name)
            strict[dataschema(kind)] = bool(kind.__struct_config__.forbid_unknown_fields)
    show(
        [
            {
                "schema": name,
                "topics": ", ".join(topics),
                "unknown_fields": "refused" if strict[name] else "tolerated",
            }
            for name, topics in places.items()
        ],
        as_json=as_json,
        empty="there are no messages",
    )


@app.command()
def export(
    folder: Annotated[
        Path | None, typer.Option("--to", help="Folder.", show_default="schemas/generated")
    ] = None,
    allow_breaking: Annotated[
        bool, typer.Option("--allow-breaking", help="Even where an old reader would fail.")
    ] = False,
) -> None:
    """Write JSON Schemas and an AsyncAPI document; refuse a change that breaks old readers."""
    from gpuloop.schemas.export import GENERATED, BreakingChange
    from gpuloop.schemas.export import export as write

    try:
        changed = write(folder or GENERATED, allow_breaking=allow_breaking)
    except BreakingChange as error:
        raise StackError(str(error)) from None
    typer.echo(f"{len(changed)} files changed under {folder or GENERATED}")
