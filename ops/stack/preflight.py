"""Refuses what cannot run, before anything is written or started.

A person learns within a second, in one line, what a crash loop would have said in a log: a folder
without traces, a start outside the trace, a port that is taken, a world that was begun otherwise.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gpuloop.loop.services.twin import twin_config
from gpuloop.loop.settings import Settings
from gpuloop.ops.stack import local, world
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.local import Options
from gpuloop.ops.stack.ports import requested
from gpuloop.schemas.units import SECOND_US, calendar_time
from gpuloop.twin.traces import list_traces
from gpuloop.twin.workload import Philly, Workload, build_workload

EARLIEST: Final = datetime(1971, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2999, 12, 31, tzinfo=UTC)
"""Within this a generated workload may begin; prices and calendars hold there."""


def check(options: Options, *, fresh: bool) -> Settings:
    """Return the settings that a stack with these options runs with; write nothing.

    Raises:
        StackError: it is already up, or could not run; the message says what to change.

    """
    layout, settings = Layout(options.root), world.whole_paths(options.settings)
    layout.refuse_strangers()
    layout.refuse_if_up()
    services = {service.name for service in local.chosen(options)}
    if options.kafka_port is not None and not options.existing_cluster:
        requested(options.kafka_port, purpose="Kafka")
    if "twin" not in services:
        return settings
    if settings.traces is not None:
        refuse_no_traces(settings.traces)
    if not fresh:
        settings = world.resume(layout.world, settings)
        if settings.traces is not None:
            refuse_no_traces(settings.traces)
    workload = _workload(settings)
    if not fresh:
        world.refuse_another(layout.root, settings, workload)
    return settings


def refuse_no_traces(folder: Path) -> None:
    """Refuse a folder that cannot be meant: the twin would run something else in silence."""
    if not folder.is_dir():
        raise StackError(f"there is no folder of traces at {folder}")
    if not any(status.at_hand for status in list_traces(folder)):
        raise StackError(
            f"no known trace lies in {folder}; `gpuloop traces list` shows what is known, "
            "`gpuloop traces get philly` brings one"
        )


def _workload(settings: Settings) -> Workload:
    """Return the workload that the twin will run, after a look at where it is to begin."""
    config = twin_config(settings)
    try:
        found = build_workload(
            settings.traces,
            settings.workload or "auto",
            start_us=config.start_us,
            seed=config.seed,
            shape=config.shape,
        )
    except (ValueError, OSError) as error:
        raise StackError(str(error)) from None
    _refuse_start(settings, found)
    return found


def _refuse_start(settings: Settings, workload: Workload) -> None:
    given = "GPULOOP_START" in settings.environment()
    if isinstance(workload, Philly):
        if given and workload.start_us != settings.start_us:
            first, last = (calendar_time(at) for at in workload.span_us)
            raise StackError(
                f"--start {settings.start:%Y-%m-%d} is outside the trace, which has jobs from "
                f"{first:%Y-%m-%dT%H:%M:%S} to {last:%Y-%m-%dT%H:%M:%S}"
            )
        return
    early, late = (int(at.timestamp()) * SECOND_US for at in (EARLIEST, LATEST))
    if not early <= settings.start_us <= late:
        raise StackError(
            f"--start {settings.start:%Y-%m-%d} is not between {EARLIEST:%Y-%m-%d} and "
            f"{LATEST:%Y-%m-%d}, where a generated workload may begin"
        )
