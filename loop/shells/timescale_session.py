"""A session with PostgreSQL that never waits for good.

The server ends its own statements in time; a server that stands still cannot, and its kernel goes
on acknowledging packets for it. So the client counts as well.
"""

from collections.abc import Generator
from typing import Any, Final, TypeVar

import psycopg

from gpuloop.loop.shells import clock
from gpuloop.schemas.units import SECOND_US

CONNECT_SECONDS: Final = 5
STATEMENT_MS: Final = 60_000
ANSWER_SECONDS: Final = 75.0
"""Longer than the server gives any statement: who says nothing for so long stands still."""

SILENT_MS: Final = 20_000
"""After so long without an acknowledgement the network is taken for gone."""

SESSION: Final = (
    f"-c timezone=UTC -c statement_timeout={STATEMENT_MS} -c lock_timeout=3000"
    " -c client_min_messages=warning"
)

T = TypeVar("T")


class Session(psycopg.Connection[Any]):
    """A connection on which every answer is due within `ANSWER_SECONDS`."""

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **options: Any) -> T:
        """Wait for an answer; raises `psycopg.OperationalError`, closed, when it is overdue."""
        return super().wait(self._watched(gen), *arguments, **options)

    def _watched(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        overdue_us = clock.monotonic_us() + round(ANSWER_SECONDS * SECOND_US)
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # Falsy when only some time has passed.
                if not ready and clock.monotonic_us() >= overdue_us:
                    self.close()
                    raise psycopg.OperationalError(f"no answer for {ANSWER_SECONDS:g} s")
                wanted = gen.send(ready)
        except StopIteration as done:
            value: T = done.value
            return value


def connect(dsn: str, *, name: str) -> Session:
    """Return a new session under an application's name; raises `psycopg.OperationalError`."""
    return Session.connect(
        dsn,
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=SILENT_MS,
        application_name=name,
        # A database without an encoding of its own would answer in bytes.
        client_encoding="utf8",
        options=SESSION,
    )
