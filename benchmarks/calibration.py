"""How the node-level twin compares with every figure that was published of real clusters.

    python benchmarks/calibration.py [--traces FOLDER] [--seeds 4] [--output FILE]

Writes docs/calibration.md: for each figure the twin's value, the published one, its source, the
difference, and whether the twin was given the figure, fitted to it, or never saw it. Takes about
three minutes on one core. The last line is one JSON object.
"""

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.calibrating import compare, serving
from benchmarks.calibrating.figures import as_json, markdown
from benchmarks.calibrating.played import play
from benchmarks.options import add_traces

PAGE = Path(__file__).resolve().parents[1] / "docs" / "calibration.md"
FITTED_HOURS = 48
WEEKS = 4
PLACEMENT_SEEDS = (42, 43)


def say(what: str) -> None:
    """Say how far the run is."""
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, write the page and print what is off."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_traces(parser, without="else nothing is compared")
    parser.add_argument("--seeds", type=int, default=4, help="worlds that are played (4)")
    parser.add_argument("--weeks", type=int, default=WEEKS, help="that each lives (4)")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page (docs/calibration.md)")
    chosen = parser.parse_args()
    if not chosen.traces:
        print("calibration compares with published traces: set GPULOOP_TRACES or give --traces")
        print(json.dumps({"benchmark": "calibration", "skipped": "no traces"}))
        return
    folder, began = chosen.traces, perf_counter()
    fitted = [play(seed, folder, FITTED_HOURS) for seed in range(chosen.seeds)]
    whole = []
    for seed in range(chosen.seeds):
        whole.append(play(seed, folder, chosen.weeks * 168))
        say(f"world {seed + 1} of {chosen.seeds}: {perf_counter() - began:.0f} s")
    figures = [
        *compare.jobs(fitted, whole, folder),
        *compare.generator_figures(folder, range(chosen.seeds), 7 * chosen.weeks),
        *compare.sensors(whole, folder),
        *compare.faults(whole),
        *compare.service(serving.compare(folder)),
    ]
    say(f"placement next: {perf_counter() - began:.0f} s")
    figures += compare.placement(folder, PLACEMENT_SEEDS)
    heading = (
        "Written by `make bench-calibration`: the node-level twin beside what was published of "
        f"real clusters ({chosen.seeds} seeds; in brackets the lowest and highest of them, and of "
        "the clusters). A figure agrees within a tenth, or when the seeds lie on both sides of it. "
        "The twin was *set* to a figure, *fitted* to it, or it was *unused*: only those last are "
        "evidence."
    )
    page = markdown(figures, compare.assumptions(), heading)
    chosen.output.write_text(page, encoding="utf-8")
    print(page.split("## Jobs of the trace")[0])
    print(f"{chosen.output}, {perf_counter() - began:.0f} s")
    print(json.dumps(as_json(figures)))


if __name__ == "__main__":
    main()
