"""The embedded ClickHouse engine as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from gpuloop.ops.stack.ports import free_ports

pytestmark = pytest.mark.stores


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    port = next(free_ports(tmp_path))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GPULOOP_")}
    own = {"GPULOOP_HTTP_PORT": str(port), "GPULOOP_STATE_DIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuloop.loop.services", "clickhouse"], env=kept | own
    )
    found = f"http://127.0.0.1:{port}"
    for _ in range(300):
        assert process.poll() is None
        try:
            urllib.request.urlopen(f"{found}/health", timeout=2).close()
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    yield found
    process.send_signal(signal.SIGTERM)
    assert process.wait(10.0) == 0


def query(url: str, sql: str, token: str) -> tuple[int, str]:
    body = json.dumps({"sql": sql}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{url}/query", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_other_processes_write_and_ask_over_http(url: str, tmp_path: Path) -> None:
    path = tmp_path / "clickhouse.token"
    for private in (path, tmp_path / "clickhouse"):
        assert private.stat().st_mode & 0o077 == 0
    token = path.read_text()
    assert query(url, "create table t (n Int64) engine = MergeTree order by n", token) == (200, "")
    assert query(url, "insert into t select number from numbers(1000)", token) == (200, "")
    assert query(url, "select sum(n) as total from t", token) == (200, '{"total":499500}\n')
    status, complaint = query(url, "selec 1", token)
    assert status == 400
    assert "Syntax error" in complaint
    assert query(url, "select 1", "guessed")[0] == 401


def test_a_client_of_clickhouse_writes_and_asks_as_of_a_server(url: str, tmp_path: Path) -> None:
    client = connected(url, (tmp_path / "clickhouse.token").read_text())
    client.command(
        "create table t (n Int64, s String) engine = MergeTree order by n"
        " settings non_replicated_deduplication_window = 10"
    )
    for _ in range(2):  # The second is the same batch again.
        client.raw_insert(
            "t", ["n", "s"], b'{"n":1,"s":"a\\nb"}\n{"n":2,"s":"c"}', fmt="JSONEachRow",
            settings={"insert_deduplication_token": "one"},
        )  # fmt: skip
    client.raw_insert("t", ["n", "s"], b'{"n":3,"s":"d"}', fmt="JSONEachRow")
    assert client.query("select n, s from t order by n").result_rows == [
        (1, "a\nb"), (2, "c"), (3, "d"),
    ]  # fmt: skip
    with pytest.raises(DatabaseError) as complaint:
        client.query("selec 1")
    assert complaint.value.code == 62
    client.close()


def test_a_guessed_password_opens_nothing(url: str) -> None:
    with pytest.raises(ClickHouseError):
        connected(url, "guessed")


def connected(url: str, password: str) -> Client:
    port = int(url.rpartition(":")[2])
    return clickhouse_connect.get_client(
        host="127.0.0.1", port=port, username="anyone", password=password,
        compress=False, autogenerate_session_id=False, query_retries=0,
    )  # fmt: skip
