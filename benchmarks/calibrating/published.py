"""What was published, read from the folder of traces.

The distributions have unnamed columns of a thousand values at equal steps of probability, so their
mean is the mean of the distribution. Which column is what follows from the papers' figures.
"""

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from gpuloop.schemas.units import SECOND_US
from gpuloop.twin.fit import Floats
from gpuloop.twin.workload import JOBS, read_philly

SUMMARY: Final = "utilisation/cluster_summary.csv"
REQUESTS: Final = "llm/azure_conv_2023.csv.gz"

DAYS, NODES, INTERRUPTIONS, GPU_FAULTS, MEMORY_FAULTS = 54, 2_048, 419, 148, 72
"""Llama 3 405B, 16,384 H100 in nodes of eight: unexpected interruptions and two causes of them."""

NODE_HOURS: Final = DAYS * 24 * NODES
TITAN_PER_100_GPU_YEARS: Final = {"ecc": 4.78, "lost": 1.53}
"""Double-bit errors and GPUs off the bus of Titan (K20X)."""


def clusters(folder: Path) -> dict[str, dict[str, float]]:
    """Return the summary of each cluster, without what it does not say."""
    rows = list(_rows(folder / SUMMARY))
    return {
        row["id"]: {name: float(value) for name, value in row.items() if name != "id" and value}
        for row in rows
    }


def distribution(folder: Path, name: str, column: int = 0) -> Floats:
    """Return the values of a distribution at equal steps of probability, shape (1000,)."""
    rows = list(_rows(folder / "utilisation" / f"{name}_cdf.csv"))
    return np.array([float(row[f"value_{column}"]) for row in rows])


def earth_allocated(folder: Path) -> float:
    """Return the share of GPUs that jobs hold, over all virtual clusters of Earth and a month."""
    running = total = 0.0
    for path in sorted((folder / "utilisation").glob("earth_*_cluster_sequence_vc.csv.gz")):
        for row in _rows(path):
            running += float(row["running_gpu_num"])
            total += float(row["total_gpu_num"])
    return running / total


def requests(folder: Path) -> tuple[Floats, Floats, Floats]:
    """Return when requests came, in seconds from the first, and their prompt and answer tokens."""
    rows = list(_rows(folder / REQUESTS))
    at = np.array([np.datetime64(row["TIMESTAMP"], "us") for row in rows])
    seconds: Floats = (at - at[0]).astype(np.int64) / SECOND_US
    prompt, answer = (
        np.array([float(row[name]) for row in rows])
        for name in ("ContextTokens", "GeneratedTokens")
    )
    return seconds, prompt, answer


def philly_jobs(folder: Path) -> tuple[Floats, Floats]:
    """Return GPUs and seconds of the jobs of the file at hand, which is a part of the published."""
    jobs = read_philly(folder / JOBS)
    gpus = np.array([float(job.gpus) for job in jobs])
    return gpus, np.array([job.work_us / SECOND_US for job in jobs])


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        yield from csv.DictReader(lines)
