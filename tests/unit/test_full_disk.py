"""A full disk ends no supervisor: what it cannot write is left, what runs goes on."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import typer

from gpuloop.ops.cli.live import PlainView
from gpuloop.ops.stack import notices, process
from gpuloop.ops.stack.state import read, write
from processes import stack_state


def no_room(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_runs_stays_written_down_as_it_was_and_nothing_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "stack.json"
    write(path, stack_state())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", no_room)
        write(path, stack_state(phase="stopping"))
    assert read(path) == stack_state()
    assert list(tmp_path.iterdir()) == [path]
    assert "No space left" in caplog.text
    write(path, stack_state(phase="stopping"))
    assert read(path) == stack_state(phase="stopping")


def test_another_trouble_than_room_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(PermissionError):
        write(tmp_path / "stack.json", stack_state())


def test_a_line_that_finds_no_room_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[int] = []
    monkeypatch.setattr(typer, "echo", no_room)
    PlainView(lambda: gone.append(1)).say("x")
    assert gone == []


def test_a_log_that_is_too_long_is_emptied_although_no_older_file_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"a" * 100)
    monkeypatch.setattr(process.shutil, "copyfile", no_room)
    process.bound_log(log, 50)
    assert log.stat().st_size == 0


def test_a_disk_that_fills_up_is_said_before_it_is_full() -> None:
    [said] = notices.of_room(Path("/state"), 200 * 2**20)
    assert said.startswith("200 MiB of room in /state")
    assert notices.of_room(Path("/state"), notices.ROOM_BYTES) == []
