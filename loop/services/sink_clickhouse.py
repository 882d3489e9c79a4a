"""The process that keeps decisions, actions, outcomes and rewards in ClickHouse."""

import logging
from typing import Final

from gpuloop.loop.services.sinks import reader_of, serve
from gpuloop.loop.settings import Settings, SettingsError
from gpuloop.loop.shells.clickhouse_store import ClickHouseStore
from gpuloop.loop.shells.sink import Limits
from gpuloop.streams.sinks.analysis import ANALYSIS

NAME: Final = "sink-clickhouse"
LIMITS: Final = Limits(records=5_000, bytes=4_000_000, linger_s=5.0)
"""Few large inserts: each is a part that the server has to merge."""

NOISY: Final = ("urllib3.connectionpool", "clickhouse_connect.driver._backend")
"""Libraries that log each failure, which reaches the sink as an error and is told once by it."""


def main(settings: Settings) -> None:
    """Write for analysis until asked to stop."""
    if not settings.clickhouse_url:
        raise SettingsError("GPULOOP_CLICKHOUSE_URL: the sink has no server to write to")
    silence_libraries()
    store = ClickHouseStore(
        settings.clickhouse_url,
        ANALYSIS,
        reader=reader_of(NAME, settings),
        keep_days=settings.analysis_days,
        user=settings.clickhouse_user,
        password_file=settings.clickhouse_password_file,
    )
    serve(NAME, settings, store, ANALYSIS, LIMITS)


def silence_libraries() -> None:
    """Leave the telling of failures to the sink."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
