"""The twin's process: a fleet on its clock, obeying `actions.*`, in transactions of SQLite."""

import logging
from datetime import UTC, datetime
from typing import Final

import msgspec

from gpuloop.loop.services import metrics
from gpuloop.loop.services.health import Health
from gpuloop.loop.services.process import serving
from gpuloop.loop.services.twin_fleet import TwinFleet
from gpuloop.loop.settings import Settings, SettingsError
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.fold import Executed
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.loop.shells.store import Store
from gpuloop.loop.shells.transactional import TransactionalShell, WorldConfig
from gpuloop.schemas.component import S
from gpuloop.schemas.units import SECOND_US
from gpuloop.twin.config import TwinConfig

NAME: Final = "twin"
STORE_FILE: Final = "twin/world.sqlite"

log: Final = logging.getLogger(NAME)


def main(settings: Settings) -> None:
    """Run the world until asked to stop."""
    with serving(NAME, settings) as process:
        fleet = build(settings)
        broker = KafkaBroker(
            settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
        )
        store = Store(settings.state_dir / STORE_FILE)
        config = WorldConfig(
            fleet=settings.fleet,
            seed=settings.seed,
            start_us=fleet.world.start_us,
            speed=settings.speed,
        )
        watcher = _Watcher(process.health, fleet.world.workload_name)
        try:
            TransactionalShell(fleet, broker, store, config, watcher).run(process.stop)
        finally:
            store.close()
            broker.close()


def build(settings: Settings) -> TwinFleet:
    """Return the fleet that the settings describe."""
    return TwinFleet(twin_config(settings), settings.traces, settings.workload or "auto")


def twin_config(settings: Settings) -> TwinConfig:
    """Return the twin's configuration: the file's, or the default, for this fleet and seed.

    Raises:
        SettingsError: the file does not describe a twin.

    """
    config = TwinConfig()
    if settings.twin_config is not None:
        try:
            config = msgspec.json.decode(settings.twin_config.read_bytes(), type=TwinConfig)
        except (OSError, msgspec.DecodeError) as error:
            raise SettingsError(f"{settings.twin_config}: {error}") from None
    return msgspec.structs.replace(
        config, fleet=settings.fleet, seed=settings.seed, start_us=settings.start_us
    )


class _Watcher:
    """Turns what the shell reports into health, metrics and log lines."""

    def __init__(self, health: Health, workload: str) -> None:
        self._health = health
        self._workload = workload

    def resumed(self, world: str, now_us: int, *, unsent: int) -> None:
        log.info(
            "world goes on",
            extra={
                "world": world,
                "workload": self._workload,
                "fleet_time": _shown(now_us),
                "sent_again": unsent,
            },
        )

    def stepped(
        self, executed: Executed[S], positions: dict[Partition, int], now_us: int, *, records: int
    ) -> None:
        metrics.CUTS.labels(NAME).inc()
        metrics.FLEET_TIME.labels(NAME).set(now_us / SECOND_US)
        for output in executed.outputs:
            metrics.OUTPUTS.labels(NAME, output.topic).inc()
        for _, error in executed.refused:
            metrics.DEAD_LETTERS.labels(NAME, error.reason).inc()
        self._health.progress(
            f"{self._workload}, fleet time {_shown(now_us)}",
            {str(part): at for part, at in positions.items()},
        )

    def reanchored(self, lag_us: int) -> None:
        metrics.REANCHORED.inc()
        log.warning("the world fell behind its clock", extra={"lag_seconds": lag_us // SECOND_US})


def _shown(fleet_us: int) -> str:
    return datetime.fromtimestamp(fleet_us / SECOND_US, UTC).isoformat(timespec="seconds")
