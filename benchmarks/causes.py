"""How often the causes component is right, how fast, and how often it cries wolf.

    python benchmarks/causes.py --faults 32 --days 1 [--traces FOLDER]

Each case is a fleet of its own in the twin, warmed up, with one fault struck where work runs; the
component sees `state.*` only. Top-1 and top-3 are of the first cause of each tier after the fault;
"slow work" counts only deep-tier causes whose symptom is a job or pool, where the culprit has to be
found among the nodes below it. The other days have no fault, but jobs, scaling, prices and
migrations as usual: every cause on them is false.
"""

import argparse
import threading
from collections.abc import Iterable
from pathlib import Path
from time import process_time

from options import add_traces

from gpuloop.loop.evaluate.cause_trials import (
    Trial,
    TrialFault,
    quiet_config,
    run_quiet,
    run_trial,
)
from gpuloop.loop.services.causal_worker import CausalWorker
from gpuloop.loop.services.causes import DEADLINE_SECONDS
from gpuloop.loop.shells.clock import monotonic_us
from gpuloop.reasoning.analysis import Analysis, Attribution
from gpuloop.schemas.messages import Cause

FAULTS: tuple[TrialFault, ...] = ("thermal", "link", "ecc", "rack_link")
FIRST_SEED = 1000


class TimedWorker:
    """The deep tier as the service runs it, with the wall seconds of each question."""

    def __init__(self, worker: CausalWorker) -> None:
        self.seconds: list[float] = []
        self._worker = worker

    def __call__(self, analysis: Analysis) -> Attribution | None:
        """Answer one question under the service's deadline."""
        began_us = monotonic_us()
        answer = self._worker.analyse(analysis, deadline_seconds=DEADLINE_SECONDS)
        self.seconds.append((monotonic_us() - began_us) / 1e6)
        return answer


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=32)
    parser.add_argument("--days", type=int, default=1)
    add_traces(parser)
    options = parser.parse_args()
    with CausalWorker(threading.Event()) as worker:
        worker.start()
        deep = TimedWorker(worker)
        trials = [
            run_trial(
                FAULTS[case % len(FAULTS)], quiet_config(FIRST_SEED + case), deep, options.traces
            )
            for case in range(options.faults)
        ]
    print_trials(trials)
    seconds = sorted(deep.seconds)
    if seconds:
        middle, worst = seconds[len(seconds) // 2], seconds[-1]
        print(f"deep tier: {len(seconds)} questions, median {middle:.2f} s, worst {worst:.2f} s")
    for day in range(options.days):
        print_quiet_day(FIRST_SEED + day, options.traces)


def print_trials(trials: list[Trial]) -> None:
    """Print one line per fault class and one for all."""
    print(f"{'fault':<10} {'cases':>5}  {'fast 1/3':>9}  {'deep 1/3':>9}  {'slow work 1/3':>13}")
    for fault in (*FAULTS, "all"):
        some = [trial for trial in trials if fault in (trial.fault, "all")]
        fast = share((trial, trial.fast) for trial in some)
        deep = share((trial, trial.causal) for trial in some)
        work = share((trial, trial.of_work) for trial in some if trial.of_work)
        print(f"{fault:<10} {len(some):>5}  {fast:>9}  {deep:>9}  {work:>13}")


def share(cases: Iterable[tuple[Trial, tuple[Cause, ...]]]) -> str:
    """Return how many first causes have the culprit first and among the first three."""
    ranks = [trial.rank(causes) for trial, causes in cases]
    first, three = sum(r == 1 for r in ranks), sum(1 <= r <= 3 for r in ranks)
    return f"{first}/{three}:{len(ranks)}"


def print_quiet_day(seed: int, traces: Path | None) -> None:
    """Print what was said on a day without faults."""
    began = process_time()
    patient = run_quiet(quiet_config(seed), 24, traces)
    counters = patient.world.state.counters
    print(
        f"day without faults, {patient.world.workload_name}, seed {seed}: "
        f"{len(patient.fast)} causes, {len(patient.anomalies)} anomaly messages; "
        f"{counters.started} starts, {counters.preempted} preemptions, "
        f"{counters.migrated} migrations; {patient.steps} steps, "
        f"{process_time() - began:.0f} CPU-s for world, observe and causes"
    )


if __name__ == "__main__":
    main()
