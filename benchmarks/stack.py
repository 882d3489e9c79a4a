"""What the whole local stack takes: memory by process, and the time to its first decision.

    python benchmarks/stack.py [--minutes 3]

Runs `gpuloop up` in a folder of its own and takes it down again. What is here must be installed
(`make setup`); nothing is downloaded. Figures hold for a machine that does little else.
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from gpuloop.ops.stack.state import read


class Report(msgspec.Struct):
    """What is of interest here in the report of a run."""

    resident_bytes: int
    seconds_to_first_decision: float | None
    decisions: int


def resident(pid: int | None) -> int:
    """Return the resident bytes of a process and all that it started."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        one = psutil.Process(pid)
        for process in (one, *one.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def main() -> None:
    """Run the stack and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=int, default=3)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory(prefix="gpuloop-bench-") as folder:
        report = Path(folder) / "report.json"
        arguments = ["up", "--for", f"{minutes}m", "--report", str(report)]
        running = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "gpuloop.ops.cli", *arguments],
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )
        most: dict[str, int] = {}
        while running.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                running.wait(5.0)
            state = read(Path(folder) / ".gpuloop" / "stack.json")
            for process in state.processes if state is not None else ():
                if process.pid is not None:
                    most[process.name] = max(most.get(process.name, 0), resident(process.pid))
        if not report.exists():
            sys.exit(f"the stack ended with status {running.returncode} and no report")
        found = msgspec.json.decode(report.read_bytes(), type=Report)
    for name, peak in sorted(most.items(), key=lambda one: -one[1]):
        print(f"{name:<12} {peak / 2**20:7,.0f} MiB")
    print(f"all at once  {found.resident_bytes / 2**20:7,.0f} MiB at most")
    print(f"first decision after {found.seconds_to_first_decision} s, {found.decisions:,} in all")


if __name__ == "__main__":
    main()
