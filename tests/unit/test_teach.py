"""Training in the environment: both algorithms, the same bytes twice, served by numpy."""

from functools import cache

import numpy as np
import pytest
import torch

from gpuloop.loop.learn.environment import Course, FleetVecEnv
from gpuloop.loop.learn.experience import ACTION_SIZE, OBSERVATION_SIZE
from gpuloop.loop.learn.spaces import fit_normaliser
from gpuloop.loop.learn.teach import EXPLORATION_BLOCK, Curriculum, Lesson, teach, wander
from gpuloop.loop.learn.trainer import Trainer, TrainerConfig
from gpuloop.reasoning.actor import Actor
from gpuloop.twin.config import DEFAULT_START_US, TwinConfig

POOLS = 3
HOUR = 1 / 24


def quiet(what, share):
    """Report progress to nobody."""


def taught(algorithm, *, seed=0, updates_per_transition=1.0, progress=quiet) -> Lesson:
    curriculum = Curriculum(
        train_from_us=DEFAULT_START_US,
        train_days=HOUR,
        check_from_us=0,
        check_days=0,
        updates_per_transition=updates_per_transition,
        random_days=HOUR,
    )
    return teach(
        TrainerConfig(algorithm=algorithm),
        curriculum,
        TwinConfig(),
        traces=None,
        seed=seed,
        progress=progress,
    )


@cache
def lesson(algorithm) -> Lesson:
    return taught(algorithm)


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_an_hour_of_training_is_counted_in_whole_ticks_of_all_pools(algorithm):
    made = lesson(algorithm)
    assert made.transitions == POOLS * (60 + 58)
    assert made.updates == POOLS * 58


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_teaching_twice_gives_the_same_bytes(algorithm):
    assert taught(algorithm) == lesson(algorithm)


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_training_moves_the_actor_away_from_the_rule(algorithm):
    made = lesson(algorithm)
    trainer = Trainer(TrainerConfig(algorithm=algorithm), seed=0, normaliser=made.normaliser)
    assert made.weights != trainer.export()[1]


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_numpy_serves_what_torch_trained(algorithm):
    made = lesson(algorithm)
    trainer = Trainer(TrainerConfig(algorithm=algorithm), seed=1, normaliser=made.normaliser)
    trainer.start_from(made.weights)
    actor = Actor.from_safetensors(made.weights, made.actor, made.normaliser)
    observations = np.random.default_rng(0).normal(size=(256, OBSERVATION_SIZE))
    served = actor(observations, decimals=None)
    assert np.abs(served - trainer.act(observations.astype(np.float32))).max() < 1e-5


@pytest.mark.parametrize(("share", "updates"), [(0.0, 0), (0.5, 87), (0.1, 17)])
def test_gradient_steps_keep_to_the_share_that_was_asked_for(share, updates):
    assert abs(taught("td3", updates_per_transition=share).updates - updates) <= 1


def test_progress_is_told_by_the_hour_and_at_the_end():
    told = []
    taught("td3", updates_per_transition=0.0, progress=lambda what, share: told.append(share))
    assert told == [1.0, 1.0]


def test_the_first_part_holds_its_offsets_for_some_ticks():
    course = Course(TwinConfig(), traces=None)
    made = list(wander(course, 2 * EXPLORATION_BLOCK, 0, quiet))
    actions = np.stack([one.action for one in made]).reshape(2, EXPLORATION_BLOCK, POOLS, -1)
    assert (actions == actions[:, :1]).all()
    assert not np.isclose(actions[0, 0], actions[1, 0]).any()
    assert np.array_equal(made[0].next_observation, made[POOLS].observation)


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_an_actor_in_training_explores_beside_its_own_wish(algorithm):
    made = list(wander(Course(TwinConfig(), traces=None), 10, 0, quiet))
    normaliser = fit_normaliser(np.stack([one.observation for one in made]))
    env = FleetVecEnv(Course(TwinConfig(), traces=None, normaliser=normaliser))
    trainer = Trainer(
        TrainerConfig(algorithm=algorithm, batch_size=8), seed=0, normaliser=normaliser, env=env
    )
    trainer.add(made)
    trainer.learn(8 * POOLS, updates_per_transition=0.0, tell=lambda _: None)
    buffer = trainer.model.replay_buffer
    seen, acted = buffer.observations[10:18], buffer.actions[10:18]
    with torch.no_grad():
        inputs = torch.as_tensor(seen.reshape(-1, OBSERVATION_SIZE))
        wished = trainer.model.actor._predict(inputs, deterministic=True)
    beside = np.abs(acted.reshape(-1, ACTION_SIZE) - wished.numpy())
    assert beside.mean(axis=0).min() > 0.01
    assert np.abs(acted).max() <= 1.0


def test_ticks_that_are_not_whole_are_refused():
    made = list(wander(Course(TwinConfig(), traces=None), 1, 0, quiet))
    normaliser = fit_normaliser(np.stack([one.observation for one in made]))
    env = FleetVecEnv(Course(TwinConfig(), traces=None, normaliser=normaliser))
    trainer = Trainer(TrainerConfig(), seed=0, normaliser=normaliser, env=env)
    with pytest.raises(ValueError, match="whole ticks"):
        trainer.add(made[:-1])
