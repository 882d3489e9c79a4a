"""Runs the deep tier under a deadline, in a child process that can be killed at any moment.

DoWhy cannot be interrupted, so it gets a process of its own, spawned once and spawned again after
it had to be killed. Whoever asks gets an answer within the
deadline or None; a child that dies is a None as well.
"""

import logging
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Final, Self

import msgspec

from gpuloop.loop.children import end_with
from gpuloop.loop.shells.clock import monotonic_us
from gpuloop.reasoning.analysis import Analysis, Attribution
from gpuloop.schemas.units import SECOND_US

START_SECONDS: Final = 120.0
"""Imports take seconds when idle; this bounds a machine that is very busy."""
PATIENCE_SECONDS: Final = 0.2
"""How soon a stop is noticed."""

log = logging.getLogger("causes")


class CausalWorker:
    """One child process with its fitted models; used by one thread.

    Once `stop` is set, whatever is waited for is given up.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop: Final = stop
        self._child: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Self:
        """Return the worker; the child starts with the first question or `start`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill the child."""
        self.kill()

    def start(self) -> bool:
        """Make sure that a child is there and has its imports; say whether it is."""
        if self._child is not None and self._child.is_alive():
            return True
        self.kill()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(
            target=_serve, args=(theirs, os.getpid()), name="dowhy", daemon=True
        )
        self._child.start()
        theirs.close()
        if self._receive(START_SECONDS) is None:
            log.warning("the causal worker did not start")
            self.kill()
            return False
        return True

    def analyse(self, analysis: Analysis, *, deadline_seconds: float) -> Attribution | None:
        """Return the attribution, or None when the deadline passed or the child died.

        Starting a child does not count against the deadline.
        """
        if not self.start() or self._pipe is None:
            return None
        try:
            self._pipe.send_bytes(msgspec.msgpack.encode(analysis))
        except OSError:
            self.kill()
            return None
        answer = self._receive(deadline_seconds)
        if not answer:
            log.warning("analysis unanswered", extra={"target": analysis.target})
            if answer is None:
                self.kill()
            return None
        return msgspec.msgpack.decode(answer, type=Attribution)

    def kill(self) -> None:
        """Kill the child, if there is one, and wait until it is gone."""
        if self._child is not None:
            self._child.kill()
            self._child.join()
            self._child.close()
        if self._pipe is not None:
            self._pipe.close()
        self._child = self._pipe = None

    def _receive(self, seconds: float) -> bytes | None:
        """Return what the child says within some time; None when it says nothing or is dead."""
        until_us = monotonic_us() + round(seconds * SECOND_US)
        try:
            while self._pipe is not None and not self._stop.is_set():
                left_us = until_us - monotonic_us()
                if self._pipe.poll(min(max(left_us, 0) / SECOND_US, PATIENCE_SECONDS)):
                    return self._pipe.recv_bytes()
                if left_us <= 0:
                    break
        except (EOFError, OSError):
            log.warning("the causal worker is gone")
        return None


def _serve(pipe: Connection, parent: int) -> None:
    """Answer questions until the parent is gone. An empty answer says that there is none."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Here and not above: the parent must not carry DoWhy.
    from gpuloop.reasoning.causal import CausalModels

    models = CausalModels()
    pipe.send_bytes(b"ready")
    while True:
        try:
            question = msgspec.msgpack.decode(pipe.recv_bytes(), type=Analysis)
        except EOFError:
            return
        try:
            answer = msgspec.msgpack.encode(models.attribute(question))
        except ValueError as error:
            log.warning("analysis refused: %s", error)
            answer = b""
        pipe.send_bytes(answer)
