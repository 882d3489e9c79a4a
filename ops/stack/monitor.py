"""Follows a run's topics in a thread and keeps its tally, for the live view and the report."""

import logging
import threading
from collections.abc import Mapping
from typing import Final

from gpuloop.loop.shells.broker import Broker, BrokerError, Partition
from gpuloop.ops.stack.tally import FROM_THE_BEGINNING, TOPICS, Tally
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import BadInput, Record, decode

BATCH: Final = 1000
POLL_SECONDS: Final = 0.25
RETRY_SECONDS: Final = 1.0
EVENTS: Final = tuple(
    name for name in CATALOGUE if name.startswith("telemetry.") or name == "market.offers"
)

log = logging.getLogger(__name__)


def ends(broker: Broker) -> dict[Partition, int]:
    """Return the end of every partition of the catalogue."""
    return broker.ends([part for name in CATALOGUE for part in broker.partitions(name)])


class Monitor:
    """Reads what happens from the start of a run; `tally` may be read under `lock`."""

    def __init__(self, broker: Broker, since: Mapping[Partition, int]) -> None:
        self.lock: Final = threading.Lock()
        self.tally: Final = Tally()
        self._broker: Final = broker
        self._since: Final = dict(since)
        self._positions = {part: at for part, at in since.items() if part.topic in TOPICS}
        whole = [part for part in self._positions if part.topic in FROM_THE_BEGINNING]
        self._positions |= broker.beginnings(whole)
        self._stop: Final = threading.Event()
        self._moved: Final = threading.Condition(self.lock)
        self._thread: Final = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def events(self) -> int:
        """Return how many records the world has written since the start of the run."""
        parts = [part for part in self._since if part.topic in EVENTS]
        return sum(end - self._since[part] for part, end in self._broker.ends(parts).items())

    def catch_up(self, seconds: float) -> bool:
        """Wait until everything written so far is counted; return whether it is."""
        target = self._broker.ends(list(self._positions))
        with self._moved:
            return self._moved.wait_for(
                lambda: all(self._positions[part] >= end for part, end in target.items()), seconds
            )

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join(RETRY_SECONDS * 5)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except BrokerError as error:
                # The broker is being restarted, or is gone; the supervisor says which.
                log.info("the monitor lost the broker: %s", error)
                self._stop.wait(RETRY_SECONDS)

    def _follow(self) -> None:
        consumer = self._broker.consumer(self._positions)
        try:
            while not self._stop.is_set():
                records = consumer.poll(max_records=BATCH, timeout_s=POLL_SECONDS)
                with self._moved:
                    for record in records:
                        self._take(record)
                    self._moved.notify_all()
        finally:
            consumer.close()

    def _take(self, record: Record) -> None:
        self._positions[Partition(record.topic, record.partition)] = record.offset + 1
        try:
            message = decode(record)
        except BadInput:
            return  # Whose business it is has put it on deadletters.
        self.tally.take(message, record.timestamp_ms)
