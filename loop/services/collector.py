"""The collector: what a real fleet says of itself, put on the telemetry topics.

On a GPU node it reads NVML; elsewhere it scrapes exporters and asks Prometheus for many nodes at
once. Each source runs in a thread of its own; while Kafka is away all of them go on, and what they
say waits, bounded, in the outbox. `boot` is the wall clock at start, so it rises over restarts.
"""

import logging
import platform
import threading
from collections.abc import Sequence
from typing import Final

import msgspec

from gpuloop.loop.collect.exporters import Exporters
from gpuloop.loop.collect.machine import Machine
from gpuloop.loop.collect.prometheus import Server
from gpuloop.loop.collect.source import Source
from gpuloop.loop.services import metrics
from gpuloop.loop.services.collector_clock import ClockThread
from gpuloop.loop.services.process import Process, serving
from gpuloop.loop.settings import Settings, SettingsError, plain
from gpuloop.loop.shells.clock import monotonic_us, wall_us
from gpuloop.loop.shells.fold import encode_outputs, source_of
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.outbox import IN_FLIGHT, KafkaSender, Outbox
from gpuloop.loop.shells.wall_world import WallWorld
from gpuloop.schemas.component import Output
from gpuloop.schemas.units import SECOND_US
from gpuloop.streams.collect.config import CollectConfig
from gpuloop.streams.collect.readings import Place

NAME: Final = "collector"
STALLED_US: Final = 10 * SECOND_US
"""Without a word from Kafka for so long the collector says that it waits."""
SILENT_US: Final = 30 * SECOND_US
"""Without a word from a source for so long and three of its beats it is stuck, as in a driver."""
PUMP_SECONDS: Final = 0.2
STOP_US: Final = 9 * SECOND_US
"""What a source may be busy with when it is asked to stop: one question over HTTP."""
DRAIN_SECONDS: Final = 2.0

log: Final = logging.getLogger(NAME)


def main(settings: Settings) -> None:
    """Observe until asked to stop."""
    sources = build(settings, boot=wall_us())
    outbox = Outbox(
        KafkaSender(
            settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
        ),
        capacity=settings.collect_buffer,
        in_flight=min(IN_FLIGHT, settings.collect_buffer // 2),
    )
    broker = KafkaBroker(
        settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
    )
    candidate = f"{node_of(settings)}/{settings.replica}"
    world = WallWorld(broker, settings.fleet, candidate, wall_us=wall_us, monotonic_us=monotonic_us)
    try:
        with serving(NAME, settings) as process:
            collect(process, sources, outbox, ClockThread(world, broker))
    finally:
        outbox.close()


def build(settings: Settings, *, boot: int) -> list[Source]:
    """Return the sources that the settings describe; nothing has been opened.

    Raises:
        SettingsError: the file of sources cannot be read or names what is not there.

    """
    config = config_of(settings)
    sources: list[Source] = []
    if config.with_nvml:
        sources.append(this_machine(settings, boot=boot))
    if config.dcgm is not None:
        sources.append(Exporters(config.dcgm, fleet=settings.fleet, boot=boot, wall_us=wall_us))
    if config.prometheus is not None:
        sources.append(Server(config.prometheus, fleet=settings.fleet, boot=boot, wall_us=wall_us))
    if not sources:
        raise SettingsError(f"{settings.collect}: nothing is named that could be observed")
    return sources


def this_machine(settings: Settings, *, boot: int) -> Machine:
    """Return the GPUs of this machine, not yet opened.

    Raises:
        SettingsError: the package that reads them is not installed.

    """
    try:
        from gpuloop.loop.collect.nvml import Nvml
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed; `make setup EXTRAS=collect` installs nvidia-ml-py"
        ) from None
    place = Place(
        fleet=settings.fleet,
        node=node_of(settings),
        pool=settings.pool,
        rack=settings.rack,
        billing=settings.billing,
    )
    return Machine(
        Nvml(monotonic_us),
        place,
        boot=boot,
        every_us=round(settings.collect_seconds * SECOND_US),
        wall_us=wall_us,
        monotonic_us=monotonic_us,
    )


def node_of(settings: Settings) -> str:
    """Return the name of this machine in its fleet."""
    return settings.node or platform.node() or "localhost"


def config_of(settings: Settings) -> CollectConfig:
    """Return what to observe: the file's, or this machine.

    Raises:
        SettingsError: the file cannot be read or describes nothing that could be observed.

    """
    if settings.collect is None:
        return CollectConfig()
    try:
        return msgspec.json.decode(settings.collect.read_bytes(), type=CollectConfig)
    except OSError as error:
        raise SettingsError(f"{settings.collect}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise SettingsError(f"{settings.collect}: {plain(str(error))}") from None


class Writer:
    """Puts what a source says into the outbox, and counts what it could not.

    In a fleet that runs on another clock nothing of the present has a place; it is counted.
    """

    def __init__(self, source: Source, fleet: str, outbox: Outbox, clock: ClockThread) -> None:
        self.source: Final = source
        self._written_by: Final = source_of(fleet, NAME)
        self._outbox: Final = outbox
        self._clock: Final = clock
        self._heard_us = monotonic_us()

    @property
    def stuck(self) -> bool:
        """Say whether the source has been silent for longer than it can be."""
        return monotonic_us() - self._heard_us > SILENT_US + 3 * self.source.every_us

    def said(self, outputs: Sequence[Output]) -> None:
        """Take telemetry, in order."""
        self._heard_us = monotonic_us()
        if self._clock.elsewhere is not None:
            metrics.DROPPED.labels(NAME, "another clock").inc(len(outputs))
            return
        self._outbox.offer(encode_outputs(outputs, self._written_by))

    def failed(self, source: str, reason: str, count: int = 1) -> None:
        """Count something that could not be read or believed."""
        self._heard_us = monotonic_us()
        metrics.COLLECT_FAILURES.labels(source, reason).inc(count)


class SourceThread:
    """A source at work. The thread is a daemon: a driver that hangs must not keep a process."""

    def __init__(self, writer: Writer) -> None:
        self.writer: Final = writer
        self._stop: Final = threading.Event()
        self._error: BaseException | None = None
        self._thread: Final = threading.Thread(
            target=self._run, name=writer.source.name, daemon=True
        )
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Say whether the source has ended, by itself or because it was asked to."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Ask for an end."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end; raise what ended the source, if that was no wish of ours."""
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self.writer.source.run(self._stop, self.writer)
        except BaseException as error:
            self._error = error  # Raised by `join`, in the thread that can end the process.


def collect(
    process: Process, sources: Sequence[Source], outbox: Outbox, clock: ClockThread
) -> None:
    """Run the sources and write what they say; the end of any of them ends all.

    Raises:
        Explained: a source cannot be observed, or Kafka refuses what is written.

    """
    clock.start()
    warned = False
    threads = [
        SourceThread(Writer(source, process.settings.fleet, outbox, clock)) for source in sources
    ]
    writers = [thread.writer for thread in threads]
    try:
        while not process.stop.is_set() and not any(thread.ended for thread in threads):
            outbox.pump(PUMP_SECONDS)
            clock.check()
            if clock.elsewhere is not None and not warned:
                log.warning("nothing is sent: %s", _belongs_elsewhere(process, clock.elsewhere))
            warned = clock.elsewhere is not None
            _tell(process, writers, outbox, clock.elsewhere)
    finally:
        for thread in threads:
            thread.stop()
        clock.stop()
    until_us = monotonic_us() + STOP_US
    for thread in threads:
        thread.join(max(until_us - monotonic_us(), 0) / SECOND_US)
    if left := outbox.drain(DRAIN_SECONDS):
        log.warning("telemetry is lost at the stop: Kafka did not take it", extra={"lost": left})


def _belongs_elsewhere(process: Process, elsewhere: str) -> str:
    return (
        f"fleet {process.settings.fleet} runs on {elsewhere}; real machines need a fleet of"
        " their own (GPULOOP_FLEET) or other topics (GPULOOP_TOPIC_PREFIX)"
    )


def _tell(
    process: Process, writers: Sequence[Writer], outbox: Outbox, elsewhere: str | None
) -> None:
    written, dropped = outbox.counted()
    for topic, count in written.items():
        metrics.OUTPUTS.labels(NAME, topic).inc(count)
    if dropped:
        metrics.DROPPED.labels(NAME, "full").inc(dropped)
    held = outbox.held
    metrics.COLLECT_BUFFERED.set(held)
    if elsewhere is not None:
        process.health.waiting(_belongs_elsewhere(process, elsewhere))
    elif outbox.stalled_us() > STALLED_US:
        process.health.waiting(f"Kafka does not answer; {held} records wait")
    elif stuck := [writer.source.name for writer in writers if writer.stuck]:
        process.health.waiting(f"nothing is heard from {', '.join(stuck)}")
    else:
        names = ", ".join(writer.source.name for writer in writers)
        process.health.progress(f"observing by {names}")
