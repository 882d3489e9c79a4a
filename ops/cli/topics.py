"""`gpuloop topics`: the catalogue beside what a cluster has."""

from typing import Annotated, Final

import msgspec
import typer

from gpuloop.loop.settings import Settings
from gpuloop.ops.cli.context import AsJson, BootstrapServers, StateDir, settings, show
from gpuloop.ops.stack.topics import Admin, wanted
from gpuloop.schemas.catalogue import CATALOGUE, DAY_MS

app: Final = typer.Typer(help="Topics: what is declared, what a cluster has.", no_args_is_help=True)

Prefix = Annotated[
    str | None, typer.Option("--prefix", help="Put before every topic's name.", show_default="none")
]


def _admin(chosen: Settings) -> Admin:
    return Admin(chosen.bootstrap_servers, chosen.kafka_config)


def _chosen(prefix: str | None, bootstrap_servers: str | None, state_dir: StateDir) -> Settings:
    found = settings(state_dir, bootstrap_servers)
    return found if prefix is None else msgspec.structs.replace(found, topic_prefix=prefix)


@app.command("list")
def list_topics(as_json: AsJson = False) -> None:
    """List the catalogue: every topic, its key, partitions, retention, writers and readers."""
    rows = [
        {
            "topic": topic.name,
            "key": topic.key,
            "partitions": topic.partitions,
            "kept": "compacted"
            if topic.compacted
            else "for ever"
            if topic.retention_ms < 0
            else f"{topic.retention_ms / DAY_MS:g} d",
            "written_by": ", ".join(topic.producers),
            "read_by": ", ".join(topic.consumers),
        }
        for topic in CATALOGUE.values()
    ]
    show(rows, as_json=as_json, empty="the catalogue is empty")


@app.command()
def diff(
    prefix: Prefix = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Show where a cluster departs from the catalogue; exit 1 if it does."""
    chosen = _chosen(prefix, bootstrap_servers, state_dir)
    found = _admin(chosen).diff(wanted(chosen.topic_prefix))
    show(
        [{"topic": d.topic, "what": d.what, "wanted": d.wanted, "found": d.found} for d in found],
        as_json=as_json,
        empty=f"{chosen.bootstrap_servers} has every topic as declared",
    )
    if found:
        raise typer.Exit(1)


@app.command()
def apply(
    prefix: Prefix = None,
    replication_factor: Annotated[
        int, typer.Option(help="Copies of each partition; -1 leaves it to the cluster.")
    ] = -1,
    state_dir: StateDir = None,
    bootstrap_servers: BootstrapServers = None,
) -> None:
    """Create the topics that a cluster lacks and set what differs; delete nothing."""
    chosen = _chosen(prefix, bootstrap_servers, state_dir)
    topics = wanted(chosen.topic_prefix)
    left = _admin(chosen).apply(topics, replication_factor=replication_factor)
    typer.echo(f"{len(topics)} topics are in place on {chosen.bootstrap_servers}")
    for difference in left:
        typer.echo(
            f"{difference.topic} has {difference.found} partitions, declared are "
            f"{difference.wanted}: left as it is, because keys would move"
        )
    if left:
        raise typer.Exit(1)
