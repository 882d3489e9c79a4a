"""Why a service ended is one line in its log, and the same words in `gpuloop status`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpuloop.ops.stack.last_words import last_words

RAISES = """
import sys
from gpuloop.loop.services.process import configure_logging
from gpuloop.loop.shells.store import StoreError
configure_logging("twin", "info")
raise {error}
"""


def ended(error: str) -> list[dict[str, str]]:
    """Return the lines of a service that ends with an error."""
    done = subprocess.run(
        [sys.executable, "-c", RAISES.format(error=error)], capture_output=True, check=False
    )
    assert done.returncode == 1
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_failure_that_explains_itself_is_one_line_without_a_trace() -> None:
    [line] = ended("StoreError('world.sqlite is damaged')")
    assert line["message"] == "service failed: world.sqlite is damaged"
    assert "exception" not in line


def test_a_bug_of_ours_keeps_its_trace() -> None:
    [line] = ended("KeyError('a bug')")
    assert "Traceback" in line["exception"]


def said(level: str, message: str) -> str:
    return json.dumps({"level": level, "service": "twin", "message": message})


STARTED = said("info", "service started")
FAILED = said("critical", "service failed: world.sqlite is damaged")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([STARTED, FAILED, said("info", "service stopped")], "world.sqlite is damaged"),
        ([STARTED, FAILED, STARTED], ""),
        (["java.lang.Error", "[1]", "{", "\u00ff"], ""),
        ([], ""),
    ],
)
def test_the_last_words_are_those_since_the_last_start(
    tmp_path: Path, lines: list[str], words: str
) -> None:
    log = tmp_path / "twin.log"
    log.write_text("\n".join(lines), encoding="latin-1")
    assert last_words(log) == words


def test_who_left_no_log_left_no_words(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none.log") == ""
