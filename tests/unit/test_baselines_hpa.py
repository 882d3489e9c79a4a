"""The Horizontal Pod Autoscaler, on the cases that its documentation describes."""

from typing import Any

import msgspec
import numpy as np
import pytest

from builders import START_US, batch
from gpuloop.reasoning.baselines.behaviour import (
    DOWN,
    UP,
    Asked,
    Behaviour,
    ScalingPast,
    ScalingPolicy,
    ScalingRules,
    follow,
)
from gpuloop.reasoning.baselines.catalogue import MIX
from gpuloop.reasoning.baselines.hpa import QUALITY, Hpa, HpaConfig
from gpuloop.reasoning.baselines.replicas import ReplicaMetrics, Tolerance, desired_replicas
from gpuloop.schemas.policy import FEATURE_NAMES
from gpuloop.schemas.units import MINUTE_US, SECOND_US

TEN_PERCENT = Tolerance(up=0.1, down=0.1)
NONE = Tolerance(up=0.0, down=0.0)
DEFAULT = Behaviour()
AT_ONCE = Behaviour(down=msgspec.structs.replace(DOWN, window_us=0))


def desired(
    utilisation: float,
    target: float,
    *,
    current: float = 10,
    missing: float = 0,
    unready: float = 0,
    tolerance: Tolerance = TEN_PERCENT,
) -> float:
    metrics = ReplicaMetrics(
        current=np.array([float(current)]),
        measured=np.array([float(current - missing - unready)]),
        utilisation=np.array([utilisation]),
        missing=np.array([float(missing)]),
        unready=np.array([float(unready)]),
    )
    return float(desired_replicas(metrics, target, tolerance)[0])


def test_twice_the_target_doubles_and_half_of_it_halves():
    assert desired(2.0, 1.0) == 20
    assert desired(0.5, 1.0) == 5


def test_fifty_replicas_at_90_percent_of_a_target_of_75_become_sixty():
    assert desired(0.90, 0.75, current=50) == 60


def test_what_does_not_divide_rounds_up():
    assert desired(0.5, 1.0, current=3, tolerance=NONE) == 2
    assert desired(1.2, 1.0, current=3, tolerance=NONE) == 4


@pytest.mark.parametrize(("utilisation", "replicas"), [(88, 10), (88.1, 12), (72, 10), (71.9, 9)])
def test_the_edge_of_the_tolerance_belongs_to_it(utilisation: float, replicas: float):
    assert desired(utilisation, 80) == replicas


def test_without_a_tolerance_the_smallest_deviation_scales():
    assert desired(0.801, 0.8, tolerance=NONE) == 11
    assert desired(0.7, 0.8, tolerance=NONE) == 9
    assert desired(0.8, 0.8, tolerance=NONE) == 10


def test_each_direction_has_its_own_tolerance():
    careful = Tolerance(up=0.0, down=0.3)
    assert desired(0.85, 0.8, tolerance=careful) == 11
    assert desired(0.6, 0.8, tolerance=careful) == 10


def test_a_replica_without_a_metric_counts_as_full_on_the_way_down():
    assert desired(0.2, 0.8) == 3
    assert desired(0.2, 0.8, missing=5) == 8
    assert desired(0.5, 0.8, missing=5) == 10


def test_a_replica_without_a_metric_counts_as_idle_on_the_way_up():
    assert desired(1.6, 0.8) == 20
    assert desired(1.6, 0.8, missing=2) == 16
    assert desired(1.0, 0.8, missing=5) == 10


def test_a_replica_that_is_not_ready_counts_as_idle_on_the_way_up_and_not_at_all_down():
    assert desired(1.6, 0.8, unready=2) == 16
    assert desired(1.0, 0.8, unready=5) == 10
    assert desired(0.4, 0.8, unready=2) == 4
    assert desired(0.75, 0.8, unready=2) == 10


def test_without_any_metric_nothing_changes():
    assert desired(0.0, 0.8, missing=10) == 10
    assert desired(50.0, 0.8, unready=10) == 10


@pytest.mark.parametrize("missing", range(11))
@pytest.mark.parametrize("utilisation", [0.0, 0.3, 0.79, 0.81, 1.2, 3.0])
def test_a_gap_in_the_metrics_never_makes_a_change_larger(utilisation: float, missing: int):
    whole, gap = desired(utilisation, 0.8), desired(utilisation, 0.8, missing=missing)
    assert min(whole, 10) <= gap <= max(whole, 10)


class Autoscaler:
    """Replicas that do as they are told, unless a test says otherwise."""

    def __init__(self, behaviour: Behaviour = DEFAULT, replicas: float = 10) -> None:
        self.behaviour, self.replicas, self.now_us = behaviour, float(replicas), START_US
        self.past = ScalingPast.empty(1, behaviour)

    def tick(self, desired: float, *, least: float = 1, most: float = 1000, known: bool = True,
             done: float | None = None) -> float:  # fmt: skip
        asked = Asked(
            now_us=np.array([self.now_us]),
            current=np.array([self.replicas]),
            desired=np.array([float(desired)]),
            known=np.array([known]),
            least=np.array([float(least)]),
            most=np.array([float(most)]),
        )
        told = float(follow(self.past, asked, self.behaviour)[0])
        self.replicas = told if done is None else float(done)
        self.now_us += MINUTE_US
        return told


def rules(kind: Any, value: float, period_s: int, *more: ScalingPolicy, **changes: Any):
    policy = ScalingPolicy(kind=kind, value=value, period_us=period_s * SECOND_US)
    return ScalingRules(**({"window_us": 0, "policies": (policy, *more)} | changes))


def test_growth_is_immediate_and_shrinkage_waits_for_the_largest_of_five_minutes():
    scaler = Autoscaler()
    assert scaler.tick(30) == 30
    assert [scaler.tick(5) for _ in range(5)] == [30, 30, 30, 30, 5]


def test_a_window_upwards_takes_the_smallest_recommendation():
    up = msgspec.structs.replace(UP, window_us=3 * MINUTE_US)
    scaler = Autoscaler(Behaviour(up=up))
    assert [scaler.tick(one) for one in (10, 30, 20, 40, 40)] == [10, 10, 10, 20, 20]


def test_a_recommendation_as_old_as_the_window_no_longer_counts():
    scaler = Autoscaler(Behaviour(down=msgspec.structs.replace(DOWN, window_us=MINUTE_US)))
    scaler.tick(10)
    assert scaler.tick(5) == 5


def test_a_tenth_of_72_replicas_per_minute_takes_eight():
    scaler = Autoscaler(Behaviour(down=rules("percent", 10, 60)), replicas=72)
    assert scaler.tick(1) == 64
    assert scaler.tick(1) == 57


def test_a_percentage_upwards_rounds_up_so_that_one_replica_can_grow():
    scaler = Autoscaler(Behaviour(up=rules("percent", 10, 60)), replicas=1)
    assert [scaler.tick(9) for _ in range(3)] == [2, 3, 4]


def test_the_default_doubles_or_adds_four_whichever_is_more_every_15_seconds():
    assert Autoscaler(replicas=1).tick(1000) == 40
    assert Autoscaler(replicas=10).tick(1000) == 160


def test_the_first_recommendation_of_all_is_what_was_there():
    scaler = Autoscaler(replicas=500)
    assert [scaler.tick(2, least=3) for _ in range(6)] == [500, 500, 500, 500, 500, 3]


def test_the_default_takes_everything_at_once_when_its_window_is_over():
    assert Autoscaler(AT_ONCE, replicas=500).tick(2) == 2


@pytest.mark.parametrize(("select", "replicas"), [("max", 20), ("min", 14), ("disabled", 10)])
def test_the_selected_policy_bounds_growth(select: str, replicas: float):
    pods = ScalingPolicy(kind="pods", value=4, period_us=MINUTE_US)
    up = rules("percent", 100, 60, pods, select=select)
    assert Autoscaler(Behaviour(up=up)).tick(100) == replicas


@pytest.mark.parametrize(("select", "replicas"), [("max", 5), ("min", 8), ("disabled", 10)])
def test_the_selected_policy_bounds_shrinkage(select: str, replicas: float):
    pods = ScalingPolicy(kind="pods", value=2, period_us=MINUTE_US)
    down = rules("percent", 50, 60, pods, select=select)
    assert Autoscaler(Behaviour(down=down)).tick(1) == replicas


def test_a_period_longer_than_a_tick_lets_a_change_through_once_in_it():
    scaler = Autoscaler(Behaviour(up=rules("pods", 4, 180)))
    assert [scaler.tick(100) for _ in range(7)] == [14, 14, 14, 18, 18, 18, 22]


def test_a_period_of_half_a_tick_lets_a_change_through_twice_in_it():
    scaler = Autoscaler(Behaviour(up=rules("pods", 1, 30)))
    assert [scaler.tick(100) for _ in range(3)] == [12, 14, 16]


def test_a_percentage_is_of_the_replicas_at_the_start_of_its_period():
    scaler = Autoscaler(Behaviour(up=rules("percent", 50, 600)), replicas=100)
    assert [scaler.tick(one) for one in (120, 140, 200)] == [120, 140, 150]


def test_what_left_within_a_period_may_come_back_within_it():
    behaviour = Behaviour(up=rules("pods", 1, 600), down=rules("pods", 50, 60))
    scaler = Autoscaler(behaviour, replicas=50)
    assert scaler.tick(40) == 40
    assert scaler.tick(60) == 51


def test_a_change_that_was_not_made_does_not_use_up_its_period():
    scaler = Autoscaler(Behaviour(up=rules("pods", 4, 600)))
    assert scaler.tick(100, done=11) == 14
    assert scaler.tick(100) == 14
    assert scaler.tick(100) == 14


def test_replicas_outside_their_bounds_are_brought_to_them_whatever_the_metric_says():
    up = rules("pods", 1, 60)
    assert Autoscaler(Behaviour(up=up)).tick(10, least=15, known=False) == 15
    assert Autoscaler().tick(10, most=4, known=False) == 4


def test_being_brought_to_the_bounds_uses_up_the_period_and_is_not_undone():
    up = Autoscaler(Behaviour(up=rules("pods", 4, 600)))
    assert up.tick(10, least=15) == 15
    assert up.tick(100) == 15
    down = Autoscaler(Behaviour(down=rules("pods", 1, 600)))
    assert down.tick(10, most=4) == 4
    assert down.tick(1) == 4


def test_growth_ends_at_the_most():
    assert Autoscaler().tick(100, most=12) == 12


def test_what_someone_else_changed_is_no_change_of_the_autoscaler():
    slow = ScalingPolicy(kind="pods", value=4, period_us=10 * MINUTE_US)
    scaler = Autoscaler(Behaviour(up=rules("pods", 1, 15, slow, select="min")))
    assert scaler.tick(100, known=False, done=13) == 10
    assert scaler.tick(100) == 17


def test_no_replicas_means_switched_off():
    assert Autoscaler(replicas=0).tick(20) == 0


def test_without_a_metric_nothing_changes_and_nothing_is_remembered():
    scaler = Autoscaler(AT_ONCE)
    assert scaler.tick(50, known=False) == 10
    assert scaler.tick(5) == 5
    window = Autoscaler()
    window.tick(50, known=False)
    assert [window.tick(5) for _ in range(5)] == [10, 10, 10, 10, 5]


@pytest.mark.parametrize(
    "wrong",
    [
        {"policies": []},
        {"window_us": 3601 * SECOND_US},
        {"tolerance": -0.1},
        {"select": "most"},
        {"stabilisation": 1},
    ],
)
def test_rules_that_the_api_refuses_are_refused(wrong: dict[str, Any]):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(UP) | wrong, ScalingRules)


def test_a_policy_of_more_than_thirty_minutes_is_refused():
    with pytest.raises(ValueError, match="30 minutes"):
        ScalingPolicy(kind="pods", value=1, period_us=1801 * SECOND_US)


def wanted(target: float = 0.8, **columns: Any) -> float:
    scaler = Hpa(HpaConfig(target=target, behaviour=AT_ONCE), MIX)
    scaler.reset(np.ones(1, np.bool_))
    return float(scaler.wanted(batch(**columns))[0])


def test_the_metric_is_what_is_demanded_over_what_is_ready():
    assert wanted(gpus_allocated=[192.0], gpus_queued=[24.0]) == 34
    assert wanted(gpus_allocated=[120.0]) == 19


def test_nodes_that_arrive_are_not_ordered_again():
    ordered = {"present": [[26.0, 8.0, 0.0, 4.0]], "gpus_allocated": [192.0]}
    assert wanted(**ordered, gpus_queued=[24.0]) == 34


def test_nodes_that_arrive_are_not_given_back_for_what_they_will_carry():
    ordered = {"present": [[26.0, 8.0, 0.0, 4.0]], "gpus_allocated": [190.0]}
    assert wanted(**ordered) == 34
    assert wanted(**ordered, ready_nodes=[[26.0, 8.0]]) == 30


def test_nodes_on_their_way_out_do_not_count():
    leaving = {"present": [[12.0, 8.0, 0.0, 4.0]], "gpus_allocated": [130.0]}
    assert wanted(**leaving) == 20


def test_the_autoscaler_does_not_go_to_none_by_itself():
    assert wanted(nodes_min=[0.0], gpus_allocated=[0.0]) == 1


def test_a_tick_without_metrics_is_not_remembered_as_one_that_asked_for_what_there_was():
    window = Behaviour(up=msgspec.structs.replace(UP, window_us=3 * MINUTE_US))
    scaler = Hpa(HpaConfig(behaviour=window), MIX)
    scaler.reset(np.ones(1, np.bool_))
    wishes = []
    for minute in range(4):
        heard = np.full((1, len(FEATURE_NAMES)), 0.0 if minute == 2 else 1.0)
        seen = batch(tick_us=[START_US + minute * MINUTE_US], gpus_queued=[200.0],
                     telemetry_fresh=[minute != 2], observation=heard)  # fmt: skip
        wishes.append(scaler.wanted(seen)[0])
    assert wishes == [24, 24, 24, 47]


@pytest.mark.parametrize("stale", ["demand_fresh", "capacity_fresh"])
def test_a_stale_metric_is_no_metric(stale: str):
    assert wanted(gpus_allocated=[10.0], **{stale: [False]}) == 24
    assert wanted(gpus_allocated=[190.0], gpus_queued=[99.0], **{stale: [False]}) == 24


def test_telemetry_with_gaps_damps_what_is_done():
    heard = np.zeros((1, len(FEATURE_NAMES)))
    gap = {"telemetry_fresh": [False], "gpus_allocated": [96.0]}
    assert wanted(gpus_allocated=[96.0]) == 15
    assert wanted(**gap, observation=heard) == 24
    heard[0, QUALITY] = 0.75
    assert wanted(**gap, observation=heard) == 19


def test_a_lower_target_wants_more():
    many = [wanted(one, gpus_allocated=[150.0]) for one in (1.2, 0.9, 0.6, 0.4)]
    assert many == sorted(many)
    assert len(set(many)) == 4
