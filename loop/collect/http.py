"""One answer over HTTP, bounded in size and in time as a whole, from where it was asked and whole.

A timeout of a socket bounds one silence, not an answer that drips: when the time is over the
connection is ended, whatever it is busy with. Redirections are refusals: a token is for the server
that was named, and what is named is what may be asked.
"""

import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final, Literal

CHUNK: Final = 64 * 1024
REASON_BYTES: Final = 500

Reason = Literal["unreachable", "refused", "too large", "too slow", "stopped"]


class NoAnswer(Exception):
    """There was no usable answer; `reason` is one of few, the text says more."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason


def fetch(
    url: str,
    *,
    timeout_s: float,
    max_bytes: int,
    stop: threading.Event,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> bytes:
    """Return the body of a GET, or of a POST of `body`.

    Raises:
        NoAnswer: no connection, a status other than 2xx, too much, too late, or not all of it.

    """
    until = time.monotonic() + timeout_s
    request = urllib.request.Request(  # noqa: S310 - Settings admit http and https only.
        url, data=body, headers={"User-Agent": "gpuloop", **(headers or {})}
    )
    try:
        with _opener(timeout_s) as opener, opener.open(request, timeout=timeout_s) as answer:
            found = _body(answer, url, until, max_bytes, stop)
    except urllib.error.HTTPError as error:
        raise NoAnswer("refused", f"{url}: {error.code} {error.reason}") from None
    except TimeoutError:
        raise NoAnswer("too slow", f"{url}: silent for {timeout_s:g} s") from None
    except (OSError, HTTPException, ValueError) as error:
        late = isinstance(getattr(error, "reason", None), TimeoutError) or time.monotonic() > until
        raise NoAnswer("too slow" if late else "unreachable", f"{url}: {error}") from None
    if time.monotonic() > until:
        raise NoAnswer("too slow", f"{url}: not whole after {timeout_s:g} s")
    return found


def _body(
    answer: HTTPResponse, url: str, until: float, max_bytes: int, stop: threading.Event
) -> bytes:
    found = bytearray()
    while chunk := answer.read1(CHUNK):
        found += chunk
        if len(found) > max_bytes:
            raise NoAnswer("too large", f"{url}: more than {max_bytes} bytes")
        if time.monotonic() > until:
            break
        if stop.is_set():
            raise NoAnswer("stopped", url)
    if answer.length and time.monotonic() <= until:
        raise NoAnswer("unreachable", f"{url}: {answer.length} bytes are missing at the end")
    return bytes(found)


class _Refusing(urllib.request.HTTPDefaultErrorHandler):
    """Makes an error of every other status, with the beginning of what the server says to it."""

    def http_error_default(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, hdrs: Any
    ) -> Any:
        with fp:
            raise urllib.error.HTTPError(req.full_url, code, f"{msg} {_said(fp)}", hdrs, None)


class _Line(urllib.request.AbstractHTTPHandler):
    """Opens connections that can be ended from outside."""

    def __init__(self) -> None:
        super().__init__()
        self._lock: Final = threading.Lock()
        self._sockets: Final[list[socket.socket]] = []
        self._over = False
        self.http_request = self.https_request = self.do_request_

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Open one without TLS."""
        return self.do_open(self._kind(HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Open one with TLS."""
        return self.do_open(self._kind(HTTPSConnection), req, context=_trust())

    def end(self) -> None:
        """End what is open, and what is yet to be."""
        with self._lock:
            self._over = True
            for one in self._sockets:
                # Not the TLS socket's own, which would change what its reader holds.
                with suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)

    def _kind(self, base: type[HTTPConnection]) -> Any:
        def met(one: socket.socket) -> None:
            with self._lock:
                if self._over:
                    raise TimeoutError
                self._sockets.append(one)

        class Connection(base):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                super().connect()
                met(self.sock)

        return Connection


@contextmanager
def _opener(seconds: float) -> Iterator[urllib.request.OpenerDirector]:
    """Have connections that end after so long; what is not among the handlers is not done."""
    line = _Line()
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        line,
        urllib.request.HTTPErrorProcessor(),
        _Refusing(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    timer = threading.Timer(seconds, line.end)
    timer.daemon = True
    timer.start()
    try:
        yield opener
    finally:
        timer.cancel()


@cache
def _trust() -> ssl.SSLContext:
    """Return whom this machine trusts, which takes long to read."""
    return ssl.create_default_context()


def _said(answer: HTTPResponse) -> str:
    """Return the beginning of what a server has against a request, in one line."""
    try:
        return " ".join(answer.read(REASON_BYTES).decode("utf-8", "replace").split())
    except (OSError, HTTPException):
        return ""
