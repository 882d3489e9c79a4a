"""The registry of public traces, and what its downloads do when the network misbehaves."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpuloop.twin import traces
from gpuloop.twin.traces import TRACES, Trace, TraceError, TraceFile, get_trace, list_traces

CONTENT = b"timestamp,duration\n" + b"2017-10-16 00:00:00,1.0\n" * 20_000


class Host(BaseHTTPRequestHandler):
    """Serves CONTENT; honours ranges; `cut` ends an answer early, `asked` records ranges."""

    cut = 0
    asked: list[str | None] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        type(self).asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = CONTENT[first:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: type(self).cut or len(body)])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Host, "cut", 0)
    monkeypatch.setattr(Host, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/jobs.csv"
    server.shutdown()
    thread.join()
    server.server_close()


def publish(monkeypatch: pytest.MonkeyPatch, url: str, *, sha256: str = "", path: str) -> None:
    digest = sha256 or hashlib.sha256(CONTENT).hexdigest()
    file = TraceFile(path=path, url=url, sha256=digest, size=len(CONTENT))
    trace = Trace(name="it", about="", source="", licence="", paths=(path,), files=(file,))
    monkeypatch.setattr(traces, "TRACES", (trace,))


def test_every_trace_names_source_and_licence_and_checks_what_it_downloads() -> None:
    assert len({trace.name for trace in TRACES}) == len(TRACES)
    for trace in TRACES:
        assert trace.source
        assert trace.licence
        for file in trace.files:
            assert file.path in trace.paths
            assert file.url.startswith("https://raw.githubusercontent.com/")
            assert len(file.sha256) == 64


def test_listing_says_what_is_at_hand(tmp_path: Path) -> None:
    (tmp_path / "openb").mkdir()
    (tmp_path / "openb" / "nodes.csv").write_text("sn\n")
    status = {status.trace.name: status for status in list_traces(tmp_path)}
    assert status["openb"].at_hand == ("openb/nodes.csv",)
    assert status["openb"].missing == ("openb/pods.csv",)
    assert not status["openb"].complete
    assert all(not status.at_hand for status in list_traces(None))


def test_download_is_checked_and_compressed(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, host, path="philly/jobs.csv.gz")
    seen: list[int] = []
    status = get_trace("it", tmp_path, lambda name, done, size: seen.append(done))
    assert status.complete
    assert seen[-1] == len(CONTENT)
    with gzip.open(tmp_path / "philly/jobs.csv.gz") as file:
        assert file.read() == CONTENT
    assert [path.name for path in (tmp_path / "philly").iterdir()] == ["jobs.csv.gz"]


def test_interrupted_download_is_resumed(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, host, path="jobs.csv")
    monkeypatch.setattr(Host, "cut", 100_000)
    with pytest.raises(TraceError):
        get_trace("it", tmp_path)
    kept = (tmp_path / "jobs.csv.part").stat().st_size
    assert 0 < kept <= 100_000
    monkeypatch.setattr(Host, "cut", 0)
    assert get_trace("it", tmp_path).complete
    assert Host.asked == [None, f"bytes={kept}-"]
    assert (tmp_path / "jobs.csv").read_bytes() == CONTENT


def test_wrong_content_is_refused_and_removed(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, host, sha256="0" * 64, path="jobs.csv")
    with pytest.raises(TraceError, match="SHA-256"):
        get_trace("it", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unreachable_host_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "http://127.0.0.1:1/jobs.csv", path="jobs.csv")
    with pytest.raises(TraceError, match=r"cannot fetch http://127\.0\.0\.1:1/jobs\.csv"):
        get_trace("it", tmp_path)


def test_file_at_hand_is_not_fetched_again(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, host, path="jobs.csv")
    (tmp_path / "jobs.csv").write_bytes(b"mine")
    assert get_trace("it", tmp_path).complete
    assert Host.asked == []


def test_unknown_and_derived_traces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="known are philly"):
        get_trace("nothing", tmp_path)
    with pytest.raises(TraceError, match="derived"):
        get_trace("gcp-prices", tmp_path)
