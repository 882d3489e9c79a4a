"""Worker processes do not outlive who started them, even where nothing could be said any more."""

import os
import signal
import subprocess
import sys

import psutil

PROGRAM = """
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from gpuloop.loop.children import end_with
from test_children import work

if __name__ == "__main__":
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=end_with, initargs=(os.getpid(),)
    ) as pool:
        pool.submit(work).result()
"""


def work() -> None:
    """Say who we are, and wait for ever."""
    print(os.getpid(), flush=True)
    signal.pause()


def test_a_worker_ends_with_a_parent_that_was_killed(tmp_path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    paths = [os.path.dirname(__file__), *sys.path]
    parent = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert parent.stdout is not None
    with parent.stdout:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait(10)
        _, alive = psutil.wait_procs([worker], timeout=10)
    assert alive == []
