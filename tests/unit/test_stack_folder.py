"""A stack's folder, ports and processes are its own, and a stranger's are left alone."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpuloop.ops.stack import ports, process
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.state import ProcessState, write
from processes import PATIENCE_SECONDS, SLEEPER, python, stack_state


def test_child_sees_no_settings_of_ours_but_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPULOOP_SPEED", "7")
    monkeypatch.setenv("OTHER", "kept")
    log = tmp_path / "log"
    show = (
        "import os; print({k: v for k, v in os.environ.items() if k in ('OTHER',) or 'GPU' in k})"
    )
    child = process.Child(python(show, environment={"GPULOOP_SEED": "1"}), log)
    assert child.reap(PATIENCE_SECONDS)
    assert log.read_text().strip() in (
        "{'OTHER': 'kept', 'GPULOOP_SEED': '1'}",
        "{'GPULOOP_SEED': '1', 'OTHER': 'kept'}",
    )


def test_log_is_bounded_and_keeps_one_older_file(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("ab") as file:
        file.write(b"a" * 100)
        file.flush()
        process.bound_log(log, 50)
        assert log.stat().st_size == 0
        file.write(b"later")
    assert log.read_bytes() == b"later"
    assert (tmp_path / "x.log.1").read_bytes() == b"a" * 100


def test_second_supervisor_in_a_folder_is_refused_and_told_who_is_first(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    layout.create()
    with layout.locked():
        assert layout.owner() == os.getpid()
        with (
            pytest.raises(StackError, match=f"already up in .*process {os.getpid()}"),
            Layout(tmp_path / "state").locked(),
        ):
            pass
    assert layout.owner() is None
    assert not layout.lock.exists()


def test_wiping_keeps_keys_and_refuses_a_folder_of_somebody_else(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    layout.create()
    (layout.keys / "learner.pem").parent.mkdir()
    (layout.keys / "learner.pem").write_text("key")
    (layout.root / "twin.sqlite").write_text("world")
    layout.wipe()
    assert sorted(path.name for path in layout.root.iterdir()) == ["keys", "logs"]
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").touch()
    with pytest.raises(StackError, match="not a gpuloop state folder"):
        Layout(home).create()


def test_requested_port_that_is_taken_is_named_and_a_free_one_is_found_instead(
    tmp_path: Path,
) -> None:
    with socket.socket() as taken:
        port = next(ports.free_ports(tmp_path))
        taken.bind((ports.LOOPBACK, port))
        taken.listen()
        with pytest.raises(StackError, match=f"port {port}, requested for Kafka"):
            ports.requested(port, purpose="Kafka")
        assert next(ports.free_ports(tmp_path)) != port
    assert ports.requested(port, purpose="Kafka") == port
    with pytest.raises(StackError, match="99999, requested for Kafka, is not between"):
        ports.requested(99_999, purpose="Kafka")


def test_two_folders_search_ports_in_different_places() -> None:
    first, second = (next(ports.free_ports(Path(folder))) for folder in ("/srv/a", "/srv/b"))
    assert abs(first - second) > 20


def test_leftover_of_a_dead_supervisor_is_ended_but_not_a_stranger_with_its_pid(
    tmp_path: Path,
) -> None:
    from gpuloop.ops.stack.run import end_leftovers

    layout = Layout(tmp_path / "state")
    layout.create()
    with subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True) as left:
        born = process.created(left.pid)
        assert born is not None
        write(
            layout.state,
            stack_state(ProcessState(name="x", phase="ready", detail="", pid=left.pid)),
        )
        assert end_leftovers(layout) == []
        same = ProcessState(name="x", phase="ready", detail="", pid=left.pid, created=born)
        write(layout.state, stack_state(same))
        assert end_leftovers(layout) == ["x"]
