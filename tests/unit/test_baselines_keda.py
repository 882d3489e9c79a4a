"""KEDA: activation, cooldown and the way to none and back, with the autoscaler in between."""

from typing import Any

import msgspec
import numpy as np
import pytest

from builders import START_US, batch
from gpuloop.reasoning.baselines.catalogue import MIX
from gpuloop.reasoning.baselines.keda import Keda, KedaConfig
from gpuloop.schemas.units import MINUTE_US


class Trigger:
    """A pool of 8-GPU nodes that may have none, does as it is told and is ready at once."""

    def __init__(self, nodes: float = 10, **settings: Any) -> None:
        self.keda = Keda(KedaConfig(**settings), MIX)
        self.keda.reset(np.ones(1, np.bool_))
        self.nodes, self.now_us = float(nodes), START_US

    def tick(self, queue: float, *, running: float = 0, **columns: Any) -> float:
        seen = {
            "tick_us": [self.now_us],
            "present": [[self.nodes, 0.0, 0.0, 4.0]],
            "ready_nodes": [[self.nodes, 0.0]],
            "nodes_min": [0.0],
            "gpus_queued": [float(queue)],
            "gpus_allocated": [float(running)],
        }
        self.nodes = float(self.keda.wanted(batch(**(seen | columns)))[0])
        self.now_us += MINUTE_US
        return self.nodes

    def ticks(self, queue: float, number: int) -> list[float]:
        return [self.tick(queue) for _ in range(number)]


def test_the_queue_over_the_target_of_a_node_is_the_number_of_nodes_rounded_up():
    assert Trigger().tick(161) == 21
    assert Trigger(queue_per_gpu=2.0).tick(161 * 2) == 21


def test_within_a_tenth_of_what_the_nodes_are_meant_to_carry_nothing_changes():
    assert Trigger().tick(88) == 10
    assert Trigger().tick(89) == 12


def test_work_in_flight_is_queue_unless_it_is_said_not_to_be():
    assert Trigger().tick(80, running=80) == 20
    assert Trigger(in_flight=False).tick(160, running=80) == 20


def test_shrinking_above_one_node_is_left_to_the_autoscalers_window():
    trigger = Trigger()
    assert trigger.tick(160) == 20
    assert trigger.ticks(8, 5) == [20, 20, 20, 20, 1]


def test_the_pool_goes_to_none_only_after_the_cooldown():
    trigger = Trigger(cooldown_us=8 * MINUTE_US)
    assert trigger.tick(80) == 10
    assert trigger.ticks(0, 9) == [10, 10, 10, 10, 1, 1, 1, 1, 0]


def test_a_pool_that_was_never_active_needs_no_cooling_down():
    assert Trigger().tick(0) == 0


def test_activity_starts_the_cooldown_anew():
    trigger = Trigger(cooldown_us=3 * MINUTE_US)
    trigger.tick(80)
    trigger.ticks(0, 3)
    assert trigger.tick(8) > 0
    assert all(one > 0 for one in trigger.ticks(0, 3))
    assert trigger.tick(0) == 0


def test_a_pool_of_none_starts_with_its_least_and_then_scales():
    assert Trigger(nodes=0).ticks(80, 2) == [1, 10]
    assert Trigger(nodes=0, least_nodes=3).ticks(80, 2) == [3, 10]


def test_a_queue_at_the_activation_threshold_is_not_active_and_above_it_is():
    assert Trigger(nodes=0, activation_gpus=16.0).tick(16) == 0
    assert Trigger(nodes=0, activation_gpus=16.0).tick(17) == 1


def test_the_activation_threshold_outweighs_the_target_of_scaling():
    trigger = Trigger(activation_gpus=400.0, cooldown_us=0)
    assert trigger.tick(160) == 0


def test_a_least_above_none_is_kept_unless_the_idle_number_is_set():
    assert Trigger(least_nodes=2).ticks(0, 2) == [10, 10]
    assert Trigger(least_nodes=2).ticks(0, 7)[-1] == 2
    assert Trigger(least_nodes=2, idle_nodes=0).ticks(0, 7)[-1] == 0


def test_between_polls_the_activity_of_the_last_one_counts():
    trigger = Trigger(nodes=0, polling_us=5 * MINUTE_US)
    assert trigger.ticks(0, 1) == [0]
    assert trigger.ticks(80, 5) == [0, 0, 0, 0, 1]


def test_a_trigger_that_cannot_be_read_changes_nothing():
    trigger = Trigger()
    trigger.tick(80)
    assert [trigger.tick(0, demand_fresh=[False]) for _ in range(9)] == [10] * 9
    assert trigger.tick(900, demand_fresh=[False]) == 10


def test_a_poll_that_could_not_be_read_is_made_again():
    trigger = Trigger(nodes=0, polling_us=5 * MINUTE_US)
    trigger.ticks(0, 5)
    assert trigger.tick(80, demand_fresh=[False]) == 0
    assert trigger.tick(0) == 0
    assert trigger.ticks(80, 5)[-1] == 1


def test_an_active_pool_does_not_idle_however_rarely_it_is_polled():
    trigger = Trigger(polling_us=20 * MINUTE_US, cooldown_us=MINUTE_US)
    assert trigger.ticks(80, 10) == [10] * 10


def test_a_pool_does_not_go_to_none_while_its_trigger_cannot_be_read():
    trigger = Trigger()
    trigger.tick(80)
    trigger.ticks(0, 3)
    assert [trigger.tick(0, demand_fresh=[False]) for _ in range(5)] == [10] * 5
    assert trigger.tick(0) == 0


@pytest.mark.parametrize(
    "wrong", [{"idle_nodes": 1}, {"idle_nodes": 0}, {"queue_per_gpu": 0.0}, {"pollingInterval": 30}]
)
def test_what_keda_refuses_is_refused(wrong: dict[str, Any]):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, KedaConfig)
