"""One stage played in several processes, each with some of the entrants.

Entrants never meet: each lives in copies of the worlds, and is late at the same ticks, whoever else
plays. So they come to the same apart as together, to the last digit, and two cores take half the
time. Worlds and controllers hold what does not travel between processes: each makes its own.
"""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import monotonic
from typing import Final

from benchmarks.controlling.play import Entrant, Played, Stage, play

from gpuloop.loop.children import end_with

PROCESSES: Final = 2

Cast = Callable[[], tuple[Stage, Sequence[Entrant]]]
"""Makes a stage and all entrants anew; it travels to another process, what it makes does not."""


def play_apart(cast: Cast, *, processes: int = PROCESSES) -> Played:
    """Let entrants live through a stage as `play` does, some of them in each process.

    Each day that has passed is told on stderr. The processes end with this one.

    Raises:
        SlotsFull: a pool had more jobs at once than the harness keeps.

    """
    if processes == 1:
        return _share(cast, 0, 1)
    with workers(processes) as executor:
        shares = [executor.submit(_share, cast, share, processes) for share in range(processes)]
        return _joined([one.result() for one in shares])


def workers(processes: int) -> ProcessPoolExecutor:
    """Return processes that end with this one, whatever ends it."""
    return ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=end_with,
        initargs=(os.getpid(),),
    )


def say(what: str, share: float) -> None:
    """Tell on stderr how far a long piece of work has come."""
    print(f"{share:4.0%} {what}", file=sys.stderr, flush=True)


def _share(cast: Cast, share: int, processes: int) -> Played:
    """Play every so manyth entrant; the first share speaks for all of them."""
    stage, entrants = cast()
    began = monotonic()

    def tell(day: int) -> None:
        if share == 0:
            say(f"day {day} of {stage.days}, {monotonic() - began:.0f} s", day / stage.days)

    return play(stage, entrants[share::processes], tell)


def _joined(shares: Sequence[Played]) -> Played:
    """Return what all came to, in the order of the entrants."""
    count = sum(len(share.scores) for share in shares)
    places = [(place % len(shares), place // len(shares)) for place in range(count)]
    return Played(
        scores=tuple(shares[share].scores[place] for share, place in places),
        lost_node_hours=tuple(shares[share].lost_node_hours[place] for share, place in places),
        differing=tuple(shares[share].differing[place] for share, place in places),
    )
