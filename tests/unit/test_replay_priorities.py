"""Prioritised replay: draws in proportion, corrects for it, and is the library's own when off."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.logger import Logger

from gpuloop.loop.learn.algorithms import WeighingSAC, WeighingTD3
from gpuloop.loop.learn.replay import Priorities, PrioritisedReplayBuffer, SumTree

BOX = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


class Spaces(gymnasium.Env):
    observation_space = BOX
    action_space = BOX


def filled(buffer, steps, *, ends=(), seed=1):
    rng = np.random.default_rng(seed)
    for step in range(steps):
        shape = (buffer.n_envs, 2)
        buffer.add(
            rng.normal(size=shape), rng.normal(size=shape), rng.uniform(-1, 1, shape),
            np.arange(buffer.n_envs) + step, np.full(buffer.n_envs, step in ends),
            [{"TimeLimit.truncated": step in ends}] * buffer.n_envs,
        )  # fmt: skip
    return buffer


def buffer(size=64, envs=1, *, exponent=0.0, n_steps=1, gamma=0.9, correction=1.0):
    return PrioritisedReplayBuffer(
        size, BOX, BOX, n_envs=envs, gamma=gamma, n_steps=n_steps,
        priorities=Priorities(exponent=exponent, correction=correction),
    )  # fmt: skip


@settings(max_examples=50)
@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=40), st.integers(0, 1000))
def test_a_mark_falls_into_the_leaf_whose_share_of_the_sum_holds_it(weights, seed):
    tree, given_weights = SumTree(len(weights)), np.array(weights)
    tree[np.arange(len(weights))] = given_weights
    assert tree.total == pytest.approx(given_weights.sum())
    if tree.total == 0.0:
        return
    marks = np.random.default_rng(seed).random(20) * tree.total
    found, edges = tree.find(marks), np.cumsum(given_weights)
    assert (given_weights[found] > 0.0).all()
    slack = 1e-9 * tree.total
    assert (marks <= edges[found] + slack).all()
    assert (marks >= edges[found] - given_weights[found] - slack).all()


def test_surprises_are_drawn_in_proportion_and_weigh_in_inverse_proportion():
    replay = filled(buffer(8, exponent=1.0), 8)
    np.random.seed(0)
    replay.sample(8)  # One stratum each, as all are equally urgent.
    replay.learnt(np.array([8, 1, 1, 1, 1, 1, 1, 2], np.float32))
    drawn = np.concatenate([replay.sample(16).rewards.numpy().ravel() for _ in range(200)])
    share = np.bincount(drawn.astype(int), minlength=8) / len(drawn)
    assert share == pytest.approx(np.array([8, 1, 1, 1, 1, 1, 1, 2]) / 16, abs=0.01)
    rewards, weights = replay.sample(16).rewards, replay.weights
    assert weights.max() == 1.0
    assert weights[rewards == 0].max().item() == pytest.approx(1 / 8, rel=0.02)
    assert weights[rewards == 7].max().item() == pytest.approx(1 / 2, rel=0.02)


def test_what_comes_is_as_urgent_as_the_most_urgent_so_that_it_is_seen():
    replay = filled(buffer(16, exponent=1.0), 8)
    np.random.seed(0)
    replay.sample(8)
    replay.learnt(np.full(8, 0.01, np.float32))
    filled(replay, 1, seed=2)
    drawn = [replay.sample(8).rewards.numpy().ravel() for _ in range(10)]
    assert (np.concatenate(drawn) == 0).mean() > 0.8


@pytest.mark.parametrize("envs", [1, 3])
def test_switched_off_it_draws_what_the_library_draws(envs):
    ours, theirs = filled(buffer(32, envs), 20), filled(ReplayBuffer(32, BOX, BOX, n_envs=envs), 20)
    for seed in range(3):
        np.random.seed(seed)
        mine = ours.sample(16)
        np.random.seed(seed)
        for one, other in zip(mine[:5], theirs.sample(16)[:5], strict=True):
            assert torch.equal(one, other)


def test_several_steps_end_where_an_episode_or_what_is_stored_ends():
    replay = filled(buffer(10, n_steps=3), 13, ends=(5,))
    # Stored are steps 3 to 12, the rewards are their numbers; place 3 is the oldest.
    got = replay._gather(np.array([3, 4, 5, 1, 2]), np.zeros(5, np.int64))
    sums = [3 + 0.9 * 4 + 0.81 * 5, 4 + 0.9 * 5, 5, 11 + 0.9 * 12, 12]
    assert got.rewards.ravel().tolist() == pytest.approx(sums)
    assert got.discounts.ravel().tolist() == pytest.approx([0.9**3, 0.9**2, 0.9, 0.9**2, 0.9])
    assert got.dones.ravel().tolist() == [0.0] * 5
    theirs = filled(NStepReplayBuffer(10, BOX, BOX, n_steps=3, gamma=0.9), 13, ends=(5,))
    np.random.seed(0)
    other = theirs._get_samples(np.array([3, 4, 5, 1, 2]))
    for one, two in zip(got, other, strict=True):
        assert torch.allclose(one, two)


@pytest.mark.parametrize(("ours", "theirs"), [(WeighingSAC, SAC), (WeighingTD3, TD3)])
def test_switched_off_a_gradient_step_is_the_librarys(ours, theirs):
    shared = {
        "policy": "MlpPolicy",
        "env": Spaces(),
        "seed": 3,
        "batch_size": 32,
        "buffer_size": 99,
    }
    kwargs = {"priorities": Priorities(), "n_steps": 1, "gamma": 0.99}
    models = [
        ours(replay_buffer_class=PrioritisedReplayBuffer, replay_buffer_kwargs=kwargs, **shared),
        theirs(**shared),
    ]
    weights = []
    for model in models:
        model.set_logger(Logger(folder=None, output_formats=[]))
        filled(model.replay_buffer, 60)
        np.random.seed(0)
        torch.manual_seed(0)
        model.train(gradient_steps=7, batch_size=32)
        weights.append(copy.deepcopy(model.policy.state_dict()))
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-6), name


def test_held_to_what_was_done_the_actor_does_it():
    off = {}
    for imitation in (0.0, 10.0):
        model = WeighingTD3(
            "MlpPolicy", Spaces(), seed=0, buffer_size=200, imitation=imitation,
            replay_buffer_class=PrioritisedReplayBuffer,
            replay_buffer_kwargs={"priorities": Priorities(), "n_steps": 1, "gamma": 0.99},
        )  # fmt: skip
        model.set_logger(Logger(folder=None, output_formats=[]))
        replay, rng = model.replay_buffer, np.random.default_rng(0)
        for _ in range(200):
            seen, done = rng.normal(size=(1, 2)), np.full((1, 2), 0.4)
            replay.add(seen, seen, done, np.square(seen).sum(axis=1), np.zeros(1), [{}])
        model.train(gradient_steps=300, batch_size=64)
        with torch.no_grad():
            actions = model.actor(torch.as_tensor(replay.observations[:, 0]))
        off[imitation] = float((actions - 0.4).abs().mean())
    assert off[10.0] < 0.1 < off[0.0]
