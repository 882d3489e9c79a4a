"""The default fleet on 16 to 18 October 2017 of Philly, under static capacity.

Published for Philly are a mean queueing delay of 3,761 s and 9 % cancelled, queued or running;
`benchmarks/twin.py` prints what several seeds show beside it.
"""

import os
from pathlib import Path

import pytest

from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US
from gpuloop.twin.config import DEFAULT_START_US, TwinConfig
from gpuloop.twin.world import build_world

TRACES = os.environ.get("GPULOOP_TRACES")


@pytest.mark.skipif(not TRACES, reason="GPULOOP_TRACES is not set")
def test_default_fleet_queues_on_philly_without_drowning() -> None:
    config = TwinConfig(gpu_sample_every_us=0, progress_every_us=0)
    world = build_world(config, Path(str(TRACES)), "philly")
    if world.start_us != DEFAULT_START_US:
        pytest.skip("this cut of the trace lacks 16 October 2017")
    allocated, rented = 0, 0
    for tick in range(48 * 6):
        world.advance(world.start_us + tick * 10 * MINUTE_US)
        for node in world.state.nodes.values():
            allocated += len(node.slots) - node.free
            rented += len(node.slots)
    world.advance(world.start_us + 48 * HOUR_US)
    counters = world.state.counters
    utilisation = allocated / rented
    wait = counters.wait_us / counters.started / SECOND_US
    refused = counters.refused / counters.arrived
    print(
        f"seed {config.seed}: {counters.arrived} arrivals, {refused:.0%} refused,"
        f" mean wait {wait:.0f} s, {utilisation:.0%} of GPUs allocated,"
        f" {counters.cancelled} cancelled"
    )
    assert 0.65 < utilisation < 0.92
    assert 1000 < wait < 8000
    assert 0.1 < refused < 0.25
    queued = sum(len(pool.queue) for pool in world.state.pools.values())
    assert queued < 500
