"""DCGM exporters, many at once: one scrape of each per beat.

Samples go to `telemetry.gpu` though one process sees many nodes: the framer reads its own position
off the newest frame of a partition, so nobody else may write frames there.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from gpuloop.loop.collect.http import NoAnswer, fetch
from gpuloop.loop.collect.source import Listener, raised, sampled
from gpuloop.loop.shells.clock import Pace
from gpuloop.loop.shells.outage import Outage
from gpuloop.schemas.units import SECOND_US
from gpuloop.streams.collect import dcgm
from gpuloop.streams.collect.config import Dcgm, Exporter

log: Final = logging.getLogger(__name__)

AT_ONCE: Final = 32
ILL_AT_ONCE: Final = 16
"""How many are asked at once of those that did not answer before."""
MAX_BYTES: Final = 8 * 1024 * 1024
"""A hundred times the scrape of a node with eight GPUs."""
MAX_NODES: Final = 4096


class Exporters:
    """Scrapes its targets; a target that fails is counted, and asked again."""

    name = "dcgm"

    def __init__(self, config: Dcgm, *, fleet: str, boot: int, wall_us: Callable[[], int]) -> None:
        self.every_us = round(config.every_seconds * SECOND_US)
        self._config: Final = config
        self._fleet: Final = fleet
        self._boot: Final = boot
        self._wall_us: Final = wall_us
        self._nodes: Final[dict[str, dcgm.Node]] = {}
        self._lock: Final = threading.Lock()
        self._outages: Final = {one.url: Outage(log) for one in config.targets}

    def run(self, stop: threading.Event, listener: Listener) -> None:
        """Scrape every target at once and then on every beat, until `stop`.

        A target that did not answer is asked again beside the others: a rack that hangs must not
        make the rest of the fleet old.
        """
        pace = Pace(self.every_us)
        targets = self._config.targets
        asked: dict[int, Future[bool]] = {}
        with (
            ThreadPoolExecutor(min(AT_ONCE, len(targets)), thread_name_prefix="dcgm") as well,
            ThreadPoolExecutor(min(ILL_AT_ONCE, len(targets)), thread_name_prefix="ill") as ill,
        ):
            while True:
                round_ = []
                for place, target in enumerate(targets):
                    last = asked.get(place)
                    if last is not None and not last.done():
                        continue
                    answers = last is None or last.result()
                    threads = well if answers else ill
                    asked[place] = threads.submit(self.scrape, target, stop, listener)
                    if answers:
                        round_.append(asked[place])
                wait(round_)
                if not pace.wait(stop):
                    return

    def scrape(self, target: Exporter, stop: threading.Event, listener: Listener) -> bool:
        """Scrape one target, tell what it says, and return whether it answered."""
        if stop.is_set():
            return True
        now_us, about = self._wall_us(), {"url": target.url}
        outage = self._outages[target.url]
        try:
            body = fetch(
                target.url,
                timeout_s=self._config.timeout_seconds,
                max_bytes=MAX_BYTES,
                stop=stop,
            )
        except NoAnswer as error:
            if error.reason != "stopped":
                outage.wrong("an exporter did not answer", {**about, "why": str(error)})
                listener.failed(self.name, error.reason)
            return False
        scrapes, bad = dcgm.read(body.decode("utf-8", "replace"), node=target.node)
        if bad:
            listener.failed(self.name, "bad line", bad)
        if not scrapes:
            outage.wrong("an exporter names no GPUs", about)
            listener.failed(self.name, "no GPUs")
        else:
            outage.right("an exporter answers again", about)
        for node, scrape in sorted(scrapes.items()):
            self._tell(node, scrape, now_us, target, listener)
        return True

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
