"""Progress of work that takes minutes, on standard error: a bar on a terminal, lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS: Final = 30.0

Tell = Callable[[str, float], None]
"""Told what is going on and the share of it that is done."""


class Lines:
    """Prints what is going on when it begins and then once in a while, for logs and pipes."""

    def __init__(self, *, every_seconds: float, clock: Callable[[], float]) -> None:
        self._every: Final = every_seconds
        self._clock: Final = clock
        self._due = clock()

    def __call__(self, what: str, share: float) -> None:
        """Print a line, unless the last one is too recent."""
        if self._clock() >= self._due:
            self._due = self._clock() + self._every
            print(f"{what}, {share:.0%} done", file=sys.stderr, flush=True)


@contextmanager
def shown() -> Iterator[Tell]:
    """Show how far work has come for as long as it lasts."""
    if not sys.stderr.isatty():
        yield Lines(every_seconds=LINE_SECONDS, clock=monotonic)
        return
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def tell(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        yield tell
