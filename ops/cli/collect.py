"""`gpuloop collect`: this machine's GPUs, or what a file names, onto the telemetry topics."""

import sys
from pathlib import Path
from threading import Event
from typing import Annotated

import msgspec
import typer

from gpuloop.loop.settings import Settings
from gpuloop.ops.stack.errors import StackError


class Unheard:
    """Hears what a look at a machine could not believe, and says so on standard error."""

    def said(self, outputs: object) -> None:
        """Take nothing: one look has nobody to tell."""

    def failed(self, source: str, reason: str, count: int = 1) -> None:
        """Say what was left out."""
        typer.echo(f"{source}: {count} x {reason}", err=True)


def collect(
    once: Annotated[
        bool, typer.Option("--once", help="Print one sample of this machine as JSON, and end.")
    ] = False,
    sources: Annotated[
        Path | None,
        typer.Option(
            "--sources",
            help="JSON file of exporters and servers to ask instead; docs/operating.md shows one.",
            show_default="GPULOOP_COLLECT",
        ),
    ] = None,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(
            "--bootstrap-servers",
            help="Kafka to write to, host:port,...",
            show_default="GPULOOP_BOOTSTRAP_SERVERS, else 127.0.0.1:9092",
        ),
    ] = None,
) -> None:
    """Observe real GPUs: this machine's by NVML, or many through exporters and Prometheus.

    The machine is told as GPULOOP_NODE (else its host name) in GPULOOP_POOL
    and GPULOOP_RACK, every GPULOOP_COLLECT_SECONDS. A fleet that runs on a
    twin's clock takes none: GPULOOP_FLEET names another.
    """
    from gpuloop.loop.services import collector

    settings = Settings.from_environment()
    if sources is not None:
        settings = msgspec.structs.replace(settings, collect=sources)
    if bootstrap_servers is not None:
        settings = msgspec.structs.replace(settings, bootstrap_servers=bootstrap_servers)
    if not once:
        collector.main(settings)
        return
    if settings.collect is not None:
        raise StackError("--once looks at this machine only; leave the file of sources out")
    machine = collector.this_machine(settings, boot=0)
    machine.open()
    try:
        # The second look has what is counted between two: traffic, profiling.
        machine.sample(Unheard())
        Event().wait(settings.collect_seconds)
        outputs = machine.sample(Unheard(), detail=True)
    finally:
        machine.close()
    for output in outputs:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(output.message)).decode() + "\n")
