"""What a person must be told of a run, in plain sentences; the live view and `status` show them.

Pure: the tally, the supervisor's units and the wall time are given.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from gpuloop.ops.stack.tally import Tally
from gpuloop.ops.stack.unit import Watched
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import SECOND_US, calendar_time

STALE_SECONDS: Final = 20.0
STALE_TICKS: Final = 4
"""A state is not fresh when it is older than both: slow worlds say something rarely."""

ROOM_BYTES: Final = 256 * 2**20
"""Enough for some minutes; with less it is said while it can still be written down."""


def stale_seconds(speed: float) -> float:
    """Return the age in wall seconds from which on state is not fresh."""
    return max(STALE_SECONDS, STALE_TICKS * CONTROL_TICK_US / SECOND_US / speed)


def of_units(units: Iterable[Watched]) -> list[str]:
    """Return what is wrong with processes."""
    return [trouble for watched in units if (trouble := watched.trouble())]


def of_state(tally: Tally, *, now_us: int, ready_us: int, speed: float) -> str:
    """Return that state is not fresh, if it is not; the stack was ready at `ready_us`.

    Times are wall microseconds.
    """
    age = (now_us - max(tally.fresh_wall_us, ready_us)) / SECOND_US
    if age <= stale_seconds(speed):
        return ""
    return f"no fresh state for {age:.0f} s: decisions hold what stands until observe catches up"


def of_room(root: Path, free_bytes: int) -> list[str]:
    """Return that the disk fills up, if it does."""
    if free_bytes >= ROOM_BYTES:
        return []
    free_mib = free_bytes // 2**20
    return [f"{free_mib} MiB of room in {root}: Kafka ends when there is none; make some"]


def of_people(tally: Tally) -> list[str]:
    """Return what people hold the loop to."""
    said = []
    if tally.killed_by:
        said.append(
            f"kill switch, by {tally.killed_by}: nothing new starts; `gpuloop control clear`"
        )
    for target, until_us in sorted(tally.frozen.items()):
        if until_us <= tally.fleet_us:
            continue
        until = calendar_time(until_us)
        shown = "for good" if until is None else f"until {until:%Y-%m-%d %H:%M} fleet time"
        said.append(f"{'every pool' if target == '*' else target} is frozen {shown}")
    return said
