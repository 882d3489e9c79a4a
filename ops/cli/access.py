"""`gpuloop access`: identities for a secured cluster, and the rights that each of them has."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from gpuloop.ops.cli.context import AsJson, BootstrapServers, StateDir, settings, show
from gpuloop.ops.stack import identities
from gpuloop.ops.stack.access import ADMIN, CLIENT, PRINCIPALS, Access, rights

app: Final = typer.Typer(
    help="A secured cluster: who may sign in, and what each may do.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(help="The folder of identities.")]
Prefix = Annotated[str, typer.Option("--prefix", help="Put before every topic's name.")]


@app.command("list")
def list_rights(prefix: Prefix = "", as_json: AsJson = False) -> None:
    """List what each principal may read and write; what is not listed is denied."""
    rows = []
    for name in PRINCIPALS:
        own = [right for right in rights(prefix) if right.principal == name]
        topics = [right for right in own if right.kind == "topic"]
        rows.append(
            {
                "principal": name,
                "writes": ", ".join(one.name for one in topics if one.operation == "write"),
                "reads": ", ".join(one.name for one in topics if one.operation == "read"),
                "groups": ", ".join(one.name for one in own if one.kind == "group"),
            }
        )
    show(rows, as_json=as_json, empty="nobody may do anything")


@app.command()
def make(
    folder: Folder,
    host: Annotated[
        list[str], typer.Option(help="Name or address of the broker as clients know it; repeat.")
    ],
) -> None:
    """Make certificates and passwords, one folder for each principal; keep those that will do."""
    made = identities.make(folder, host, datetime.now(UTC))
    typer.echo(f"{len(PRINCIPALS)} identities {'made in' if made else 'are in'} {folder}")


@app.command()
def apply(
    folder: Folder,
    prefix: Annotated[
        str | None,
        typer.Option("--prefix", help="Put before every topic's name.", show_default="none"),
    ] = None,
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Let the principals of a folder sign in to a cluster, each with its rights and no more."""
    chosen = settings(state_dir, bootstrap_servers)
    passwords = identities.passwords(folder)
    cluster = Access(chosen.bootstrap_servers, folder / ADMIN / CLIENT)
    cluster.admit(passwords)
    wanted = rights(chosen.topic_prefix if prefix is None else prefix)
    added, taken = cluster.grant(wanted)
    typer.echo(
        f"{len(passwords)} principals may sign in; {len(wanted)} rights stand, "
        f"{added} added, {taken} taken away"
    )
