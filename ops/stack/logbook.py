"""The supervisor's own log: what it starts, sees ready, restarts and stops, and stray output."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gpuloop.loop.services.process import JsonLines
from gpuloop.loop.services.repeats import Repeats
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.supervisor import SUPERVISOR


@contextmanager
def supervisor_log(layout: Layout) -> Iterator[None]:
    """Send log records, and what libraries write to standard error, to the supervisor's log.

    The view owns the terminal meanwhile.
    """
    layout.create()
    sys.stderr.flush()
    kept = os.dup(2)
    path = layout.log(SUPERVISOR)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(target, 2)
    os.close(target)
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(JsonLines(SUPERVISOR))
    handler.addFilter(Repeats())
    root = logging.getLogger()
    ours = logging.getLogger("gpuloop.ops")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(level)
        root.removeHandler(handler)
        handler.close()
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
