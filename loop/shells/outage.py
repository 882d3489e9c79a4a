"""Tells an outage when it begins and when it ends: what is asked every second fills no log."""

import logging
from typing import Final

from gpuloop.loop.shells.clock import monotonic_us
from gpuloop.schemas.units import SECOND_US


class Outage:
    """What is wrong with one thing that is asked again and again, by one thread at a time."""

    def __init__(self, log: logging.Logger) -> None:
        self._log: Final = log
        self._wrong = ""
        self._since_us = 0

    def wrong(self, what: str, about: dict[str, str]) -> None:
        """Log `what` unless it was wrong before; `about` stands beside it."""
        if what == self._wrong:
            return
        if not self._wrong:
            self._since_us = monotonic_us()
        self._wrong = what
        self._log.warning(what, extra=about)

    def right(self, what: str, about: dict[str, str]) -> None:
        """Log `what` and for how long it was not so, unless nothing was wrong."""
        if not self._wrong:
            return
        self._wrong = ""
        away_s = round((monotonic_us() - self._since_us) / SECOND_US, 1)
        self._log.info(what, extra={**about, "away_seconds": away_s})
