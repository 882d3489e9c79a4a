"""How the twin compares with what was published of Philly, and how fast its two levels run.

    python benchmarks/twin.py [--traces FOLDER] [--hours 48] [--seeds 4]

The fleet stands still: nobody scales, prices or migrates. Published for Philly are a mean queueing
delay of 3,761 s and 9 % of jobs cancelled, queued or running (Jeon et al., USENIX ATC 2019). The
twin's arrival share and weights were chosen on these days, so this is calibration, not validation.
Speeds are per CPU second of one core; the last line is one JSON object.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from time import process_time

import numpy as np
from msgspec.structs import replace
from options import add_traces

from gpuloop.loop.learn.experience import ACTION_SIZE
from gpuloop.loop.learn.pool_env import PoolVecEnv
from gpuloop.loop.learn.scenarios import Domain
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.workload import Generator, JobSpec, Workload
from gpuloop.twin.world import build_world

QUIET = TwinConfig(gpu_sample_every_us=0, progress_every_us=0)
SPEED_HOURS = 6
FLEETS = 10
"""So many of the usual fleets make one of about 5,000 GPUs."""
WORLDS = 32
ENVIRONMENTS = 128
ENVIRONMENT_TICKS = 200


class Together:
    """The jobs of several workloads, as one."""

    def __init__(self, parts: Sequence[Workload]) -> None:
        self.name = parts[0].name
        self.start_us = parts[0].start_us
        self._parts = parts

    def arrivals(self, hour: int) -> tuple[JobSpec, ...]:
        """Return the jobs of one hour."""
        return _together([part.arrivals(hour) for part in self._parts])

    def running_at(self, at_us: int) -> tuple[JobSpec, ...]:
        """Return the jobs under way at `at_us`."""
        return _together([part.running_at(at_us) for part in self._parts])


def _together(parts: Sequence[Sequence[JobSpec]]) -> tuple[JobSpec, ...]:
    """Return jobs of several parts by time, under names that no two of them share."""
    return tuple(
        sorted(
            dataclasses.replace(job, job=f"{number}-{job.job}")
            for number, jobs in enumerate(parts)
            for job in jobs
        )
    )


def load(traces: Path | None, seed: int, hours: int) -> None:
    """Run a fleet of fixed size and prices, and print how its jobs fared."""
    world = build_world(replace(QUIET, seed=seed), traces, "auto")
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


def node_level(sample_s: int) -> float:
    """Print and return how many times faster than real time a fleet of 5,000 GPUs passes."""
    pools = tuple(
        replace(
            pool,
            on_demand_nodes=pool.on_demand_nodes * FLEETS,
            spot_nodes=pool.spot_nodes * FLEETS,
            nodes_min=pool.nodes_min * FLEETS,
            nodes_max=pool.nodes_max * FLEETS,
        )
        for pool in QUIET.pools
    )
    config = replace(QUIET, pools=pools, gpu_sample_every_us=sample_s * SECOND_US)
    parts = [Generator(config.shape, seed, config.start_us) for seed in range(FLEETS)]
    world = build_world(config, None, Together(parts))
    world.advance(world.start_us)
    began = process_time()
    gpus = sum(len(node.slots) for node in world.state.nodes.values())
    for minute in range(1, SPEED_HOURS * 60 + 1):
        world.advance(world.start_us + minute * MINUTE_US)
    faster = SPEED_HOURS * 3_600 / (process_time() - began)
    what = f"samples of every node each {sample_s} s" if sample_s else "no GPU samples"
    print(f"node level, {gpus:,} GPUs, {what}: {faster:,.0f} x real time")
    return faster


def pool_level() -> float:
    """Print and return how many control ticks of a pool pass in a second, each with an order."""
    configs = [replace(QUIET, seed=seed) for seed in range(WORLDS)]
    worlds = build_pool_worlds(configs, hours=SPEED_HOURS, traces=None, workload="generator")
    wanted = worlds.state.desired.copy()
    worlds.advance(MINUTE_US)
    worlds.scale(wanted)
    began = process_time()
    ticks = SPEED_HOURS * 60 - 1
    for tick in range(ticks):
        worlds.advance(MINUTE_US)
        wanted[:, 1] += 1 if tick % 10 == 0 else -1 if tick % 10 == 5 else 0
        worlds.scale(wanted)
    steps = ticks * worlds.rows / (process_time() - began)
    print(f"pool level, {worlds.rows} pools side by side: {steps:,.0f} ticks of a pool a second")
    return steps


def environments() -> float:
    """Print and return the steps of a pool a second in which it is also seen, guarded and paid."""
    env = PoolVecEnv(Domain(worlds=ENVIRONMENTS, hours=SPEED_HOURS), seed=0)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.3, 0.3, (env.num_envs, ACTION_SIZE)).astype(np.float32)
    env.step(actions)
    began = process_time()
    for _ in range(ENVIRONMENT_TICKS):
        env.step(actions)
    steps = ENVIRONMENT_TICKS * env.num_envs / (process_time() - began)
    print(f"environment, {env.num_envs} pools side by side: {steps:,.0f} steps of a pool a second")
    return steps


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_traces(parser)
    parser.add_argument("--hours", type=int, default=48, help="of fleet time per seed (48)")
    parser.add_argument("--seeds", type=int, default=4, help="how many (4)")
    chosen = parser.parse_args()
    for seed in range(chosen.seeds):
        load(chosen.traces, seed, chosen.hours)
    print("published for Philly: mean wait 3,761 s, 9% cancelled (queued or running)")
    found = {
        "node_level_x_real_time": round(node_level(0)),
        "node_level_x_real_time_minute_samples": round(node_level(60)),
        "pool_level_steps_per_second": round(pool_level()),
        "environment_steps_per_second": round(environments()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
