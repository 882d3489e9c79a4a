"""The openb trace: an inventory of GPU nodes, the tasks asked of it, and published results.

Alibaba, 2023, as published with Weng et al. (USENIX ATC 2023). Every pod of the list counts, also
those that failed or were never scheduled, and no time does, for so the published study took them.
"""

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from gpuloop.twin.fit import NO_KIND, WHOLE_GPU, Ask, Floats, Nodes

NODES: Final = "openb/nodes.csv"
PODS: Final = "openb/pods.csv"
WORKLOAD: Final = "openb_pod_list_default"
"""The name that the pod list has in the published results."""

RESULTS: Final[dict[str, str]] = {
    "used": "fgd/analysis_allo_discrete.csv.gz",
    "fragment": "fgd/analysis_frag_discrete.csv.gz",
}
SHARE_KIND: Final = 0
"""Kind of a task that takes a share of a GPU; one that takes n GPUs is of kind n."""


class Inventory(NamedTuple):
    """The nodes, all free, and the names of the GPU models by their codes."""

    nodes: Nodes
    models: tuple[str, ...]

    @property
    def capacity_milli(self) -> int:
        """Return thousandths of a GPU over all nodes."""
        return WHOLE_GPU * int(self.nodes.gpus.sum())


def read_inventory(folder: Path) -> Inventory:
    """Return the nodes of a folder laid out like `traces/`.

    Raises:
        OSError: the file is not there.
        ValueError: a row is not what it should be.

    """
    rows = list(_rows(folder / NODES))
    gpus = np.array([int(row["gpu"]) for row in rows], dtype=np.int64)
    widest = int(gpus.max())
    models = tuple(sorted({row["model"] for row in rows}))
    nodes = Nodes(
        cpu_milli=np.array([int(row["cpu_milli"]) for row in rows], dtype=np.int64),
        memory_mib=np.array([int(row["memory_mib"]) for row in rows], dtype=np.int64),
        gpu_milli=WHOLE_GPU * (np.arange(widest) < gpus[:, None]).astype(np.int64),
        gpus=gpus,
        model=np.array([models.index(row["model"]) for row in rows], dtype=np.int64),
        running=np.zeros((len(rows), widest + 1), dtype=np.int64),
    )
    return Inventory(nodes, models)


def read_tasks(path: Path, models: tuple[str, ...]) -> list[Ask]:
    """Return the tasks of a list of pods, in the order of the file.

    A model that the inventory lacks is kept as a code that no node has. Of the published lists some
    have no column of models: there any will do.

    Raises:
        OSError: the file is not there.
        ValueError: a row is not what it should be.

    """
    return [_task(row, models) for row in _rows(path)]


def _task(row: dict[str, str], models: tuple[str, ...]) -> Ask:
    gpus = int(row["num_gpu"])
    milli = min(int(row["gpu_milli"] or WHOLE_GPU), WHOLE_GPU) if gpus else 0
    wanted = [name for name in row.get("gpu_spec", "").split("|") if name] if gpus else []
    codes = (models.index(name) if name in models else len(models) for name in wanted)
    return Ask(
        cpu_milli=int(row["cpu_milli"]),
        memory_mib=int(row["memory_mib"]),
        gpus=gpus,
        gpu_milli=milli,
        models=tuple(sorted(set(codes))),
        kind=NO_KIND if not gpus else SHARE_KIND if milli < WHOLE_GPU else gpus,
    )


def read_published(folder: Path, result: str, workload: str = WORKLOAD) -> dict[str, Floats]:
    """Return a published result by policy: per cent of all GPUs, a row per seed, columns 0 to 130.

    `result` is a key of `RESULTS`; columns are the per cent of the capacity that has arrived. A
    workload of which nothing was published has no policies.

    Raises:
        OSError: the file is not there.
        ValueError: a row is not what it should be.

    """
    found: dict[str, list[list[float]]] = defaultdict(list)
    for row in _rows(folder / RESULTS[result]):
        if row["workload"] == workload:
            policy = row["sc_policy"].partition("-")[2]
            found[policy].append([float(row[str(load)] or "nan") for load in range(131)])
    return {policy: np.array(seeds) for policy, seeds in found.items()}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        yield from csv.DictReader(lines)
