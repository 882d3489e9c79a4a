"""What every process shares: log lines, a stop signal, and its health endpoint.

Logs are one JSON object a line on standard error. SIGTERM and SIGINT ask for a clean stop, which
a service grants within `STOP_SECONDS` by looking at `Process.stop` in its loop.
"""

import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

import msgspec

from gpuloop.loop.services.health import Health, HealthServer, Interface, Route
from gpuloop.loop.services.repeats import Repeats
from gpuloop.loop.settings import Settings, SettingsError
from gpuloop.schemas.errors import Explained

STOP_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A running service: its settings, its health, and the wish that it stop."""

    settings: Settings
    health: Health
    stop: threading.Event


@contextmanager
def serving(
    name: str,
    settings: Settings,
    *,
    routes: Mapping[str, Route] | None = None,
    token: str = "",
    interface: Interface | None = None,
    anywhere: bool = False,
) -> Iterator[Process]:
    """Set up logs, signals and health for service `name`, and take them down at the end.

    `routes` and `interface` are what the service answers itself, beside its health, to whoever has
    `token`; `anywhere` says that others than this machine may ask.

    Outside the main thread (as in tests) signals stay with whoever owns them.
    """
    configure_logging(name, settings.log_level)
    process = Process(settings=settings, health=Health(name), stop=threading.Event())
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: process.stop.set())
    server = HealthServer(
        process.health,
        host=settings.http_host,
        port=settings.http_port,
        routes=routes,
        token=token,
        interface=interface,
        anywhere=anywhere,
    )
    log = logging.getLogger(name)
    log.info("service started", extra={"http_port": server.port, "fleet": settings.fleet})
    try:
        yield process
    finally:
        process.health.waiting("stopping")
        server.close()
        log.info("service stopped")


def configure_logging(service: str, level: str) -> None:
    """Send log records and the last exception of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(service))
    handler.addFilter(Repeats())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    log = logging.getLogger(service)

    def fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # A broken invariant or a lost broker ends the process; the supervisor restarts it.
        if issubclass(kind, (Explained, SettingsError)):
            log.critical("service failed: %s", error)
        else:
            log.critical("service failed: %s", error, exc_info=(kind, error, trace))

    def fail_thread(ended: threading.ExceptHookArgs) -> None:
        name = ended.thread.name if ended.thread is not None else "unknown"
        error = ended.exc_value or ended.exc_type()
        log.critical(
            "a thread failed",
            exc_info=(ended.exc_type, error, ended.exc_traceback),
            extra={"ended_thread": name},
        )

    sys.excepthook = fail
    threading.excepthook = fail_thread


class JsonLines(logging.Formatter):
    """Formats a record as one JSON line; `extra` fields stand beside the message."""

    _OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in self._OWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
