"""How a journaled component becomes a process: broker, live shell, health and metrics."""

import logging
from collections.abc import Callable, Sequence
from secrets import token_hex

from gpuloop.loop.services import metrics
from gpuloop.loop.services.health import Health
from gpuloop.loop.services.process import serving
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.clock import wall_us
from gpuloop.loop.shells.fold import Executed
from gpuloop.loop.shells.journal import Saved
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.live import LiveConfig, LiveShell
from gpuloop.schemas.codec import Record
from gpuloop.schemas.component import Component, S
from gpuloop.schemas.units import SECOND_US


def run_component(
    component: Component[S],
    settings: Settings,
    watch: "Callable[[str, Health], ProcessWatcher] | None" = None,
) -> None:
    """Run a component on Kafka until the process is asked to stop.

    `watch` makes the watcher of a component that needs more than metrics and health.
    """
    with serving(component.name, settings) as process:
        broker = KafkaBroker(
            settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
        )
        config = LiveConfig(
            fleet=settings.fleet,
            seed=settings.seed,
            run=f"{settings.replica}/{wall_us()}/{token_hex(8)}",
            snapshot_every_us=round(settings.snapshot_seconds * SECOND_US),
        )
        watcher = (watch or ProcessWatcher)(component.name, process.health)
        try:
            LiveShell(component, broker, config, watcher).run(process.stop)
        finally:
            broker.close()


class ProcessWatcher:
    """Turns what a live shell reports into health, metrics and log lines."""

    def __init__(self, name: str, health: Health) -> None:
        self._name = name
        self._health = health
        self._log = logging.getLogger(name)

    def waiting(self, why: str) -> None:
        """Say that the component cannot work yet."""
        self._health.waiting(why)

    def resumed(self, saved: Saved[S], *, followed: int, disagreed: int, expired: int) -> None:
        """Say from where the component goes on."""
        metrics.REPLAY_MISMATCHES.labels(self._name).inc(disagreed)
        metrics.INPUTS_EXPIRED.labels(self._name).inc(expired)
        self._log.info(
            "resumed",
            extra={
                "cut": saved.number,
                "followed": followed,
                "disagreed": disagreed,
                "partitions_expired": expired,
            },
        )

    def idle(self, now_us: int) -> None:
        """Say that there was nothing to do."""
        metrics.FLEET_TIME.labels(self._name).set(now_us / SECOND_US)
        self._health.progress("up to date")

    def cut(
        self,
        records: Sequence[Record],
        executed: Executed[S],
        saved: Saved[S],
        *,
        skipped: int,
        took_us: int,
    ) -> None:
        """Say that a cut is done and its outputs are acknowledged."""
        name = self._name
        for record in records:
            metrics.RECORDS.labels(name, record.topic).inc()
        for output in executed.outputs:
            metrics.OUTPUTS.labels(name, output.topic).inc()
        for _, error in executed.refused:
            metrics.DEAD_LETTERS.labels(name, error.reason).inc()
        metrics.CUTS.labels(name).inc()
        metrics.TICKS_SKIPPED.labels(name).inc(skipped)
        metrics.STEP_SECONDS.labels(name).observe(took_us / SECOND_US)
        metrics.FLEET_TIME.labels(name).set(saved.now_us / SECOND_US)
        positions = {str(part): at for part, at in saved.positions.items()}
        for part, at in positions.items():
            metrics.POSITION.labels(name, part).set(at)
        self._health.progress(f"cut {saved.number}", positions)

    def snapshot(self, number: int) -> None:
        """Say that a snapshot is written."""
        metrics.SNAPSHOTS.labels(self._name).inc()
        self._log.debug("snapshot written", extra={"cut": number})

    def passed_over(self, what: str) -> None:
        """Say that something for the shell itself was heard and not heeded."""
        metrics.DROPPED.labels(self._name, what).inc()
