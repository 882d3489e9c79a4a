"""The observe stage's process: Faust, its health, and the watchdog that ends it when it hangs."""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Final

from gpuloop.loop.services import metrics
from gpuloop.loop.services.process import Process, serving
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.faust_app import INPUTS, ObserveConfig, build, run
from gpuloop.loop.shells.faust_consumer import Place, Positions
from gpuloop.loop.shells.faust_tables import APP, app_id
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.timekeeping import CLOCK, newest_anchors
from gpuloop.loop.shells.watchdog import Seen, Watchdog
from gpuloop.schemas.codec import BadInput

EXIT_STUCK: Final = 75
NOISY: Final = ("faust", "mode", "aiokafka", "kafka")

log: Final = logging.getLogger(APP)


def main(settings: Settings) -> None:
    """Keep the tables until asked to stop."""
    broker = KafkaBroker(
        settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
    )
    with serving(APP, settings) as process:
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)
        process.health.waiting("recovering tables")
        config = ObserveConfig(
            bootstrap_servers=settings.bootstrap_servers,
            fleet=settings.fleet,
            prefix=settings.topic_prefix,
            replica=settings.member,
            kafka_config=settings.kafka_config,
        )
        watch = _Watch(process)
        clock_from = broker.ends([CLOCK])[CLOCK]
        anchors = newest_anchors(broker, settings.fleet)
        observing = build(config, watch, anchors, clock_from=clock_from)
        watchdog = Watchdog(_look(broker, config, observing.positions, process), _bite)
        watchdog.start()
        try:
            run(observing, watch, process.stop)
        finally:
            watchdog.stop()
            broker.close()


class _Watch:
    """Turns what the agents say into metrics and health."""

    def __init__(self, process: Process) -> None:
        self._process: Final = process
        self._positions: Final[dict[str, int]] = {}

    def ready(self) -> None:
        """Say that the tables are recovered."""
        self._process.health.progress("observing", self._positions)

    def handled(
        self, record: Partition, offset: int, outputs: int, dropped: Mapping[str, int]
    ) -> None:
        """Count a record that was folded."""
        metrics.RECORDS.labels(APP, record.topic).inc()
        metrics.OUTPUTS.labels(APP, record.topic).inc(outputs)
        for reason, count in dropped.items():
            metrics.DROPPED.labels(APP, reason).inc(count)
        self._positions[str(record)] = offset + 1
        metrics.POSITION.labels(APP, str(record)).set(offset + 1)
        self._process.health.progress("observing", self._positions)

    def known(self, topic: str, after_ms: float) -> None:
        """Note how long telemetry took to be in the state."""
        metrics.STATE_SECONDS.labels(topic).observe(max(after_ms, 0.0) / 1000)

    def refused(self, error: BadInput) -> None:
        """Count a record that went to the dead letters."""
        metrics.DEAD_LETTERS.labels(APP, error.reason).inc()

    def passed_over(self, what: str) -> None:
        """Count what was heard and not heeded."""
        metrics.DROPPED.labels(APP, what).inc()


def _look(
    broker: KafkaBroker, config: ObserveConfig, positions: Positions, process: Process
) -> Callable[[], Seen]:
    def look() -> Seen:
        if not positions.ready:
            # Who waits for us sees that recovery goes on, however long it takes.
            process.health.waiting(f"recovering tables, {positions.restored:,} records read")
        inputs = [part for topic in INPUTS for part in broker.partitions(topic)]
        begins = broker.beginnings(inputs)
        committed = broker.committed(app_id(config.prefix), inputs)
        return Seen(
            ready=positions.ready,
            restored=positions.restored,
            ends=broker.ends(inputs),
            handled=_unprefixed(positions.handled, config.prefix),
            settled=_unprefixed(positions.settled, config.prefix),
            # Nobody can commit what retention took away.
            committed={part: max(committed.get(part, 0), at) for part, at in begins.items()},
        )

    return look


def _unprefixed(positions: Mapping[Place, int], prefix: str) -> dict[Partition, int]:
    return {
        Partition(topic.removeprefix(prefix), number): at
        for (topic, number), at in dict(positions).items()
    }


def _bite(stuck: list[str]) -> None:
    log.error("stuck, leaving so that a restart recovers", extra={"stuck": stuck})
    os._exit(EXIT_STUCK)
