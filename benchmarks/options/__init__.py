"""Options that benchmarks share."""

import argparse
import os
from pathlib import Path


def add_traces(
    parser: argparse.ArgumentParser, *, without: str = "else a generated workload"
) -> None:
    """Let a benchmark be given a folder of public traces; its `traces` is then a path or None.

    Args:
        parser: of the benchmark.
        without: what its help says of no folder.

    """
    parser.add_argument(
        "--traces",
        type=Path,
        default=os.environ.get("GPULOOP_TRACES") or None,
        help=f"folder of public traces (GPULOOP_TRACES, {without})",
    )
