"""Training in the environment: both algorithms, the same bytes twice, served by numpy."""

from functools import cache

import numpy as np
import pytest
import torch
from benchmarks.controlling.entrants import SEEDS
from safetensors.numpy import load as tensors

from gpuloop.loop.learn import registry
from gpuloop.loop.learn.environment import Course, FleetVecEnv
from gpuloop.loop.learn.experience import ACTION_SIZE, OBSERVATION_SIZE
from gpuloop.loop.learn.pool_env import PoolVecEnv
from gpuloop.loop.learn.scenarios import Domain
from gpuloop.loop.learn.spaces import fit_normaliser
from gpuloop.loop.learn.teach import EXPLORATION_BLOCK, Curriculum, Lesson, teach, wander
from gpuloop.loop.learn.trainer import Trainer, TrainerConfig
from gpuloop.reasoning.actor import Actor
from gpuloop.schemas.policy import MIGRATION, ON_DEMAND, PRICE, SPOT
from gpuloop.twin.config import DEFAULT_START_US, TwinConfig

POOLS = 3


def quiet(what, share):
    """Report progress to nobody."""


def taught(algorithm, *, seed=0, episodes=1, updates=1.0, progress=quiet, kept=None) -> Lesson:
    curriculum = Curriculum(
        train_from_us=DEFAULT_START_US,
        train_days=1,
        check_from_us=0,
        check_days=0,
        worlds=1,
        episodes=episodes,
        episode_hours=1,
        random_hours=1,
        updates_per_transition=updates,
    )
    return teach(
        TrainerConfig(algorithm=algorithm, batch_size=32),
        curriculum,
        TwinConfig(),
        traces=None,
        seed=seed,
        progress=progress,
        kept=kept,
    )


@cache
def lesson(algorithm) -> Lesson:
    return taught(algorithm)


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_an_hour_of_training_is_counted_in_whole_ticks_of_all_pools(algorithm):
    made = lesson(algorithm)
    assert made.transitions == POOLS * (60 + 60)
    assert made.updates == POOLS * 60


class Killed(Exception):
    """What ends a run in the middle of an episode."""


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    algorithm = "sac"  # It has what TD3 has, and a temperature.
    whole = taught(algorithm, episodes=3, updates=0.2)
    file = tmp_path / "run" / "training.pt"
    told = []

    def until_the_second_episode(what, share):
        told.append(share)
        if what.startswith("training") and share > 0.5:
            raise Killed

    with pytest.raises(Killed):
        taught(algorithm, episodes=3, updates=0.2, kept=file, progress=until_the_second_episode)
    went_on = []
    again = taught(
        algorithm,
        episodes=3,
        updates=0.2,
        kept=file,
        progress=lambda what, share: went_on.append((what, share)),
    )
    assert again == whole
    assert next(share for what, share in went_on if what.startswith("training")) > 0.5
    assert taught(algorithm, episodes=3, updates=0.2, kept=file) == whole, "a finished run is kept"


def test_another_run_is_not_gone_on_from_and_a_broken_file_stops_nobody(tmp_path):
    file = tmp_path / "training.pt"
    one = taught("td3", updates=0.2, kept=file)
    assert taught("td3", seed=1, updates=0.2, kept=file) != one
    file.write_bytes(file.read_bytes()[:1000])
    assert taught("td3", updates=0.2, kept=file) == one


def test_what_is_kept_holds_no_code(tmp_path):
    file = tmp_path / "training.pt"
    taught("sac", updates=0.2, kept=file)
    assert torch.load(file, weights_only=True)["episode"] == 1


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


def silent(actor: Actor) -> bool:
    seen = actor.mean + actor.scale.clip(max=1.0) * np.random.default_rng(0).normal(
        size=(256, OBSERVATION_SIZE)
    )
    said = actor(seen)
    assert said[:, [ON_DEMAND, SPOT]].any()
    return not said[:, [MIGRATION, PRICE]].any()


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_a_policy_says_nothing_of_what_it_had_no_choice_in(algorithm):
    made = lesson(algorithm)
    assert silent(Actor.from_safetensors(made.weights, made.actor, made.normaliser))


@pytest.mark.parametrize("folder", [registry.SHIPPED, *sorted(SEEDS.glob("*/"))])
def test_the_stored_policies_move_neither_prices_nor_jobs(folder):
    version, weights = registry.load(folder)
    assert silent(Actor.from_safetensors(weights, version.actor, version.normaliser))


@pytest.mark.parametrize(("share", "updates"), [(0.0, 0), (0.5, 90), (0.1, 18)])
def test_gradient_steps_keep_to_the_share_that_was_asked_for(share, updates):
    assert abs(taught("td3", updates=share).updates - updates) <= 1


def test_progress_is_told_by_the_hour_and_at_the_end():
    told = []
    taught("td3", updates=0.0, episodes=2, progress=lambda what, share: told.append(share))
    assert told == [1.0, 0.5, 1.0]


def test_the_first_part_holds_its_offsets_for_some_ticks():
    env = PoolVecEnv(Domain(worlds=2, hours=1))
    made = list(wander(env, 2 * EXPLORATION_BLOCK, 0, quiet))
    actions = np.stack([one.action for one in made]).reshape(2, EXPLORATION_BLOCK, 2 * POOLS, -1)
    assert (actions == actions[:, :1]).all()
    assert not np.isclose(actions[0, 0], actions[1, 0]).all()
    assert (actions == 0.0).all(axis=-1).any(), "the rule is left alone, too"
    assert np.array_equal(made[0].next_observation, made[2 * POOLS].observation)


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_an_actor_in_training_explores_beside_its_own_wish(algorithm):
    made = list(wander(FleetVecEnv(Course(TwinConfig(), traces=None)), 10, 0, quiet))
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
    made = list(wander(FleetVecEnv(Course(TwinConfig(), traces=None)), 1, 0, quiet))
    normaliser = fit_normaliser(np.stack([one.observation for one in made]))
    env = FleetVecEnv(Course(TwinConfig(), traces=None, normaliser=normaliser))
    trainer = Trainer(TrainerConfig(), seed=0, normaliser=normaliser, env=env)
    with pytest.raises(ValueError, match="whole ticks"):
        trainer.add(made[:-1])


def test_what_is_exported_is_the_mean_of_what_the_actor_was():
    domain = Domain(worlds=1, hours=1)
    raw = PoolVecEnv(domain, seed=1)
    made = list(wander(raw, 60, 0, quiet))
    normaliser = fit_normaliser(np.stack([one.observation for one in made]))

    def exported(averaging: int) -> tuple[np.ndarray, np.ndarray]:
        env = PoolVecEnv(domain, seed=0, normaliser=normaliser)
        config = TrainerConfig(algorithm="td3", batch_size=32, averaging=averaging)
        trainer = Trainer(config, seed=0, normaliser=normaliser, env=env)
        trainer.add(made)
        trainer.learn(60 * POOLS, updates_per_transition=1.0, tell=lambda made: None)
        present = trainer.model.actor.mu[-2].weight.detach().numpy()
        return tensors(trainer.export()[1])["layer.2.weight"], present

    last, present = exported(0)
    np.testing.assert_array_equal(last, present)
    mean, again = exported(100)
    np.testing.assert_array_equal(present, again)
    assert not np.array_equal(mean, present)
    assert np.abs(mean).max() < np.abs(present).max()
