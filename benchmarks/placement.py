"""Placement on the openb trace beside the published results of six policies, and our own.

    python benchmarks/placement.py [--traces FOLDER] [--quick] [--pods FILE]

Pods arrive in random order until they ask for 130 % of the cluster's GPUs and none leaves (Weng et
al., USENIX ATC 2023). The seeds have the published numbers but draw from another generator, so
means are compared, not runs. Worth, our own, has no parameter; it was devised on other seeds of the
list `openb_pod_list_default`. `--pods` takes another list of the study, by its published file name.
The last line is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import combinations
from math import sqrt
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple

import numpy as np
from options import add_traces

from gpuloop.twin import openb
from gpuloop.twin.draws import generator
from gpuloop.twin.filling import arrivals, fill
from gpuloop.twin.fit import WHOLE_GPU, Ask, Floats
from gpuloop.twin.fragmentation import typical
from gpuloop.twin.openb import Inventory
from gpuloop.twin.strategies import gradient_descent, studied
from gpuloop.twin.worth import leftover_worth

SEEDS: Final = tuple(range(42, 52))
LOADS: Final = (100, 130)
POINT: Final = 1.0
UNROUNDED: Final = "FGD unrounded"


class Measured(NamedTuple):
    """A policy at each of `LOADS`, in per cent of all GPUs, a row per seed."""

    used: Floats
    fragment: Floats


def measure(
    inventory: Inventory, tasks: Sequence[Ask], seeds: Sequence[int]
) -> dict[str, Measured]:
    """Run every policy on the same arrivals and nodes, seed by seed; say how far on stderr."""
    mix = typical(tasks)
    strategies = {**studied(tasks), UNROUNDED: gradient_descent(mix, rounded=False)}
    rows: dict[str, list[list[list[float]]]] = {name: [] for name in strategies}
    for number, seed in enumerate(seeds, 1):
        began = perf_counter()
        drawn = generator(seed, "openb", "arrivals")
        coming = arrivals(tasks, inventory.capacity_milli, LOADS[-1] / 100, drawn)
        for name, strategy in strategies.items():
            luck = generator(seed, "openb", "nodes")
            filled = fill(inventory.nodes, coming, strategy, mix, luck)
            series = (filled.used, filled.fragment)
            rows[name].append([[filled.at(one, load) for load in LOADS] for one in series])
        took = perf_counter() - began
        print(f"seed {seed}, {number} of {len(seeds)}: {took:.0f} s", file=sys.stderr, flush=True)
    arrays = {name: np.array(found) for name, found in rows.items()}
    return {name: Measured(found[:, 0], found[:, 1]) for name, found in arrays.items()}


def unpackable(tasks: Sequence[Ask]) -> float:
    """Return the thousandths that no packing of all shares can use: the fluid bound's waste."""
    worth = leftover_worth(tasks)
    shares = [task.gpu_milli for task in tasks if task.is_share]
    return float(worth[shares].sum() * WHOLE_GPU - sum(shares))


def clear_pairs(published: dict[str, Floats], load: int) -> list[tuple[str, str]]:
    """Return pairs whose published means are two standard errors apart, the larger one first."""
    found = []
    for one, other in combinations(published, 2):
        a, b = published[one][:, load], published[other][:, load]
        error = sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
        if abs(a.mean() - b.mean()) > 2 * error:
            found.append((one, other) if a.mean() > b.mean() else (other, one))
    return found


def spread(values: Floats) -> str:
    """Return a mean and the standard deviation over seeds."""
    return f"{values.mean():6.2f} +- {values.std(ddof=1):4.2f}"


def report(
    measured: dict[str, Measured], published: dict[str, dict[str, Floats]], column: int
) -> dict[str, object]:
    """Print the table at one load and return it."""
    load, used, fragments = LOADS[column], published["used"], published["fragment"]
    print(f"\nat {load} % arrived load, in % of all GPUs")
    print(f"{'policy':<15}{'allocated':>15}{'published':>17}{'difference':>12}"
          f"{'fragments':>12}{'published':>11}")  # fmt: skip
    policies: dict[str, dict[str, float | None]] = {}
    for name, ours in measured.items():
        mine, lost = ours.used[:, column], ours.fragment[:, column]
        row: dict[str, float | None] = {
            "allocated": round(float(mine.mean()), 3),
            "sd": round(float(mine.std(ddof=1)), 3),
            "fragments": round(float(lost.mean()), 3),
        }
        line = f"{name:<15}{spread(mine):>15}"
        if name in used:
            theirs, theirs_lost = used[name][:, load], fragments[name][:, load].mean()
            row["published"] = round(float(theirs.mean()), 3)
            row["difference"] = round(float(mine.mean() - theirs.mean()), 3)
            row["fragments_published"] = round(float(theirs_lost), 3)
            line += f"{spread(theirs):>17}{mine.mean() - theirs.mean():>+12.2f}"
            line += f"{lost.mean():>12.2f}{theirs_lost:>11.2f}"
        else:
            line += f"{'':>29}{lost.mean():>12.2f}"
        print(line)
        policies[name] = row
    clear = clear_pairs(fragments, load)
    turned = sum(
        bool(measured[a].fragment[:, column].mean() <= measured[b].fragment[:, column].mean())
        for a, b in clear
    )
    order = sorted(used, key=lambda name: -measured[name].fragment[:, column].mean())
    order_published = sorted(used, key=lambda name: -fragments[name][:, load].mean())
    pairs = len(used) * (len(used) - 1) // 2
    print(f"most fragments first: ours {', '.join(order)}\n"
          f"                 published {', '.join(order_published)}\n"
          f"{len(clear) - turned} of the {len(clear)} pairs (of {pairs}) whose published means lie "
          "two standard errors apart are in that order")  # fmt: skip
    gain = measured["Worth"].used[:, column] - measured["FGD"].used[:, column]
    print(f"Worth over FGD, seed by seed: {spread(gain)}, least {gain.min():+.2f}")
    return {
        "policies": policies,
        "within_one_point": all(
            abs(row["difference"] or 0.0) <= POINT
            for row in policies.values()
            if "difference" in row
        ),
        "order_by_fragments": order,
        "order_by_fragments_published": order_published,
        "clear_pairs_in_order": len(clear) - turned,
        "clear_pairs": len(clear),
        "worth_over_fgd": {
            "mean": round(float(gain.mean()), 3),
            "least": round(float(gain.min()), 3),
        },
    }


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_traces(parser, without="else nothing is measured")
    parser.add_argument("--quick", action="store_true", help="two seeds instead of ten")
    parser.add_argument("--pods", type=Path, help="another list of pods of the same study")
    chosen = parser.parse_args()
    if not chosen.traces:
        print("placement is measured on the openb trace: set GPULOOP_TRACES or give --traces")
        print(json.dumps({"benchmark": "placement", "skipped": "no traces"}))
        return
    folder, began = chosen.traces, perf_counter()
    inventory = openb.read_inventory(folder)
    workload = chosen.pods.stem if chosen.pods else openb.WORKLOAD
    tasks = openb.read_tasks(chosen.pods or folder / openb.PODS, inventory.models)
    published = {name: openb.read_published(folder, name, workload) for name in openb.RESULTS}
    seeds = SEEDS[:2] if chosen.quick else SEEDS
    lost = unpackable(tasks) / inventory.capacity_milli * 100
    print(f"{workload}: {len(inventory.nodes.gpus):,} nodes, {inventory.nodes.gpus.sum():,} GPUs, "
          f"{len(tasks):,} pods, {len(seeds)} seeds; {lost:.2f} % of the GPUs are lost beside the "
          "list's shares however they are packed")  # fmt: skip
    measured = measure(inventory, tasks, seeds)
    tables = {str(load): report(measured, published, i) for i, load in enumerate(LOADS)}
    seconds = round(perf_counter() - began, 1)
    print(f"\n{seconds} s")
    told = {"benchmark": "placement", "workload": workload, "seeds": len(seeds),
            "seconds": seconds, "unpackable": round(lost, 3), "loads": tables}  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
