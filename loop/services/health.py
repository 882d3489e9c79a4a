"""What a process says about itself over HTTP: `/health` as JSON and `/metrics` for Prometheus.

`Health` is written by the process's own loop and read by whoever asks; it holds no decision.
"""

import logging
import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from hmac import compare_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import msgspec

from gpuloop.loop.services import metrics
from gpuloop.loop.shells.clock import monotonic_us, wall_us
from gpuloop.schemas.units import SECOND_US

log: Final = logging.getLogger(__name__)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/health`; `ready` is also the status code, 200 or 503.

    `silent_seconds` is how long ago the process's own loop said anything, ready or not: what
    answers here is another thread. `outside` says that the process runs and goes on trying, and
    that what it is not ready for is no part of the loop, such as a store.
    """

    service: str
    ready: bool
    detail: str
    positions: dict[str, int]
    last_progress_wall_us: int
    silent_seconds: float = 0.0
    outside: bool = False


class Health:
    """What the process last said of itself. Safe to share between threads."""

    def __init__(self, service: str) -> None:
        self.service: Final = service
        self._lock: Final = threading.Lock()
        self._ready = False
        self._detail = "starting"
        self._outside = False
        self._positions: dict[str, int] = {}
        self._progress_us = wall_us()
        self._spoke_us = monotonic_us()

    def waiting(self, detail: str, *, outside: bool = False) -> None:
        """Say that the process cannot do its work yet, what it waits for, and if that is outside.

        What is outside is no part of the loop and may be away for as long as it likes.
        """
        with self._lock:
            self._ready, self._detail, self._spoke_us = False, detail, monotonic_us()
            self._outside = outside
        metrics.READY.set(0)

    def progress(self, detail: str, positions: Mapping[str, int] | None = None) -> None:
        """Say that the process works, and how far it has come."""
        with self._lock:
            self._ready, self._detail, self._progress_us = True, detail, wall_us()
            self._spoke_us, self._outside = monotonic_us(), False
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
                silent_seconds=(monotonic_us() - self._spoke_us) / SECOND_US,
                outside=self._outside,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a route answers."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Route = Callable[[bytes], Answer]
"""Answers the body of a POST; may be called from several threads at once."""

Interface = Callable[[Mapping[str, str], bytes], Answer]
"""Answers `POST /` with parameters in its query, in a protocol of other clients; like a route."""

MAX_BODY_BYTES: Final = 1_000_000
MAX_INTERFACE_BYTES: Final = 16_000_000
_REFUSED: Final = Answer(status=404, content_type="text/plain", body=b"/health or /metrics\n")


def _unknown(challenge: str) -> Answer:
    """Return what is answered to who may ask and shows no token, or another one."""
    return Answer(
        status=401,
        content_type="text/plain",
        body=b"this asks for a token: Authorization: Bearer TOKEN\n",
        headers=(("WWW-Authenticate", challenge),),
    )


_NO_TOKEN: Final = _unknown("Bearer")
_NO_PASSWORD: Final = _unknown('Basic realm="gpuloop"')


class HealthServer:
    """Serves one process's health and metrics, and routes of its own, from daemon threads.

    Routes answer JSON from this machine only, and only under a name of it: no web page can send
    JSON without being asked first, and one whose own name was pointed here is known by that name.
    Other users of this machine can reach the port as well, so a route asks for `token`, which its
    owner keeps where only its own user can read it. `anywhere` is for a token that a person gave
    out: then other machines are answered too. An `interface` takes the token as a password as well,
    in whatever a client calls its content; what carries a password was not sent by a web page.
    """

    def __init__(
        self,
        health: Health,
        *,
        host: str,
        port: int,
        routes: Mapping[str, Route] | None = None,
        token: str = "",
        interface: Interface | None = None,
        anywhere: bool = False,
    ) -> None:
        if (routes or interface) and not token:
            raise ValueError("a route needs a token")
        gate = _Gate(token, anywhere)
        handler = _handler(health, routes or {}, gate, interface)
        self._server: Final = _Server((host, port), handler)
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say in one log line what ended an answer, and nothing of a client that went away."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            log.error("an answer failed", exc_info=error, extra={"client": str(client_address)})


def _is_loopback(host: str) -> bool:
    """Say whether a `Host` header, with or without a port, names this machine to itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class _Gate:
    """Who is answered beyond health and metrics."""

    token: str
    anywhere: bool

    def refusal(
        self, client: str, headers: Message, *, password: bool, limit: int
    ) -> Answer | None:
        """Return what to answer instead, or None to who may ask with at most `limit` bytes.

        That a token would open something is said only where the token would.
        """
        given = headers.get("Authorization", "").encode()
        shown = compare_digest(given, f"Bearer {self.token}".encode())
        if password and given.startswith(b"Basic "):
            shown = compare_digest(_password(given[6:]), self.token.encode())
        near = ip_address(client).is_loopback and _is_loopback(headers.get("Host", ""))
        length = headers.get("Content-Length", "")
        counted = length.isascii() and length.isdecimal() and len(length) <= len(str(limit))
        if not (near or self.anywhere) or not counted or int(length) > limit:
            return _REFUSED
        if not shown:
            return _NO_PASSWORD if password else _NO_TOKEN
        return None


def _password(encoded: bytes) -> bytes:
    try:
        return b64decode(encoded, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _handler(
    health: Health, routes: Mapping[str, Route], gate: _Gate, interface: Interface | None
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/health":
                    report = health.report()
                    body = msgspec.json.encode(report)
                    status = 200 if report.ready else 503
                    self._send(Answer(status=status, content_type="application/json", body=body))
                case "/metrics":
                    kind, body = "text/plain; version=0.0.4", metrics.exposition()
                    self._send(Answer(status=200, content_type=kind, body=body))
                case _:
                    self._send(_REFUSED)

        def do_POST(self) -> None:
            path, _, query = self.path.partition("?")
            route, client = routes.get(self.path), self.client_address[0]
            if route is not None:
                plain = self.headers.get_content_type() == "application/json"
                no = gate.refusal(client, self.headers, password=False, limit=MAX_BODY_BYTES)
                no = no if plain else _REFUSED
                self._send(route(self._body()) if no is None else no)
            elif interface is not None and path == "/":
                no = gate.refusal(client, self.headers, password=True, limit=MAX_INTERFACE_BYTES)
                asked = dict(parse_qsl(query, keep_blank_values=True))
                self._send(interface(asked, self._body()) if no is None else no)
            else:
                self._send(_REFUSED)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"]))

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: probes come every second."""

    return Handler
