"""`gpuloop audit`: whether the record of what happened is whole."""

from typing import Final

import typer

from gpuloop.ops.cli.context import AsJson, BootstrapServers, StateDir, print_json, settings
from gpuloop.ops.stack.errors import StackError

app: Final = typer.Typer(help="The hash-chained record of what happened.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Work with the audit topic."""


@app.command()
def verify(
    as_json: AsJson = False, state_dir: StateDir = None, bootstrap_servers: BootstrapServers = None
) -> None:
    """Verify every chain and checkpoint; exit 1 and name the first bad record if there is one."""
    from gpuloop.loop.evaluate.audit import AuditError, verify_topic
    from gpuloop.loop.evaluate.keys import KeyFileError
    from gpuloop.loop.evaluate.verify import MAX_GAPS

    try:
        found = verify_topic(settings(state_dir, bootstrap_servers))
    except (AuditError, KeyFileError) as error:
        raise StackError(str(error)) from None
    if as_json:
        print_json(found)
    elif found.ok:
        typer.echo(
            f"verified {found.records} records in {found.chains} chains, "
            f"{found.checkpoints} signed checkpoints, {found.anchors} anchors; "
            f"{found.unsigned_records} records since the last checkpoint"
        )
    else:
        typer.echo(f"the first bad record, after {found.records} good ones: {found.first_bad}")
    if found.ok and found.anchors < found.checkpoints and not as_json:
        typer.echo(
            f"{found.checkpoints - found.anchors} checkpoints have no anchor, as when the file of "
            "anchors was cut: what only they cover the holder of the key could have written anew"
        )
    if found.missed and not as_json:
        more = "" if len(found.gaps) < MAX_GAPS else " ..."
        typer.echo(
            f"{found.missed} records had expired before they were audited: "
            + ", ".join(map(str, found.gaps))
            + more
        )
    if not found.ok:
        raise typer.Exit(1)
