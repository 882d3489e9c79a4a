"""Tuning: the same budget for everyone, the best kept whole, the same twice."""

import msgspec
import numpy as np
import optuna
import pytest
from benchmarks.controlling import entrants, play, tuning
from benchmarks.controlling.play import Stage
from msgspec.structs import replace

from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.workload import DAY_US, Generator

FIRST_US = 20_000 * DAY_US


@pytest.fixture(scope="module")
def stage() -> Stage:
    config = TwinConfig(seed=3)
    small = replace(config, start_us=FIRST_US, pools=config.pools[2:], arrival_share=0.5)
    return Stage(configs=[small], workloads=[Generator("steady", 3, FIRST_US)], traces=None, days=1)


def test_every_controller_has_a_space_of_valid_configurations():
    for name, baseline in CONTROLLERS.items():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(20):
            trial = study.ask()
            made = baseline.config(**tuning.SPACES[name](trial))
            baseline.make(made)


def test_the_best_trial_is_kept_with_its_settings_and_is_the_same_twice(stage, tmp_path):
    told = []

    def tuned() -> tuning.Tuned:
        return tuning.tune(
            ["rule"], stage, given={}, seed=1, trials=2, tell=lambda what, share: told.append(share)
        )["rule"]

    one = tuned()
    assert one == tuned()
    assert told == [1.0, 1.0]
    assert one.best in one.settings == CONTROLLERS["rule"].settings
    tuning.store({"rule": one}, tmp_path / "kept.json")
    assert tuning.load(tmp_path / "kept.json") == {"rule": one}
    configured = one.configured("rule", {})
    assert isinstance(configured, CONTROLLERS["rule"].config)
    with pytest.raises(msgspec.ValidationError):
        one.configured("rule", {"no_such_field": 1})


def test_what_is_not_tuned_is_not_kept(stage):
    given = {"demand_by_hour": {"l4": tuple((8.0,) for _ in range(168))}}
    one = tuning.tune(
        ["schedule"], stage, given={"schedule": given}, seed=1, trials=1, tell=lambda *_: None
    )["schedule"]
    assert "demand_by_hour" not in one.config
    assert one.configured("schedule", given).demand_by_hour == given["demand_by_hour"]


def test_rule_that_is_compared_is_the_one_that_runs_where_nothing_else_is_said():
    assert entrants.rule_of(tuning.load()) == CONTROLLERS[entrants.RULE].config()


def test_what_ships_names_every_controller_and_fits_its_configuration():
    kept = tuning.load()
    assert set(kept) == set(CONTROLLERS)
    for name, one in kept.items():
        one.configured(name, {})
        assert one.best in one.settings
        assert len(one.settings) == 7


def test_a_trial_loses_what_is_idle_and_for_each_late_job_its_price(stage, monkeypatch):
    config = CONTROLLERS["static"].config()

    def losses(price: float):
        monkeypatch.setattr(play, "LATE_NODE_HOURS", {"l4": price})
        return tuning._losses(stage, [("static", config, (0.05, 1.0))])[0]

    (lean, ample), (dear_lean, dear_ample) = losses(0.0), losses(10.0)
    assert lean > ample > 0.0, "idle nodes and penalties are lost at any price"
    late = [(dear_lean - lean) / 10.0, (dear_ample - ample) / 10.0]
    assert late == pytest.approx(np.round(late)), "a day's jobs"
    assert late[0] > late[1]
