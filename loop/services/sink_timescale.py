"""The process that keeps the history of metrics in PostgreSQL or TimescaleDB."""

from typing import Final

from gpuloop.loop.services.sinks import reader_of, serve
from gpuloop.loop.settings import Settings, SettingsError
from gpuloop.loop.shells.sink import Limits
from gpuloop.loop.shells.timescale import TimescaleStore
from gpuloop.loop.shells.timescale_schema import Keep
from gpuloop.streams.sinks.history import HISTORY

NAME: Final = "sink-timescale"
LIMITS: Final = Limits(records=2_000, bytes=4_000_000, linger_s=1.0)


def main(settings: Settings) -> None:
    """Write history until asked to stop."""
    if not settings.postgres_dsn:
        raise SettingsError("GPULOOP_POSTGRES_DSN: the sink has no database to write to")
    store = TimescaleStore(
        settings.postgres_dsn,
        HISTORY,
        reader=reader_of(NAME, settings),
        keep=Keep(days=settings.history_days),
        password_file=settings.postgres_password_file,
    )
    serve(NAME, settings, store, HISTORY, LIMITS)
