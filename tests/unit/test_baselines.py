"""What all controllers share, the two simplest, and the catalogue."""

import inspect
from typing import Any

import msgspec
import numpy as np
import pytest

from builders import batch
from gpuloop.reasoning.baselines.catalogue import CONTROLLERS, MIX
from gpuloop.reasoning.baselines.controller import capacity_action
from gpuloop.reasoning.baselines.static import Static, StaticConfig
from gpuloop.reasoning.baselines.tracking import BlindTracking, Tracking
from gpuloop.reasoning.rule import RuleConfig, rule_action
from gpuloop.schemas.policy import MIGRATION, ON_DEMAND, PRICE, SPOT

NODES = [ON_DEMAND, SPOT]


def total_of(action: np.ndarray) -> float:
    return float(action[0, NODES].sum())


def test_capacity_is_bought_as_the_rule_buys_it():
    hungry = batch(gpus_allocated=[192.0], gpus_queued=[64.0])
    rule = RuleConfig()
    mine = Tracking(rule, rule)(hungry)
    np.testing.assert_array_equal(mine[:, NODES], rule_action(hungry, rule)[:, NODES])


def test_the_purchase_mix_is_not_the_controllers_own():
    hungry = batch(gpus_allocated=[192.0], gpus_queued=[64.0])
    dear = Tracking(RuleConfig(spot_share=1.0), RuleConfig(spot_share=0.0))(hungry)
    assert dear[0, SPOT] == 8


def test_the_price_stays_and_jobs_move_where_nodes_are_suspected():
    troubled = batch(jobs_at_risk=[2.0], reference_price=[8.0])
    action = capacity_action(troubled, np.array([20.0]), MIX)
    assert action[0, PRICE] == 4.0
    assert action[0, MIGRATION] == 1.0
    assert capacity_action(batch(), np.array([20.0]), MIX)[0, MIGRATION] == 0.0


@pytest.mark.parametrize(("total", "nodes"), [(3.0, 8), (99.0, 48), (np.nan, 24), (np.inf, 24)])
def test_a_total_is_kept_within_the_bounds_of_the_pool(total: float, nodes: float):
    assert total_of(capacity_action(batch(), np.array([total]), MIX)) == nodes


def test_the_last_node_stays_as_the_envelope_would_put_the_rules_wish_in_the_place_of_none():
    free = {"low": [[0.0, 0.0, 0.0, 2.0]], "nodes_min": [0.0]}
    assert total_of(capacity_action(batch(**free), np.zeros(1), MIX)) == 1
    none = batch(**free, present=[[0.0, 0.0, 0.0, 4.0]])
    assert total_of(capacity_action(none, np.zeros(1), MIX)) == 0


@pytest.mark.parametrize(("share", "nodes"), [(1.0, 48), (0.5, 24), (0.51, 25), (0.0, 8)])
def test_a_static_pool_has_its_share_whatever_happens(share: float, nodes: float):
    static = Static(StaticConfig(share=share), MIX)
    assert total_of(static(batch(gpus_queued=[500.0]))) == nodes


def forecast(gpus: float, **columns: Any) -> Any:
    return batch(forecast_gpus=[[[gpus] * 3] * 3], forecast_trusted=[True], **columns)


def test_only_the_rule_with_a_forecast_grows_for_one():
    coming = forecast(240.0, gpus_allocated=[180.0])
    assert total_of(Tracking(RuleConfig(forecast_weight=1.0), MIX)(coming)) == 30
    assert total_of(BlindTracking(RuleConfig(), MIX)(coming)) == 23


def test_only_the_rule_with_a_forecast_keeps_nodes_for_one():
    coming = forecast(180.0)
    weightless = RuleConfig(forecast_weight=0.0)
    assert total_of(Tracking(weightless, MIX)(coming)) == 23
    assert total_of(BlindTracking(RuleConfig(), MIX)(coming)) == 13


def test_a_batch_of_other_pools_than_were_reset_is_refused():
    controller = CONTROLLERS["hpa"].make()
    with pytest.raises(ValueError, match="2 pools, but reset for 0"):
        controller(batch(2))
    controller.reset(np.ones(3, np.bool_))
    with pytest.raises(ValueError, match="2 pools, but reset for 3"):
        controller(batch(2))


def test_the_catalogue_names_every_controller_of_the_issue():
    assert list(CONTROLLERS) == [
        "static", "hpa", "keda", "autopilot", "schedule", "karpenter", "rule", "rule+forecast",
    ]  # fmt: skip


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_has_one_knob_with_seven_settings_that_its_configuration_takes(name: str):
    baseline = CONTROLLERS[name]
    assert len(set(baseline.settings)) == 7
    for setting in baseline.settings:
        config = baseline.turned(baseline.config(), setting)
        assert getattr(config, baseline.knob) == setting
        assert msgspec.json.decode(msgspec.json.encode(config), type=baseline.config) == config
        baseline.make(config).reset(np.ones(1, np.bool_))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_configuration_is_frozen_and_refuses_what_it_does_not_know(name: str):
    config = CONTROLLERS[name].config
    assert config.__struct_config__.frozen
    assert config.__struct_config__.forbid_unknown_fields
    assert all(
        one.kind is inspect.Parameter.KEYWORD_ONLY
        for one in inspect.signature(config).parameters.values()
    )


def test_the_configuration_of_another_controller_is_refused():
    with pytest.raises(TypeError, match="HpaConfig expected, not StaticConfig"):
        CONTROLLERS["hpa"].make(StaticConfig())
