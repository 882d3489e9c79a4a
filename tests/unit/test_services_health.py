"""What a process answers over HTTP, and to whom."""

import json
import logging
import socket
import sys
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from gpuloop.loop.services.health import Answer, Health, HealthServer
from gpuloop.loop.services.keeper import LEASE_US, lease
from gpuloop.loop.services.process import configure_logging, serving
from gpuloop.loop.services.repeats import Repeats
from gpuloop.loop.settings import Settings
from gpuloop.schemas.codec import Record, decode
from gpuloop.schemas.messages import Control
from gpuloop.schemas.messages.control import KillLease


def shout(body: bytes) -> Answer:
    return Answer(status=200, content_type="text/plain", body=body.upper())


def gone(body: bytes) -> Answer:
    raise BrokenPipeError("the client went away")


def broken(body: bytes) -> Answer:
    raise KeyError("a bug of ours")


TOKEN = "known to its owner"
ROUTES = {"/shout": shout, "/gone": gone, "/broken": broken}


@pytest.fixture
def served() -> Iterator[tuple[Health, str]]:
    health = Health("decider")
    server = HealthServer(health, host="127.0.0.1", port=0, routes=ROUTES, token=TOKEN)
    yield health, f"http://127.0.0.1:{server.port}"
    server.close()


def ask(
    url: str, body: bytes | None = None, kind: str = "application/json", token: str = TOKEN
) -> tuple[int, bytes]:
    headers = {"Content-Type": kind, "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def report(url: str) -> tuple[int, dict[str, Any]]:
    status, body = ask(f"{url}/health")
    return status, json.loads(body)


def test_a_process_is_not_ready_until_it_says_so(served: tuple[Health, str]) -> None:
    health, url = served
    assert report(url)[0] == 503
    health.progress("cut 1", {"state.pools/0": 5})
    status, found = report(url)
    assert status == 200
    assert found["service"] == "decider"
    assert (found["detail"], found["positions"]) == ("cut 1", {"state.pools/0": 5})
    assert found["last_progress_wall_us"] > 0
    health.waiting("no fleet clock")
    assert report(url)[0] == 503


def test_metrics_are_in_the_text_format_of_prometheus(served: tuple[Health, str]) -> None:
    health, url = served
    health.progress("ready")
    status, body = ask(f"{url}/metrics")
    assert status == 200
    assert b"gpuloop_ready 1.0" in body


@pytest.mark.parametrize("token", ["", "guessed", "known to its owne"])
def test_a_route_answers_only_who_has_the_token(served: tuple[Health, str], token: str) -> None:
    _, url = served
    status, body = ask(f"{url}/shout", b'"a"', token=token)
    assert (status, b"asks for a token" in body) == (401, True)
    assert TOKEN.encode() not in body
    assert ask(f"{url}/other", b'"a"', token=token)[0] == 404


def test_whom_no_token_would_help_is_not_told_of_one(served: tuple[Health, str]) -> None:
    _, url = served
    said = post(url, {"Host": "evil.example", "Authorization": "", "Content-Length": "3"})
    assert said.startswith(b"HTTP/1.0 404")


def test_a_route_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="token"):
        HealthServer(Health("decider"), host="127.0.0.1", port=0, routes=ROUTES)


def test_a_route_answers_json_only(served: tuple[Health, str]) -> None:
    _, url = served
    assert ask(f"{url}/shout", b'"a"') == (200, b'"A"')
    assert ask(f"{url}/shout", b'"a"', kind="text/plain")[0] == 404
    assert ask(f"{url}/other", b'"a"')[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "10.0.0.1", "[bad", ""])
def test_a_route_answers_only_under_a_name_of_this_machine(
    served: tuple[Health, str], host: str
) -> None:
    _, url = served
    port = url.rpartition(":")[2]
    for own in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert post(url, {"Host": own, "Content-Length": "3"}).startswith(b"HTTP/1.0 200")
    assert post(url, {"Host": host, "Content-Length": "3"}).startswith(b"HTTP/1.0 404")


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "1000001", "-1", ""])
def test_a_length_that_is_none_is_refused(served: tuple[Health, str], length: str) -> None:
    _, url = served
    port = url.rpartition(":")[2]
    answer = post(url, {"Host": f"localhost:{port}", "Content-Length": length})
    assert answer.startswith(b"HTTP/1.0 404")


def test_a_client_that_goes_away_is_nothing_to_tell_and_a_bug_is(
    served: tuple[Health, str], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _, url = served
    own = {"Host": "localhost", "Content-Length": "3"}
    assert post(url, own, to="/gone") == b""
    assert (capfd.readouterr().err, caplog.records) == ("", [])
    assert post(url, own, to="/broken") == b""
    assert [record.message for record in caplog.records] == ["an answer failed"]


def post(url: str, headers: dict[str, str], to: str = "/shout") -> bytes:
    host, _, port = url.removeprefix("http://").rpartition(":")
    lines = [
        f"POST {to} HTTP/1.0",
        "Content-Type: application/json",
    ]
    headers = {"Authorization": f"Bearer {TOKEN}"} | headers
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall("\r\n".join([*lines, "", '"a"']).encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            return answer.read()


def test_the_port_is_free_again_after_a_service() -> None:
    with serving("keeper", Settings()) as process:
        process.health.progress("ready")
    assert not process.health.report().ready


def test_a_lease_lasts_three_renewals() -> None:
    encoded = lease("local", 1_000)
    record = Record(
        topic=encoded.topic,
        partition=0,
        offset=0,
        timestamp_ms=0,
        key=encoded.key,
        headers=encoded.headers,
        value=encoded.value,
    )
    control = decode(record)
    assert isinstance(control, Control)
    assert control.body == KillLease(expires_wall_us=1_000 + LEASE_US)
    assert encoded.key == b"lease"


def complaint(seconds: float, text: str, name: str = "librdkafka") -> logging.LogRecord:
    record = logging.LogRecord(name, logging.ERROR, "", 0, text, None, None)
    record.created = seconds
    return record


def test_a_librarys_repeated_complaint_is_written_once_and_then_counted() -> None:
    few = Repeats(every_seconds=30.0)
    written = [
        record
        for second in range(61)
        for record in (complaint(second, f"FAIL [c-{second}]: refused after {second} ms"),)
        if few.filter(record)
    ]
    assert [(record.created, vars(record)["held_back"]) for record in written] == [
        (0, 0),
        (30, 29),
        (60, 29),
    ]
    assert few.filter(complaint(60, "GETPID [c-1]: another complaint"))


def test_our_own_lines_are_all_written_however_alike() -> None:
    few = Repeats()
    assert all(few.filter(complaint(0, "the same", "decider")) for _ in range(5))


def test_what_ends_a_thread_is_logged_like_what_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging("causes", "info")
    thread = threading.Thread(target=lambda: [][1], name="deep-tier")
    thread.start()
    thread.join()
    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["message"], said["ended_thread"]) == ("a thread failed", "deep-tier")
    assert "IndexError" in said["exception"]


@pytest.mark.parametrize(("word", "status"), [(TOKEN, 200), ("guessed", 401)])
def test_an_interface_takes_the_token_as_anyones_password(word: str, status: int) -> None:
    secret = b64encode(f"anyone:{word}".encode()).decode()
    found = put({"Authorization": f"Basic {secret}"}, anywhere=False)
    assert found[0] == status
    assert (found[1] == b"this||body") == (status == 200)


@pytest.mark.parametrize(("anywhere", "status"), [(False, 404), (True, 200)])
def test_only_a_token_that_was_given_out_opens_under_other_names(
    anywhere: bool, status: int
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "clickhouse-embedded:8080"}
    assert put(headers, anywhere=anywhere)[0] == status


def put(headers: dict[str, str], *, anywhere: bool) -> tuple[int, bytes]:
    """Return what an interface answers to a body with these headers."""

    def repeat(asked: Mapping[str, str], body: bytes) -> Answer:
        text = f"{asked['what']}|{asked['empty']}|".encode() + body
        return Answer(status=200, content_type="text/plain", body=text)

    server = HealthServer(
        Health("clickhouse"), host="127.0.0.1", port=0, token=TOKEN,
        interface=repeat, anywhere=anywhere,
    )  # fmt: skip
    url = f"http://127.0.0.1:{server.port}/?what=this&empty="
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=b"body", headers=headers), timeout=5
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    finally:
        server.close()
