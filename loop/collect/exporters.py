"""DCGM exporters, many at once: one scrape of each per beat.

Samples go to `telemetry.gpu` though one process sees many nodes: the framer reads its own position
off the newest frame of a partition, so nobody else may write frames there.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from gpuloop.loop.collect.http import NoAnswer, fetch
from gpuloop.loop.collect.source import Listener, raised, sampled
from gpuloop.loop.shells.clock import Pace
from gpuloop.schemas.units import SECOND_US
from gpuloop.streams.collect import dcgm
from gpuloop.streams.collect.config import Dcgm, Exporter

log: Final = logging.getLogger(__name__)

AT_ONCE: Final = 32
MAX_BYTES: Final = 8 * 1024 * 1024
"""A hundred times the scrape of a node with eight GPUs."""
MAX_NODES: Final = 4096


class Exporters:
    """Scrapes its targets; a target that fails is counted, and asked again at the next beat."""

    name = "dcgm"

    def __init__(self, config: Dcgm, *, fleet: str, boot: int, wall_us: Callable[[], int]) -> None:
        self.every_us = round(config.every_seconds * SECOND_US)
        self._config: Final = config
        self._fleet: Final = fleet
        self._boot: Final = boot
        self._wall_us: Final = wall_us
        self._nodes: Final[dict[str, dcgm.Node]] = {}
        self._lock: Final = threading.Lock()

    def run(self, stop: threading.Event, listener: Listener) -> None:
        """Scrape every target at once and then on every beat, until `stop`."""
        pace = Pace(self.every_us)
        workers = min(AT_ONCE, len(self._config.targets))
        with ThreadPoolExecutor(workers, thread_name_prefix="dcgm") as threads:
            while True:
                done = [
                    threads.submit(self.scrape, target, stop, listener)
                    for target in self._config.targets
                ]
                for one in done:
                    one.result()
                if not pace.wait(stop):
                    return

    def scrape(self, target: Exporter, stop: threading.Event, listener: Listener) -> None:
        """Scrape one target and tell what it says."""
        if stop.is_set():
            return
        now_us = self._wall_us()
        try:
            body = fetch(
                target.url,
                timeout_s=self._config.timeout_seconds,
                max_bytes=MAX_BYTES,
                stop=stop,
            )
        except NoAnswer as error:
            if error.reason != "stopped":
                log.warning("an exporter did not answer", extra={"why": str(error)})
                listener.failed(self.name, error.reason)
            return
        scrapes, bad = dcgm.read(body.decode("utf-8", "replace"), node=target.node)
        if bad:
            listener.failed(self.name, "bad line", bad)
        if not scrapes:
            listener.failed(self.name, "no GPUs")
        for node, scrape in sorted(scrapes.items()):
            self._tell(node, scrape, now_us, target, listener)

    def _tell(
        self, name: str, scrape: dcgm.NodeScrape, now_us: int, target: Exporter, listener: Listener
    ) -> None:
        with self._lock:
            if name not in self._nodes and len(self._nodes) >= MAX_NODES:
                listener.failed(self.name, "too many nodes")
                return
            node = self._nodes.setdefault(name, dcgm.Node(self._fleet, self._boot))
            told = node.hear(
                name, scrape, now_us, pool=target.pool, rack=target.rack, billing=target.billing
            )
        for reason in sorted(set(told.refused)):
            listener.failed(self.name, reason, told.refused.count(reason))
        if told.repeated:
            listener.failed(self.name, "repeated scrape")
        outputs = [raised(fault) for fault in told.faults]
        listener.said([*outputs, *([sampled(told.sample)] if told.sample else [])])
