"""Jobs and services out of a Prometheus server, by asking it.

Why asking and not being written to: remote write would need an open port, snappy and protobuf, and
the mapping of metrics to jobs in a language of our own. PromQL is that language, users have it, and
recording rules and federation work as they are. What is missed is what happens between two beats,
which metrics do not say anyway. A round counts only when every expression was answered.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from gpuloop.loop.collect.http import NoAnswer, fetch
from gpuloop.loop.collect.source import Listener
from gpuloop.loop.shells.clock import Pace
from gpuloop.loop.shells.outage import Outage
from gpuloop.schemas.component import Output
from gpuloop.schemas.identity import source_event_id
from gpuloop.schemas.messages import JobEvent, ServiceSample
from gpuloop.schemas.units import SECOND_US
from gpuloop.streams.collect import answers
from gpuloop.streams.collect.answers import NotAVector, Series
from gpuloop.streams.collect.config import Prometheus
from gpuloop.streams.collect.jobs import Answered, Jobs, gauges
from gpuloop.streams.collect.readings import Stamp

log: Final = logging.getLogger(__name__)

MAX_BYTES: Final = 32 * 1024 * 1024


class Server:
    """Asks one server on every beat."""

    name = "prometheus"

    def __init__(
        self, config: Prometheus, *, fleet: str, boot: int, wall_us: Callable[[], int]
    ) -> None:
        self.every_us = round(config.every_seconds * SECOND_US)
        self._config: Final = config
        self._fleet: Final = fleet
        self._boot: Final = boot
        self._wall_us: Final = wall_us
        self._jobs: Final = Jobs(fleet, boot)
        self._seq = 1

    def run(self, stop: threading.Event, listener: Listener) -> None:
        """Ask at once and then on every beat, until `stop`."""
        pace = Pace(self.every_us)
        asks = [(ask, Outage(log), {"asked": ask.__name__}) for ask in (self.services, self.jobs)]
        while True:
            for ask, outage, about in asks:
                try:
                    listener.said(ask(stop, listener))
                    outage.right("answers again", about)
                except NoAnswer as error:
                    if error.reason != "stopped":
                        outage.wrong("no answer", {**about, "why": str(error)})
                        listener.failed(self.name, error.reason)
                except NotAVector as error:
                    outage.wrong("an expression was refused", {**about, "why": str(error)})
                    listener.failed(self.name, "expression refused")
            if not pace.wait(stop):
                return

    def services(self, stop: threading.Event, listener: Listener) -> list[Output]:
        """Return a sample of every service that the server knows all about."""
        config = self._config.services
        if config is None:
            return []
        now_us = self._wall_us()
        found = {name: self._ask(getattr(config, name), now_us, stop) for name in answers.NUMBERS}
        samples, partial = answers.services(
            config,
            found,
            fleet=self._fleet,
            stamp=Stamp(time_us=now_us, boot=self._boot, seq=self._seq),
            window_us=self.every_us,
        )
        self._seq += len(samples)
        if partial:
            listener.failed(self.name, "service without a value", partial)
        return [_output(one, one.service, "services") for one in samples]

    def jobs(self, stop: threading.Event, listener: Listener) -> list[Output]:
        """Return what happened to jobs since the last round."""
        config = self._config.jobs
        if config is None:
            return []
        now_us = self._wall_us()
        asked = (config.running, config.queued, config.failed, config.gpu_seconds_done)
        running, queued, failed, done = (
            self._ask(one, now_us, stop) if one else [] for one in asked
        )
        jobs, nameless = gauges(running)
        waiting, nameless_too = gauges(queued)
        if nameless + nameless_too:
            listener.failed(self.name, "job without a name", nameless + nameless_too)
        answered = Answered(
            running=jobs,
            queued=waiting,
            failed={one.name("job_id") for one in failed if one.number},
            gpu_us_done={
                one.name("job_id"): round(one.number * SECOND_US)
                for one in done
                if one.number is not None and one.number >= 0
            },
        )
        return [_output(one, one.job, "jobs") for one in self._jobs.hear(answered, now_us)]

    def _ask(self, query: str, now_us: int, stop: threading.Event) -> list[Series]:
        """Return the series of an expression at a time, the same for a whole round."""
        headers = {"Accept": "application/json"}
        if self._config.token_file:
            try:
                token = Path(self._config.token_file).read_text().strip()
            except OSError as error:
                raise NoAnswer("refused", f"{error.filename}: {error.strerror}") from None
            headers["Authorization"] = f"Bearer {token}"
        asked = {"query": query, "time": f"{now_us / SECOND_US:.3f}"}
        body = fetch(
            self._config.url.rstrip("/") + "/api/v1/query",
            timeout_s=self._config.timeout_seconds,
            max_bytes=MAX_BYTES,
            stop=stop,
            headers=headers,
            body=urlencode(asked).encode(),
        )
        return answers.vector(body)


def _output(message: JobEvent | ServiceSample, key: str, source: str) -> Output:
    return Output(
        topic=message.TYPE,
        key=key,
        message=message,
        event_id=source_event_id(message.fleet, source, message.boot, message.seq),
        time_us=message.event_time_us,
    )
