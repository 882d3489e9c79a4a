"""The check: who changes nothing gains nothing, who wastes loses, and each pool judges alone."""

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import load, save

from gpuloop.loop.learn.experience import OBSERVATION_SIZE
from gpuloop.loop.learn.judge import (
    JUDGING_SEEDS,
    LUCKS,
    WARM_UP_HOURS,
    _days,
    _lucks,
    _verdicts,
    earned,
    figures,
    judge,
)
from gpuloop.loop.learn.teach import DAY_US, SEEDS_APART, Curriculum, Lesson
from gpuloop.loop.learn.trainer import Trainer, TrainerConfig
from gpuloop.schemas.messages.learning import Normaliser
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import DEFAULT_START_US, TwinConfig
from gpuloop.twin.workload import Generator

POOLS = ("h100", "a100", "l4")
CURRICULUM = Curriculum(
    train_from_us=0,
    train_days=1,
    check_from_us=DEFAULT_START_US,
    check_days=1,
    check_generated_days=1,
)
PLAIN = Normaliser(mean=(0.0,) * OBSERVATION_SIZE, scale=(1.0,) * OBSERVATION_SIZE, clip=5.0)


def lesson(offset: float) -> Lesson:
    """Return a policy that always asks for the same offset."""
    spec, weights = Trainer(TrainerConfig(hidden=(4,)), seed=0, normaliser=PLAIN).export()
    tensors = load(weights)
    last = max(tensors, key=lambda name: int(name.split(".")[1])).rpartition(".")[0]
    tensors[f"{last}.weight"] = np.zeros_like(tensors[f"{last}.weight"])
    tensors[f"{last}.bias"] = np.full_like(tensors[f"{last}.bias"], np.arctanh(offset))
    return Lesson(actor=spec, normaliser=PLAIN, weights=save(tensors), transitions=0, updates=0)


def gained(offset: float) -> dict[str, float]:
    told: list[float] = []
    gates = judge(
        lesson(offset),
        CURRICULUM,
        TwinConfig(),
        traces=None,
        seed=0,
        progress=lambda what, share: told.append(share),
        alphas=(1.0,),
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert set(earned(gates).values()) == {0.0}, "two days are no evidence"
    assert figures(gates)["l4_alpha_1_days"] == 2.0
    return {pool: gate.checks[0].mean_usd_per_day for pool, gate in gates.items()}


def test_who_changes_nothing_gains_nothing():
    assert gained(0.0) == dict.fromkeys(POOLS, 0.0)


def test_who_always_keeps_more_than_anyone_needs_loses():
    wasted = gained(0.95)
    assert wasted["h100"] < -1_000.0
    assert wasted["a100"] < 0.0


def test_each_pool_judges_for_itself():
    lost = np.full((2, 6, 3), 100.0) + np.random.default_rng(0).normal(size=(2, 6, 3))
    lost[1, :, 1] -= 50.0
    lost[1, :, 2] += 50.0
    assert earned(_verdicts(lost, POOLS, (0.5,))) == {"h100": 0.0, "a100": 0.5, "l4": 0.0}


@pytest.mark.parametrize("more", [0, 3])
def test_generated_days_stand_beside_those_of_the_trace_on_seeds_that_training_never_draws(more):
    days = _days(replace(CURRICULUM, check_generated_days=more), TwinConfig(), None)
    assert len(days) == 1 + more
    seeds = [jobs._seed for _, jobs in days if isinstance(jobs, Generator)]
    assert len(set(seeds)) == len(days)
    assert min(seeds) >= JUDGING_SEEDS > SEEDS_APART * 1_000


def test_what_is_scored_ends_with_the_last_day_that_may_judge():
    curriculum = replace(CURRICULUM, check_days=3, check_generated_days=9)
    scored = [
        config.start_us + WARM_UP_HOURS * HOUR_US
        for config, _ in _days(curriculum, TwinConfig(), None)
    ]
    assert {us % DAY_US for us in scored} == {DEFAULT_START_US % DAY_US}, "whole days"
    assert min(scored) == DEFAULT_START_US
    assert max(scored[:3]) + DAY_US == DEFAULT_START_US + 3 * DAY_US
    assert all(
        jobs.start_us == config.start_us for config, jobs in _days(curriculum, TwinConfig(), None)
    )


def test_no_two_days_have_one_luck_and_no_two_training_seeds_the_same():
    days = [config for config, _ in _days(replace(CURRICULUM, check_days=7), TwinConfig(), None)]
    found = [config.seed for seed in (0, 1) for config in _lucks(days, seed)]
    assert len(found) == 2 * LUCKS * len(days)
    assert len(set(found)) == len(found)
    assert TwinConfig().seed not in found
