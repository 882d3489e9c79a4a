"""What both sinks share: settings in, and what a sink does out to health and metrics."""

import secrets
from collections.abc import Callable, Mapping
from typing import Final

from gpuloop.loop.services import metrics
from gpuloop.loop.services.health import Health
from gpuloop.loop.services.process import serving
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.clock import monotonic_us, wall_us
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.sink import Limits, Sink, Written
from gpuloop.loop.shells.sink_store import Store
from gpuloop.schemas.units import SECOND_US
from gpuloop.streams.sinks.tables import Catalogue

LAG_US: Final = 5 * SECOND_US
FETCH_BYTES: Final = 2**20
"""Little, since a sink's memory is small and an outage leaves it much to read: with eight times as
much, 45,000 records that had waited took 240 MB."""


def reader_of(name: str, settings: Settings) -> str:
    """Return the name under which a sink keeps its positions in a store that others may share."""
    return f"{name}/{settings.fleet}/{settings.topic_prefix}"


def serve(
    name: str, settings: Settings, store: Store, catalogue: Catalogue, limits: Limits
) -> None:
    """Run one sink until it is asked to stop."""
    broker = KafkaBroker(
        settings.bootstrap_servers,
        prefix=settings.topic_prefix,
        config=settings.kafka_config,
        fetch_bytes=FETCH_BYTES,
    )
    try:
        with serving(name, settings) as process:
            sink = Sink(
                broker,
                store,
                catalogue,
                name=name,
                fleet=settings.fleet,
                watch=Reporter(name, process.health),
                chance=secrets.SystemRandom().random,
                limits=limits,
            )
            sink.run(process.stop)
    finally:
        broker.close()


_NAMED_BY: Final = {
    "sink-timescale": "GPULOOP_POSTGRES_DSN",
    "sink-clickhouse": "GPULOOP_CLICKHOUSE_URL",
}


class Reporter:
    """Tells health and metrics what a sink does."""

    def __init__(self, name: str, health: Health) -> None:
        self._name: Final = name
        self._health: Final = health
        self._rows = 0
        self._lag_us = 0
        self._lag = 0

    def written(self, done: Written) -> None:
        """Count a batch."""
        metrics.SINK_BATCHES.labels(self._name).inc()
        metrics.SINK_OLDEST_AGE.labels(self._name).set(0)
        for topic, count in done.records.items():
            metrics.RECORDS.labels(self._name, topic).inc(count)
        for table, count in done.rows.items():
            metrics.SINK_ROWS.labels(self._name, table).inc(count)
            self._rows += count

    def refused(self, reason: str) -> None:
        """Count a dead letter."""
        metrics.DEAD_LETTERS.labels(self._name, reason).inc()

    def outage(self, why: str, attempt: int, oldest_ms: int | None) -> None:
        """Say that the store is away, in words that change: waiting is no standstill."""
        metrics.SINK_RETRIES.labels(self._name).inc()
        if oldest_ms is not None:
            age_s = max(wall_us() / SECOND_US - oldest_ms / 1000, 0.0)
            metrics.SINK_OLDEST_AGE.labels(self._name).set(age_s)
        named_by = _NAMED_BY.get(self._name, self._name)
        away = f"the store is away, attempt {attempt}, {named_by}: {why}"
        self._health.waiting(away, outside=True)

    def expired(self, part: Partition, missing: int) -> None:
        """Count a partition whose records were gone."""
        metrics.INPUTS_EXPIRED.labels(self._name).inc()

    def turn(self, positions: Mapping[Partition, int], lag: Callable[[], int]) -> None:
        """Say that the sink works, and from time to time how far behind it is."""
        named = {str(part): at for part, at in positions.items()}
        if monotonic_us() - self._lag_us >= LAG_US or not self._lag_us:
            self._lag_us, self._lag = monotonic_us(), lag()
            metrics.SINK_LAG.labels(self._name).set(self._lag)
            for part, at in named.items():
                metrics.POSITION.labels(self._name, part).set(at)
        self._health.progress(f"{self._rows} rows written, {self._lag} records behind", named)
