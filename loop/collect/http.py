"""One answer over HTTP, bounded in size and in time as a whole."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Final, Literal

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
        NoAnswer: no connection, a status other than 2xx, too much, or too late.

    """
    until = time.monotonic() + timeout_s
    request = urllib.request.Request(  # noqa: S310 - Settings admit http and https only.
        url, data=body, headers={"User-Agent": "gpuloop", **(headers or {})}
    )
    found = bytearray()
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            while chunk := answer.read1(CHUNK):
                found += chunk
                if len(found) > max_bytes:
                    raise NoAnswer("too large", f"{url}: more than {max_bytes} bytes")
                if time.monotonic() > until:
                    raise NoAnswer("too slow", f"{url}: not whole after {timeout_s:g} s")
                if stop.is_set():
                    raise NoAnswer("stopped", url)
    except urllib.error.HTTPError as error:
        raise NoAnswer("refused", f"{url}: {error.code} {error.reason} {_said(error)}") from None
    except TimeoutError:
        raise NoAnswer("too slow", f"{url}: silent for {timeout_s:g} s") from None
    except (OSError, HTTPException, ValueError) as error:
        late = isinstance(getattr(error, "reason", None), TimeoutError)
        raise NoAnswer("too slow" if late else "unreachable", f"{url}: {error}") from None
    return bytes(found)


def _said(error: urllib.error.HTTPError) -> str:
    """Return the beginning of what a server has against a request, in one line."""
    try:
        return " ".join(error.read(REASON_BYTES).decode("utf-8", "replace").split())
    except (OSError, HTTPException):
        return ""
