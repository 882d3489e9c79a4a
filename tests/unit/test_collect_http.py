"""Exporters and Prometheus over HTTP, as they answer, fail, drag and flood."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from gpuloop.loop.collect import exporters as exporters_module
from gpuloop.loop.collect.exporters import Exporters
from gpuloop.loop.collect.http import NoAnswer, fetch
from gpuloop.loop.collect.prometheus import Server
from gpuloop.schemas.component import Output
from gpuloop.schemas.messages import GpuSample, JobEvent, ServiceSample
from gpuloop.streams.collect.answers import NUMBERS
from gpuloop.streams.collect.config import Dcgm, Exporter, Jobs, Prometheus, Services

SCRAPE = 'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-0"} %d\n'

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def text(body: str, status: int = 200) -> Answer:
    def answer(request: BaseHTTPRequestHandler, _: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body.encode())

    return answer


class Site:
    """A local HTTP server that answers each path as it is told to."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.headers: list[dict[str, str]] = []
        self.ended = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers["Content-Length"])))

            def _answer(self, body: bytes) -> None:
                site.headers.append(dict(self.headers.items()))
                site.answers[self.path](self, body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        serve = partial(self._server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    yield found
    found.close()


class Heard:
    """Keeps what a source says, and ends it after so many times of saying something."""

    def __init__(self, *, words: int = 1) -> None:
        self.stop = threading.Event()
        self.outputs: list[Output] = []
        self.failures: dict[str, int] = {}
        self._words = words

    def said(self, outputs: Sequence[Output]) -> None:
        self.outputs += outputs
        self._words -= 1
        if self._words <= 0:
            self.stop.set()

    def failed(self, source: str, reason: str, count: int = 1) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + count

    def of(self, kind: type) -> list[Any]:
        return [one.message for one in self.outputs if isinstance(one.message, kind)]


def get(url: str, **changes: Any) -> bytes:
    asked = {"timeout_s": 5.0, "max_bytes": 1_000, "stop": threading.Event()} | changes
    return fetch(url, **asked)


def exporters(*targets: Exporter, timeout: float = 5.0) -> Exporters:
    config = Dcgm(targets=targets, timeout_seconds=timeout)
    return Exporters(config, fleet="f", boot=7, wall_us=lambda: 5_000)


def target(site: Site, node: str, **changes: Any) -> Exporter:
    return Exporter(url=site.url(f"/{node}"), node=node, **changes)


def test_an_answer_is_read_whole_up_to_its_bound(site: Site) -> None:
    site.answers["/a"] = text("x" * 1_000)
    assert get(site.url("/a")) == b"x" * 1_000
    with pytest.raises(NoAnswer, match="too large"):
        get(site.url("/a"), max_bytes=999)


def test_an_endless_answer_is_cut_off_at_its_bound(site: Site) -> None:
    def flood(request: BaseHTTPRequestHandler, _: bytes) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while not site.ended.is_set():
                request.wfile.write(b"x" * 10_000)
        except OSError:
            pass

    site.answers["/a"] = flood
    with pytest.raises(NoAnswer, match="too large"):
        get(site.url("/a"), max_bytes=100_000)


def test_an_answer_that_drips_is_given_up_in_time(site: Site) -> None:
    def drip(request: BaseHTTPRequestHandler, _: bytes) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while not site.ended.wait(0.05):
                request.wfile.write(b"x")
        except OSError:
            pass

    site.answers["/a"] = drip
    with pytest.raises(NoAnswer, match="too slow"):
        get(site.url("/a"), timeout_s=0.3, max_bytes=10**9)


@pytest.mark.parametrize(
    "beginning",
    [
        "HTTP/1.1 200 OK\r\nX-Name: ",
        "HTTP/1.1 503 Busy\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    ],
    ids=["headers", "a refusal", "the size of a chunk"],
)
def test_what_drips_before_the_body_is_given_up_in_time(site: Site, beginning: str) -> None:
    def drip(request: BaseHTTPRequestHandler, _: bytes) -> None:
        request.wfile.write(beginning.encode())
        try:
            while not site.ended.wait(0.05):
                request.wfile.write(b"x")
        except OSError:
            pass

    site.answers["/a"] = drip
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        get(site.url("/a"), timeout_s=0.3)
    assert time.monotonic() - began < 5.0


def test_an_answer_that_is_cut_short_is_none(site: Site) -> None:
    """Half a line of a scrape would be another number."""

    def die(request: BaseHTTPRequestHandler, _: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        request.wfile.write(b"x" * 50)
        request.close_connection = True

    site.answers["/a"] = die
    with pytest.raises(NoAnswer, match="50 bytes are missing"):
        get(site.url("/a"))


def test_nobody_is_followed_elsewhere_and_no_token_goes_there(site: Site) -> None:
    def elsewhere(request: BaseHTTPRequestHandler, _: bytes) -> None:
        request.send_response(302)
        request.send_header("Location", site.url("/b"))
        request.send_header("Content-Length", "0")
        request.end_headers()

    site.answers |= {"/a": elsewhere, "/b": text("secret")}
    with pytest.raises(NoAnswer, match=r"refused: .* 302"):
        get(site.url("/a"), headers={"Authorization": "Bearer token"})
    assert len(site.headers) == 1


def test_silence_is_given_up_in_time(site: Site) -> None:
    def nothing(request: BaseHTTPRequestHandler, _: bytes) -> None:
        site.ended.wait(20)

    site.answers["/a"] = nothing
    with pytest.raises(NoAnswer, match="too slow"):
        get(site.url("/a"), timeout_s=0.2)


def test_a_status_and_a_closed_port_are_told_apart(site: Site) -> None:
    site.answers["/a"] = text("no", 503)
    with pytest.raises(NoAnswer, match=r"refused: .*503"):
        get(site.url("/a"))
    with pytest.raises(NoAnswer, match="unreachable"):
        get("http://127.0.0.1:1/metrics")


def test_many_exporters_are_scraped_and_a_broken_one_spoils_none(site: Site) -> None:
    nodes = [f"n{number}" for number in range(40)]
    for number, node in enumerate(nodes):
        site.answers[f"/{node}"] = text(SCRAPE % number)
    site.answers["/n7"] = text("teapot", 418)
    site.answers["/n8"] = text(SCRAPE % 8 + "DCGM_FI_DEV_POWER_USAGE{ 3\n")
    heard = Heard(words=39)
    exporters(*(target(site, node, pool="p", rack="r") for node in nodes)).run(heard.stop, heard)
    samples = {sample.node: sample for sample in heard.of(GpuSample)}
    assert set(samples) == set(nodes) - {"n7"}
    assert samples["n39"].temperature_celsius == (39.0,)
    assert {(one.pool, one.rack, one.boot, one.seq) for one in samples.values()} == {
        ("p", "r", 7, 1)
    }
    assert heard.failures == {"refused": 1, "bad line": 1}


def test_exporters_that_hang_make_the_others_late_once_only(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters_module, "AT_ONCE", 2)
    degrees = iter(range(20, 90))

    def hang(request: BaseHTTPRequestHandler, _: bytes) -> None:
        site.ended.wait(20)

    site.answers["/n"] = lambda request, body: text(SCRAPE % next(degrees))(request, body)
    site.answers |= {f"/h{number}": hang for number in range(8)}
    targets = (target(site, "n"), *(target(site, f"h{number}") for number in range(8)))
    config = Dcgm(targets=targets, timeout_seconds=0.3, every_seconds=0.1)
    source = Exporters(config, fleet="f", boot=7, wall_us=lambda: 5_000)
    heard, began = Heard(words=6), time.monotonic()
    source.run(heard.stop, heard)
    assert len(heard.of(GpuSample)) == 6
    assert time.monotonic() - began < 4.0


def test_a_scrape_without_a_gpu_is_counted_and_told(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.answers["/n1"] = text("go_threads 7\n")
    heard = Heard()
    exporters(target(site, "n1")).scrape(target(site, "n1"), heard.stop, heard)
    assert heard.outputs == []
    assert heard.failures == {"no GPUs": 1}
    assert "an exporter names no GPUs" in caplog.text


def test_a_dead_exporter_is_told_when_it_goes_and_when_it_is_back(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    heard, source = Heard(words=9), exporters(target(site, "n1"))

    def scrapes(count: int) -> list[str]:
        caplog.clear()
        for _ in range(count):
            source.scrape(target(site, "n1"), heard.stop, heard)
        return caplog.messages

    site.answers["/n1"] = text("", 503)
    assert scrapes(3) == ["an exporter did not answer"]
    site.answers["/n1"] = text(SCRAPE % 50)
    assert scrapes(2) == ["an exporter answers again"]
    site.answers["/n1"] = text("", 503)
    assert scrapes(2) == ["an exporter did not answer"]
    assert sum(heard.failures.values()) >= 5


def test_a_repeated_scrape_says_nothing_and_is_counted(site: Site) -> None:
    site.answers["/n1"] = text(SCRAPE % 50)
    heard, source = Heard(words=9), exporters(target(site, "n1"))
    for _ in range(3):
        source.scrape(target(site, "n1"), heard.stop, heard)
    assert len(heard.of(GpuSample)) == 1
    assert heard.failures == {"repeated scrape": 2}


class Prom:
    """Prometheus' query API: one result per expression."""

    def __init__(self, site: Site) -> None:
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.times: set[str] = set()
        site.answers["/api/v1/query"] = self._answer

    def knows(self, query: str, value: float, **labels: str) -> None:
        self.results.setdefault(query, []).append({"metric": labels, "value": [1.5, str(value)]})

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        asked = parse_qs(body.decode())
        self.times.add(asked["time"][0])
        (query,) = asked["query"]
        if query == "broken(":
            text('{"status":"error","error":"parse error"}', 400)(request, b"")
            return
        data = {"resultType": "vector", "result": self.results.get(query, [])}
        text(json.dumps({"status": "success", "data": data}))(request, b"")


def server(site: Site, **config: Any) -> Server:
    return Server(
        Prometheus(url=site.url("/"), **config), fleet="f", boot=7, wall_us=lambda: 5_000_000
    )


def test_a_dead_server_is_told_of_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.answers["/api/v1/query"] = text("", 503)
    heard = Heard(words=4)
    server(site, jobs=Jobs(running="running"), every_seconds=0.05).run(heard.stop, heard)
    assert sum(heard.failures.values()) >= 3
    assert caplog.messages == ["no answer"]


def test_jobs_and_services_are_asked_for_and_told(site: Site) -> None:
    prom = Prom(site)
    asked = {name: f"q_{name}" for name in NUMBERS}
    for query in asked.values():
        prom.knows(query, 0.5, service="chat", pool="h100")
    prom.knows("running", 8, job_id="j1", node="n1", pool="h100", tenant="t", job_class="c")
    heard = Heard(words=2)
    source = server(
        site, services=Services(**asked, objective_p95_seconds=1), jobs=Jobs(running="running")
    )
    source.run(heard.stop, heard)
    (sample,), (event,) = heard.of(ServiceSample), heard.of(JobEvent)
    assert (sample.service, sample.event_time_us) == ("chat", 5_000_000)
    assert (event.job, event.kind, event.gpus) == ("j1", "progress", 8)
    assert prom.times == {"5.000"}


def test_a_round_without_every_answer_ends_no_job(site: Site) -> None:
    prom = Prom(site)
    prom.knows("running", 8, job_id="j1")
    source, heard = server(site, jobs=Jobs(running="running")), Heard(words=99)
    stop = threading.Event()
    source.jobs(stop, heard)
    broken = server(site, jobs=Jobs(running="running", queued="broken("))
    for _ in range(10):
        with pytest.raises(NoAnswer, match=r"400 .*parse error"):
            broken.jobs(stop, heard)
    site.answers["/api/v1/query"] = text("down", 503)
    for _ in range(10):
        with pytest.raises(NoAnswer):
            source.jobs(stop, heard)
    prom = Prom(site)
    prom.knows("running", 8, job_id="j1")
    assert [one.message.kind for one in source.jobs(stop, heard)] == []  # type: ignore[union-attr]


def test_a_refused_expression_is_counted_and_the_other_round_goes_on(site: Site) -> None:
    prom = Prom(site)
    prom.knows("running", 8, job_id="j1")
    asked = dict.fromkeys(NUMBERS, "broken(")
    source = server(
        site, services=Services(**asked, objective_p95_seconds=1), jobs=Jobs(running="running")
    )
    heard = Heard()
    source.run(heard.stop, heard)
    assert heard.failures == {"refused": 1}
    assert len(heard.of(JobEvent)) == 1


def test_a_token_is_sent_where_the_server_asks_for_one(site: Site, tmp_path: Path) -> None:
    Prom(site)
    (tmp_path / "token").write_text("s3cret\n")
    source = server(site, jobs=Jobs(running="running"), token_file=str(tmp_path / "token"))
    source.jobs(threading.Event(), Heard())
    assert site.headers[-1]["Authorization"] == "Bearer s3cret"
