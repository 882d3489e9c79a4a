"""Training on a stream of transitions: reproducible, exportable, and it learns."""

import numpy as np
import pytest

from gpuloop.loop.learn.experience import ACTION_SIZE, OBSERVATION_SIZE, Transition
from gpuloop.loop.learn.spaces import fit_normaliser
from gpuloop.loop.learn.trainer import Trainer, TrainerConfig
from gpuloop.schemas.messages.learning import Normaliser

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


def test_a_normaliser_keeps_constant_features_from_exploding():
    normaliser = fit_normaliser(np.ones((10, OBSERVATION_SIZE), np.float32))
    assert min(normaliser.scale) == 0.05
