"""Pools side by side through a day: demand comes, a controller wishes, the envelope lets through.

A world of counts only: jobs fill ready nodes, what does not fit waits, an order takes three ticks.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from builders import batch, envelope_state
from gpuloop.actuators.envelope import LONG_AGO_US, NODES, EnvelopeConfig, apply_envelope
from gpuloop.reasoning.baselines.controller import Controller
from gpuloop.schemas.policy import PoolBatch
from gpuloop.schemas.units import MINUTE_US

MONDAY_US = 1_508_112_000_000_000
COLD_START_TICKS = 3


@dataclass(frozen=True)
class Day:
    """What happened: (ticks, n, 4) wishes and executed actions, (ticks, n) ready and queued."""

    wished: np.ndarray
    done: np.ndarray
    ready: np.ndarray
    queued: np.ndarray

    def nodes(self) -> np.ndarray:
        return self.done[:, :, NODES].sum(axis=2)


def wave(ticks: int, pools: int = 1, seed: int = 0, period: int = 1440) -> np.ndarray:
    """Return GPUs demanded, (ticks, n): waves of so many ticks and bursts, of each pool its own."""
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * (np.arange(ticks)[:, None] / period + rng.random(pools))
    bursts = np.repeat(rng.random((-(-ticks // 30), pools)) < 0.1, 30, axis=0)[:ticks]
    return np.round(160 + 100 * np.sin(phase) + 120 * bursts)


def tick_of(
    demand: np.ndarray, past: list[np.ndarray], at: int, waits: np.ndarray, first: int = 0
) -> PoolBatch:
    """Return what is seen of n pools of 8 to 48 nodes, given their actions so far."""
    n = demand.shape[1]
    present = past[-1]
    ready = np.minimum.reduce([one[:, NODES] for one in past[-COLD_START_TICKS - 1 :]])
    allocated = np.minimum(demand[at], ready.sum(axis=1) * 8)
    return batch(
        n,
        pools=tuple(f"pool{first + i}" for i in range(n)),
        tick_us=[MONDAY_US + at * MINUTE_US] * n,
        present=present,
        ready_nodes=ready,
        gpus_allocated=allocated,
        gpus_queued=demand[at] - allocated,
        oldest_wait_us=waits * MINUTE_US,
        nodes_arriving=(present[:, NODES] - ready).sum(axis=1),
        gpus_demanded_peak=demand[max(0, at - 30) : at + 1].max(axis=0),
        forecast_gpus=np.repeat(demand[at], 9).reshape(n, 3, 3),
        running_jobs=np.ceil(allocated / 8),
        fleet=np.arange(n),
    )


def live(
    controller: Controller, demand: np.ndarray, fresh: np.ndarray | None = None, first: int = 0
) -> Day:
    """Run a controller, reset, through a demand (ticks, n), which it sees where it is fresh.

    The pools are numbered from `first`.
    """
    n = demand.shape[1]
    controller.reset(np.ones(n, np.bool_))
    start = np.tile([16.0, 8.0, 0.0, 4.0], (n, 1))
    past, wished, ready, queued = [start], [], [], []
    waits = np.zeros(n, np.int64)
    grown, shrunk = np.full(n, LONG_AGO_US), np.full(n, LONG_AGO_US)
    for at in range(demand.shape[0]):
        seen = tick_of(demand, past, at, waits, first)
        if fresh is not None:
            seen = dataclasses.replace(seen, demand_fresh=fresh[at])
        waits = np.where(seen.gpus_queued > 0, waits + 1, 0)
        wish = controller(seen)
        memory = envelope_state(n, last_growth_us=grown, last_shrink_us=shrunk)
        done = apply_envelope(wish, seen, memory, EnvelopeConfig()).action
        change = (done - seen.present)[:, NODES].sum(axis=1)
        grown = np.where(change > 0, seen.tick_us, grown)
        shrunk = np.where(change < 0, seen.tick_us, shrunk)
        wished.append(wish)
        past.append(done)
        ready.append(seen.ready_nodes.sum(axis=1))
        queued.append(seen.gpus_queued)
    return Day(np.array(wished), np.array(past[1:]), np.array(ready), np.array(queued))
