"""The causes process: causes and detectors in the journaled shell, and the deep tier beside it.

A fast cause that leaves the fold is put to the deep tier as a question, answered under a deadline
on a thread of its own, and written to `insight.causes`. That answer depends on wall time, so it is
no part of the fold: to whoever reads the topic it is input like any other. A crash may cost an
answer; the fast cause stands.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import ClassVar, Final, Self

from gpuloop.loop.services import metrics
from gpuloop.loop.services.causal_worker import PATIENCE_SECONDS, CausalWorker
from gpuloop.loop.services.health import Health
from gpuloop.loop.services.journaled import ProcessWatcher, run_component
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import BrokerError
from gpuloop.loop.shells.clock import monotonic_us
from gpuloop.loop.shells.fold import Executed, encode_outputs, source_of
from gpuloop.loop.shells.journal import Saved
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.together import Both, Together
from gpuloop.reasoning.causes import (
    Causes,
    CausesState,
    Question,
    analysis_request,
    causal_cause,
)
from gpuloop.reasoning.detectors.fold import Detectors, DetectorsState
from gpuloop.schemas.codec import Record
from gpuloop.schemas.component import Output, S, State
from gpuloop.schemas.messages import Cause

DEADLINE_SECONDS: Final = 20.0
MAX_WAITING: Final = 16

log = logging.getLogger("causes")


class Diagnosis(Together[CausesState, DetectorsState]):
    """The causes and the detectors: both notice, one explains."""

    name: ClassVar[str] = Causes.name
    inputs: ClassVar[tuple[str, ...]] = Causes.inputs
    state_version: ClassVar[int] = Causes.state_version + Detectors.state_version

    def __init__(self, fleet: str) -> None:
        """Notice and explain what departs in `fleet`."""
        super().__init__(Causes(fleet), Detectors(fleet), Both[CausesState, DetectorsState])


def main(settings: Settings) -> None:
    """Notice and explain until asked to stop."""
    broker = KafkaBroker(
        settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
    )
    source = source_of(settings.fleet, Causes.name)

    def write(output: Output) -> None:
        broker.produce(encode_outputs([output], source))

    try:
        with DeepTier(write) as deep:
            run_component(build(settings), settings, partial(_Watcher, deep))
    finally:
        broker.close()


def build(settings: Settings) -> Diagnosis:
    """Return the component that the settings describe."""
    return Diagnosis(settings.fleet)


class DeepTierEnded(RuntimeError):
    """The thread that asks the deep tier is dead: a broken invariant, not a late answer."""


class _Watcher(ProcessWatcher):
    """Also hands each cut's fast causes to the deep tier."""

    def __init__(self, deep: "DeepTier", name: str, health: Health) -> None:
        super().__init__(name, health)
        self._deep = deep

    def cut(
        self,
        records: Sequence[Record],
        executed: Executed[S],
        saved: Saved[S],
        *,
        skipped: int,
        took_us: int,
    ) -> None:
        """Say that a cut is done, and ask about what it found."""
        super().cut(records, executed, saved, skipped=skipped, took_us=took_us)
        state: State = executed.state
        if isinstance(state, Both) and isinstance(state.first, CausesState):
            self._deep.follow(state.first, executed.outputs)


class DeepTier:
    """Answers questions one by one, each within the deadline; what waits too long is dropped."""

    def __init__(
        self, write: Callable[[Output], None], *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self._write: Final = write
        self._deadline_seconds: Final = deadline_seconds
        self._questions: Final[queue.Queue[Question]] = queue.Queue(MAX_WAITING)
        self._stopping: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name="deep-tier", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread, which starts the worker."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop now: what is being computed is given up."""
        self._stopping.set()
        self._thread.join()

    def follow(self, state: CausesState, outputs: Sequence[Output]) -> None:
        """Ask about every fast cause among the outputs that led to `state`; never block.

        Raises:
            DeepTierEnded: nobody answers any more, so the process ends and is started again.

        """
        if not self._thread.is_alive():
            raise DeepTierEnded("the deep tier's thread ended; why is in the log")
        for output in outputs:
            if not isinstance(output.message, Cause):
                continue
            question = analysis_request(state, output.message)
            if question is not None:
                self.ask(question)

    def ask(self, question: Question) -> None:
        """Put a question in line, or count it when the line is full: the fast cause stands."""
        try:
            self._questions.put_nowait(question)
        except queue.Full:
            metrics.ANALYSES.labels("dropped").inc()
            log.warning("analysis dropped", extra={"symptom": question.fast.symptom})

    def _run(self) -> None:
        with CausalWorker(self._stopping) as worker:
            worker.start()
            while not self._stopping.is_set():
                try:
                    question = self._questions.get(timeout=PATIENCE_SECONDS)
                except queue.Empty:
                    continue
                self._answer(worker, question)

    def _answer(self, worker: CausalWorker, question: Question) -> None:
        began_us = monotonic_us()
        found = worker.analyse(question.analysis, deadline_seconds=self._deadline_seconds)
        if self._stopping.is_set():
            return
        result = "answered" if found is not None else "timed_out"
        try:
            self._write(causal_cause(question, found, monotonic_us() - began_us))
        except BrokerError as error:
            result = "unwritten"
            log.error("cause not written: %s", error)
        metrics.ANALYSES.labels(result).inc()
