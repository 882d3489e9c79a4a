"""`gpuloop scale`: more or fewer workers of a service, while the stack runs."""

from threading import Event
from time import monotonic
from typing import Annotated, Final

import typer

from gpuloop.ops.cli import context
from gpuloop.ops.cli.context import StateDir
from gpuloop.ops.stack import scale as scaling
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.state import StackState

READY_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.2


def scale(
    workers: Annotated[list[str], typer.Argument(help="Such as observe=3.", metavar="NAME=N...")],
    state_dir: StateDir = None,
) -> None:
    """Run so many workers of a service; they share its partitions. Returns when all work."""
    wanted = dict(scaling.parse(text) for text in workers)
    layout = context.layout(state_dir)
    state = context.running(layout)
    if state is None:
        raise StackError(f"no stack is up in {layout.root}; start one with `gpuloop up`")
    for name in wanted:
        if all(process.name != name for process in state.processes):
            raise StackError(f"the stack in {layout.root} runs without {name}")
    scaling.ask(layout, wanted)
    deadline = monotonic() + READY_SECONDS
    while monotonic() < deadline:
        state = context.running(layout)
        if state is None:
            raise StackError("the stack was stopped meanwhile")
        if all(_working(state, name) == count for name, count in wanted.items()):
            for name, count in wanted.items():
                typer.echo(f"{name}: {count} worker{'' if count == 1 else 's'}")
            return
        Event().wait(LOOK_SECONDS)
    raise StackError(f"not so many worked within {READY_SECONDS:.0f} s; see `gpuloop status`")


def _working(state: StackState, name: str) -> int | None:
    """Return how many workers of a service there are, None while one is not ready."""
    names = {scaling.worker(name, number + 1) for number in range(scaling.MAX_WORKERS)}
    found = [process.phase for process in state.processes if process.name in names]
    return len(found) if set(found) <= {"ready"} else None
