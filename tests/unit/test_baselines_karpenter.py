"""Karpenter's way: provision at once, consolidate within a budget."""

from typing import Any

import numpy as np
import pytest

from builders import START_US, batch
from gpuloop.reasoning.baselines.catalogue import MIX
from gpuloop.reasoning.baselines.karpenter import (
    Karpenter,
    KarpenterConfig,
    disruptions_allowed,
)
from gpuloop.schemas.units import MINUTE_US

ALL = 1.0


class Pool:
    """Nodes of eight GPUs that obey at once."""

    def __init__(self, nodes: float = 20, **settings: Any) -> None:
        self.karpenter = Karpenter(KarpenterConfig(**settings), MIX)
        self.karpenter.reset(np.ones(1, np.bool_))
        self.nodes, self.now_us = float(nodes), START_US

    def tick(self, running: float = 80, queued: float = 0, **columns: Any) -> float:
        seen = {
            "tick_us": [self.now_us],
            "present": [[self.nodes, 0.0, 0.0, 4.0]],
            "ready_nodes": [[self.nodes, 0.0]],
            "gpus_allocated": [float(running)],
            "gpus_queued": [float(queued)],
            "running_jobs": [4.0],
        }
        self.nodes = float(self.karpenter.wanted(batch(**(seen | columns)))[0])
        self.now_us += MINUTE_US
        return self.nodes

    def ticks(self, number: int, **columns: Any) -> list[float]:
        return [self.tick(**columns) for _ in range(number)]


def test_pending_gpus_get_whole_nodes_at_once():
    assert Pool().tick(running=160, queued=17) == 23


def test_what_is_ordered_already_is_not_ordered_again():
    assert Pool().tick(running=150, queued=60, ready_nodes=[[18.0, 0.0]]) == 27
    arriving = {"ready_nodes": [[18.0, 0.0]], "nodes_arriving": [9.0]}
    waits = {"running": 144, "queued": 60, "oldest_wait_us": [3 * MINUTE_US]}
    assert Pool(27).tick(**waits, **arriving) == 27


def test_a_queue_that_would_fit_but_waits_gets_nodes_of_its_own():
    waits = {"running": 80, "queued": 16, "oldest_wait_us": [3 * MINUTE_US]}
    assert Pool().tick(**waits) == 22
    assert Pool().tick(**(waits | {"oldest_wait_us": [MINUTE_US]})) == 20


@pytest.mark.parametrize(
    ("nodes", "share", "leaving", "allowed"),
    [(19, 0.2, 0, 4), (19, 0.2, 3, 1), (19, 0.2, 9, 0), (10, 0.1, 0, 1), (3, 0.1, 0, 1)],
)
def test_a_budget_rounds_up_and_counts_what_is_on_its_way_out(
    nodes: float, share: float, leaving: float, allowed: float
):
    found = disruptions_allowed(np.array([nodes]), np.array([leaving]), share)
    assert found[0] == allowed


def test_spare_nodes_go_at_once_within_the_budget():
    assert Pool().ticks(4) == [18, 16, 14, 12]
    assert Pool(budget_share=ALL).tick() == 10


def test_a_budget_of_nothing_takes_nothing():
    assert Pool(budget_share=0.0).ticks(3) == [20, 20, 20]


def test_nodes_on_their_way_out_use_up_the_budget():
    assert Pool(18).tick(ready_nodes=[[20.0, 0.0]]) == 18
    assert Pool(19).tick(ready_nodes=[[20.0, 0.0]]) == 18


def test_nodes_go_when_they_have_been_spare_for_the_whole_period():
    pool = Pool(consolidate_after_us=3 * MINUTE_US, budget_share=ALL)
    assert pool.ticks(4) == [20, 20, 20, 10]


def test_work_within_the_period_starts_it_anew():
    pool = Pool(consolidate_after_us=2 * MINUTE_US, budget_share=ALL)
    assert pool.ticks(2) == [20, 20]
    assert pool.tick(running=120) == 15
    assert pool.ticks(3) == [15, 15, 10]


def test_only_nodes_that_no_job_can_be_on_are_empty():
    empty = {"policy": "when_empty", "budget_share": ALL}
    assert Pool(**empty).tick(running_jobs=[14.0]) == 14
    assert Pool(**empty).tick(running_jobs=[40.0]) == 20
    assert Pool(budget_share=ALL).tick(running_jobs=[40.0]) == 10


def test_nothing_is_taken_while_something_is_pending():
    assert Pool(budget_share=ALL).tick(running=80, queued=8) == 20


def test_nodes_that_have_not_arrived_are_not_spare():
    assert Pool(budget_share=ALL).tick(ready_nodes=[[12.0, 0.0]]) == 18


@pytest.mark.parametrize("stale", ["demand_fresh", "capacity_fresh", "telemetry_fresh"])
def test_what_cannot_be_seen_is_not_spare(stale: str):
    pool = Pool(consolidate_after_us=MINUTE_US, budget_share=ALL)
    assert pool.tick() == 20
    assert pool.tick(**{stale: [False]}) == 20
    assert pool.ticks(2) == [20, 10]


def test_a_queue_that_cannot_be_seen_gets_nothing():
    assert Pool().tick(running=160, queued=80, demand_fresh=[False]) == 20
