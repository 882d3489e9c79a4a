"""Training on a stream of transitions: reproducible, exportable, and it learns."""

import numpy as np
import pytest
import torch

from gpuloop.loop.learn.experience import ACTION_SIZE, OBSERVATION_SIZE, Transition
from gpuloop.loop.learn.spaces import Scaling, fit_normaliser
from gpuloop.loop.learn.trainer import Trainer, TrainerConfig
from gpuloop.reasoning.actor import Actor
from gpuloop.schemas.messages.learning import Normaliser
from gpuloop.schemas.policy import FEATURE_NAMES

PLAIN = Normaliser(mean=(0.0,) * OBSERVATION_SIZE, scale=(1.0,) * OBSERVATION_SIZE, clip=5.0)


def transitions(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        action = rng.uniform(-1, 1, ACTION_SIZE).astype(np.float32)
        yield Transition(
            observation=rng.normal(size=OBSERVATION_SIZE).astype(np.float32),
            action=action,
            reward=-float(np.square(action - 0.6).sum()),
            next_observation=rng.normal(size=OBSERVATION_SIZE).astype(np.float32),
        )


def trained(algorithm, *, seed=0, updates=40):
    trainer = Trainer(TrainerConfig(algorithm=algorithm), seed=seed, normaliser=PLAIN)
    trainer.add(transitions(400))
    trainer.update(updates)
    return trainer


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_training_twice_gives_the_same_weights_and_another_seed_gives_others(algorithm):
    first, again, other = (trained(algorithm, seed=s).export()[1] for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_priorities_change_what_is_learnt_and_training_twice_does_not():
    def weights(**changes):
        trainer = Trainer(TrainerConfig(**changes), seed=0, normaliser=PLAIN)
        trainer.add(transitions(300))
        trainer.update(20)
        return trainer.export()[1]

    urgent = {"priority_exponent": 0.6, "n_steps": 3}
    assert weights(**urgent) == weights(**urgent) != weights()


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_a_new_actor_starts_next_to_the_rule(algorithm):
    trainer = Trainer(TrainerConfig(algorithm=algorithm), seed=0, normaliser=PLAIN)
    assert np.abs(trainer.act(np.ones((3, OBSERVATION_SIZE), np.float32))).max() < 0.05


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_training_moves_the_actor_towards_the_rewarded_action(algorithm):
    trainer = trained(algorithm, updates=600)
    observations = np.random.default_rng(9).normal(size=(64, OBSERVATION_SIZE)).astype(np.float32)
    before = Trainer(TrainerConfig(algorithm=algorithm), seed=0, normaliser=PLAIN).act(observations)
    error = np.square(trainer.act(observations) - 0.6).mean()
    assert error < 0.5 * np.square(before - 0.6).mean()


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_an_exported_actor_can_be_continued(algorithm):
    trainer = trained(algorithm)
    _, weights = trainer.export()
    fresh = Trainer(TrainerConfig(algorithm=algorithm), seed=5, normaliser=PLAIN)
    fresh.start_from(weights)
    observations = np.ones((2, OBSERVATION_SIZE), np.float32)
    assert np.array_equal(fresh.act(observations), trainer.act(observations))
    wide = Trainer(TrainerConfig(algorithm=algorithm, hidden=(32, 32)), seed=5, normaliser=PLAIN)
    with pytest.raises(ValueError, match="shape"):
        wide.start_from(weights)


def test_too_little_experience_trains_nothing():
    trainer = Trainer(TrainerConfig(), seed=0, normaliser=PLAIN)
    before = trainer.export()[1]
    trainer.add(transitions(10))
    trainer.update(100)
    assert trainer.updates == 0
    assert trainer.export()[1] == before


CONSTANT = FEATURE_NAMES.index("throttled")
STEADY = FEATURE_NAMES.index("pending_ratio")


def fitted() -> Normaliser:
    """Return the normaliser of features that vary, one of them little, and of one constant."""
    observations = np.random.default_rng(0).normal(size=(400, OBSERVATION_SIZE))
    observations[:, CONSTANT] = 0.3
    observations[:, STEADY] *= 0.01
    return fit_normaliser(observations.astype(np.float32))


def moved(feature: int, value: float) -> np.ndarray:
    """Return two observations that differ in one feature only."""
    pair = np.tile(np.array(fitted().mean), (2, 1))
    pair[1, feature] = value
    return pair


def acted(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what torch and numpy make of observations, and whether they are in range."""
    trainer = Trainer(TrainerConfig(), seed=0, normaliser=fitted())
    with torch.no_grad():
        trainer.model.actor.mu.weight.mul_(100.0)
    spec, weights = trainer.export()
    actor = Actor.from_safetensors(weights, spec, fitted())
    inputs = observations.astype(np.float32)
    return trainer.act(inputs), actor(observations), actor.in_range(observations)


def test_a_feature_that_never_varied_moves_no_action_and_is_never_out_of_range() -> None:
    trained, served, in_range = acted(moved(CONSTANT, 4.0))
    assert np.array_equal(trained[0], trained[1])
    assert np.array_equal(served[0], served[1])
    assert in_range.all()


def test_a_feature_that_varied_a_little_does_move_actions_within_its_range() -> None:
    _, served, in_range = acted(moved(STEADY, 0.3))
    assert not np.array_equal(served[0], served[1])
    assert in_range.all()
    assert not acted(moved(STEADY, 0.6))[2].all()


def test_what_is_not_a_number_is_out_of_range_even_where_the_actor_is_blind() -> None:
    spec, weights = Trainer(TrainerConfig(), seed=0, normaliser=fitted()).export()
    actor = Actor.from_safetensors(weights, spec, fitted())
    assert actor.in_range(moved(CONSTANT, np.nan)).tolist() == [True, False]


def test_every_hour_of_the_week_is_in_range_after_half_a_day_of_training() -> None:
    half = np.random.default_rng(0).normal(size=(400, OBSERVATION_SIZE)).astype(np.float32)
    clock = [index for index, name in enumerate(FEATURE_NAMES) if name.endswith(("_sin", "_cos"))]
    half[:, clock] = 0.9 + 0.01 * half[:, clock]
    scaling = Scaling(fit_normaliser(half))
    sunday = np.zeros((1, OBSERVATION_SIZE), np.float32)
    sunday[0, clock] = -1.0
    assert np.abs(scaling(sunday)[0, clock]).max() < 2.0


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_training_leaves_nothing_in_the_folder_for_temporary_files(
    algorithm, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    trained(algorithm)
    assert list(tmp_path.iterdir()) == []
