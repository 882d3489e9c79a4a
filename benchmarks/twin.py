"""How the twin compares with what was published of Philly, and how fast it runs.

    python benchmarks/twin.py [--traces FOLDER] [--hours 48] [--seeds 4]

The fleet stands still: nobody scales, prices or migrates. Published for Philly are a mean queueing
delay of 3,761 s and 9 % of jobs cancelled, queued or running (Jeon et al., USENIX ATC 2019). The
twin's arrival share and weights were chosen on these days, so this is calibration, not validation.
"""

import argparse
import os
from pathlib import Path
from time import process_time

import msgspec

from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.world import build_world

QUIET = TwinConfig(gpu_sample_every_us=0, progress_every_us=0)
SPEED_HOURS = 6


def load(traces: Path | None, seed: int, hours: int) -> None:
    """Run a fleet of fixed size and prices, and print how its jobs fared."""
    world = build_world(msgspec.structs.replace(QUIET, seed=seed), traces, "auto")
    allocated = rented = 0
    for at_us in range(world.start_us, world.start_us + hours * HOUR_US, 10 * MINUTE_US):
        world.advance(at_us)
        for node in world.state.nodes.values():
            allocated += len(node.slots) - node.free
            rented += len(node.slots)
    counters = world.state.counters
    print(
        f"seed {seed} on {world.workload_name}, {hours} h: {counters.arrived:,} arrivals, "
        f"{counters.refused / counters.arrived:.0%} refused at the first quotes, "
        f"mean wait {counters.wait_us / max(1, counters.started) / SECOND_US:,.0f} s, "
        f"{allocated / rented:.0%} of GPUs allocated, "
        f"{counters.cancelled / counters.arrived:.0%} cancelled in the queue"
    )


def speed(traces: Path | None, sample_s: int) -> None:
    """Print how much fleet time passes in a second, GPU samples written or not."""
    config = TwinConfig(gpu_sample_every_us=sample_s * SECOND_US)
    world = build_world(config, traces, "auto")
    began = process_time()
    for minute in range(SPEED_HOURS * 60):
        world.advance(world.start_us + minute * MINUTE_US)
    took_s = process_time() - began
    what = f"samples of every node each {sample_s} s" if sample_s else "no GPU samples"
    print(f"{what}: {SPEED_HOURS * 60 / took_s:,.0f} minutes of fleet time a CPU second")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--traces", type=Path, default=os.environ.get("GPULOOP_TRACES"))
    parser.add_argument("--hours", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=4)
    chosen = parser.parse_args()
    traces = Path(chosen.traces) if chosen.traces else None
    for seed in range(chosen.seeds):
        load(traces, seed, chosen.hours)
    for sample_s in (0, 10):
        speed(traces, sample_s)


if __name__ == "__main__":
    main()
