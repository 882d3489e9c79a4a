"""What a process says about itself over HTTP: `/health` as JSON and `/metrics` for Prometheus.

`Health` is written by the process's own loop and read by whoever asks; it holds no decision.
"""

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import msgspec

from gpuloop.loop.services import metrics
from gpuloop.loop.shells.clock import wall_us


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/health`; `ready` is also the status code, 200 or 503."""

    service: str
    ready: bool
    detail: str
    positions: dict[str, int]
    last_progress_wall_us: int


class Health:
    """What the process last said of itself. Safe to share between threads."""

    def __init__(self, service: str) -> None:
        self.service: Final = service
        self._lock: Final = threading.Lock()
        self._ready = False
        self._detail = "starting"
        self._positions: dict[str, int] = {}
        self._progress_us = wall_us()

    def waiting(self, detail: str) -> None:
        """Say that the process cannot do its work yet, and what it waits for."""
        with self._lock:
            self._ready, self._detail = False, detail
        metrics.READY.set(0)

    def progress(self, detail: str, positions: Mapping[str, int] | None = None) -> None:
        """Say that the process works, and how far it has come."""
        with self._lock:
            self._ready, self._detail, self._progress_us = True, detail, wall_us()
            if positions is not None:
                self._positions = dict(positions)
        metrics.READY.set(1)

    def report(self) -> Report:
        """Return what `/health` answers."""
        with self._lock:
            return Report(
                service=self.service,
                ready=self._ready,
                detail=self._detail,
                positions=dict(self._positions),
                last_progress_wall_us=self._progress_us,
            )


class HealthServer:
    """Serves one process's health and metrics from a daemon thread."""

    def __init__(self, health: Health, *, host: str, port: int) -> None:
        self._server: Final = ThreadingHTTPServer((host, port), _handler(health))
        self._server.daemon_threads = True
        self._thread: Final = threading.Thread(
            target=self._server.serve_forever, name="health", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Return the port listened on, also when a free one was asked for."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/health":
                    report = health.report()
                    body = msgspec.json.encode(report)
                    self._answer(200 if report.ready else 503, "application/json", body)
                case "/metrics":
                    self._answer(200, "text/plain; version=0.0.4", metrics.exposition())
                case _:
                    self._answer(404, "text/plain", b"/health or /metrics\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: probes come every second."""

    return Handler
