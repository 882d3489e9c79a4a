"""What of injected faults and sensor defects is noticed, how soon, and what is cried for nothing.

    python benchmarks/detectors.py --seeds 3 --hours 12 [--traces FOLDER]

Each seed is a fleet of its own in the twin, warmed up for four hours; every class strikes a copy of
it once, at a subject at work. Recall counts culprits that were named within 45 minutes (150 for the
aisle that warms by a tenth of a degree a minute), precision the anomalies that concern the culprit
or what hangs on it (its jobs, their nodes, its pool) among all that opened meanwhile. The other
hours have no fault, but jobs, scaling, prices and migrations as usual: whatever opens is false.
The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import process_time

from options import add_traces

from gpuloop.loop.evaluate.cause_trials import quiet_config
from gpuloop.loop.evaluate.detector_trials import (
    DEFECTS,
    FAULTS,
    WARM_UP_MINUTES,
    Alarm,
    Verdict,
    Ward,
    run_quiet,
    run_trial,
)

FIRST_SEED = 2000
FIRST_QUIET_SEED = 3000


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="cases of each class (3)")
    parser.add_argument("--hours", type=int, default=12, help="without faults, per seed (12)")
    add_traces(parser)
    options = parser.parse_args()
    began = process_time()
    verdicts: list[Verdict] = []
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        warm = Ward(quiet_config(seed), options.traces)
        warm.go(WARM_UP_MINUTES)
        verdicts += [run_trial(warm, what, seed) for what in (*FAULTS, *DEFECTS)]
    print_verdicts(verdicts)
    false, pool_days = print_quiet(options.hours, options.seeds, options.traces)
    hits = [v for v in verdicts if v.delay_minutes is not None]
    right, wrong = sum(v.right for v in verdicts), sum(len(v.wrong) for v in verdicts)
    print(
        json.dumps(
            {
                "cases": len(verdicts),
                "recall": round(len(hits) / len(verdicts), 3),
                "precision": round(right / max(right + wrong, 1), 3),
                "delay_minutes_median": median(v.delay_minutes or 0 for v in hits),
                "false_alarms_per_pool_day": round(false / pool_days, 3),
                "pool_days_without_faults": round(pool_days, 2),
                "recall_by_class": {
                    what: round(_recall([v for v in verdicts if v.what == what]), 3)
                    for what in (*FAULTS, *DEFECTS)
                },
                "cpu_seconds": round(process_time() - began),
            }
        )
    )


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print one line per class."""
    head = ("class", "cases", "recall", "precision", "delay p50", "max", "first noticed by")
    print("{:<14} {:>5} {:>7} {:>10} {:>10} {:>5}  {}".format(*head))
    for what in (*FAULTS, *DEFECTS):
        some = [v for v in verdicts if v.what == what]
        delays = sorted(v.delay_minutes for v in some if v.delay_minutes is not None)
        right, wrong = sum(v.right for v in some), sum(len(v.wrong) for v in some)
        by = sorted({_who(v.first) for v in some if v.first is not None})
        middle = f"{median(delays):.0f} min" if delays else "-"
        print(
            f"{what:<14} {len(some):>5} {_recall(some):>7.2f} "
            f"{right / max(right + wrong, 1):>10.2f} {middle:>10} "
            f"{delays[-1] if delays else '-':>5}  {', '.join(by)}"
        )
    for verdict in verdicts:
        for alarm in verdict.wrong:
            said = alarm.anomaly
            print(f"  false while {verdict.what}: {_who(alarm)}, {said.subject} {said.metric}")


def print_quiet(hours: int, seeds: int, traces: Path | None) -> tuple[int, float]:
    """Print what opened without a fault; return how much, and over how many pool-days."""
    false, pool_days = 0, 0.0
    for seed in range(FIRST_QUIET_SEED, FIRST_QUIET_SEED + seeds):
        ward = run_quiet(quiet_config(seed), hours, traces)
        opened = [alarm for alarm in ward.alarms if alarm.anomaly.state == "open"]
        counters = ward.world.state.counters
        print(
            f"{hours} h without faults, {ward.world.workload_name}, seed {seed}: "
            f"{len(opened)} anomalies; {counters.started} starts, "
            f"{counters.preempted} preemptions, {counters.migrated} migrations"
        )
        for alarm in opened:
            print(f"  {_who(alarm)}: {alarm.anomaly.subject} {alarm.anomaly.evidence}")
        false += len(opened)
        pool_days += hours / 24 * len(ward.world.config.pools)
    return false, pool_days


def _recall(verdicts: Sequence[Verdict]) -> float:
    return sum(v.delay_minutes is not None for v in verdicts) / max(len(verdicts), 1)


def _who(alarm: Alarm) -> str:
    return f"{alarm.anomaly.kind} ({alarm.anomaly.detector})"


if __name__ == "__main__":
    main()
