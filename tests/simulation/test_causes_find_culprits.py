"""The bar of the causes process: it names the culprit of seeded faults it was never told of."""

import pytest

from gpuloop.loop.evaluate.cause_trials import (
    Trial,
    TrialFault,
    quiet_config,
    run_quiet,
    run_trial,
)
from gpuloop.reasoning.causal import CausalModels
from gpuloop.reasoning.causes import Causes

FAULTS: tuple[TrialFault, ...] = (
    "thermal", "link", "ecc", "rack_link", "thermal", "ecc", "link", "thermal", "ecc", "rack_link",
)  # fmt: skip


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    models = CausalModels()
    return [
        run_trial(fault, quiet_config(seed), models.attribute)
        for seed, fault in enumerate(FAULTS, start=100)
    ]


def test_causes_see_states_only() -> None:
    assert all(topic.startswith("state.") for topic in Causes.inputs)


def test_deep_tier_names_the_culprit_first_in_eight_of_ten_faults(trials: list[Trial]) -> None:
    first = [(trial.fault, trial.culprit, trial.rank(trial.causal)) for trial in trials]
    print(first)
    assert sum(rank == 1 for _, _, rank in first) >= 8


def test_deep_tier_traces_slow_work_to_the_culprit(trials: list[Trial]) -> None:
    slowed = [trial for trial in trials if trial.of_work]
    print([(trial.fault, trial.culprit, trial.rank(trial.of_work)) for trial in slowed])
    assert len(slowed) >= 5
    assert sum(trial.rank(trial.of_work) == 1 for trial in slowed) >= 0.8 * len(slowed)


def test_fast_tier_speaks_within_ten_minutes(trials: list[Trial]) -> None:
    found = [trial for trial in trials if trial.rank(trial.fast) == 1]
    assert len(found) >= 8
    assert all(t.fast[0].event_time_us - t.struck_us <= 10 * 60_000_000 for t in found)


def test_healthy_fleet_under_load_and_changing_hands_has_no_causes() -> None:
    patient = run_quiet(quiet_config(7), hours=6)
    counters = patient.world.state.counters
    print(counters)
    assert counters.finished > 20
    assert counters.migrated > 5
    assert patient.fast == []
