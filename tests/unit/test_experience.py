"""Decisions and rewards become transitions, whatever order they arrive in."""

import itertools

import numpy as np
import pytest

from gpuloop.loop.learn.experience import (
    CUT_PENALTY,
    REWARD_SCALE_USD,
    ExperienceJoin,
    cut_of,
)
from gpuloop.schemas.messages import Decision
from learning_builders import decision, reward


def joined(messages):
    join = ExperienceJoin()
    found = []
    for message in messages:
        take = join.decision if isinstance(message, Decision) else join.reward
        found += [transition for _, transition in take(message)]
    return join, found


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_transition_is_made_once_in_any_order_of_arrival(order):
    messages = [decision(1), decision(2), reward(1, usd=20)]
    _, found = joined(messages[i] for i in order)
    assert len(found) == 1
    assert found[0].reward == pytest.approx(20 / REWARD_SCALE_USD)
    assert found[0].observation[0] == 1.0
    assert found[0].next_observation[0] == 2.0
    assert np.allclose(found[0].action, 0.5)


def test_a_missing_tick_makes_no_transition():
    _, found = joined([decision(1), reward(1), decision(3), reward(3), decision(4)])
    assert [t.observation[0] for t in found] == [3.0]


def test_a_censored_window_makes_no_transition():
    join, found = joined([decision(1), decision(2), reward(1, censored=True)])
    assert found == []
    assert join.skipped == 1


def test_pools_are_not_mixed():
    _, found = joined([decision(1, pool="a"), decision(2, pool="b"), reward(1, pool="a")])
    assert found == []


def test_node_level_decisions_and_other_feature_versions_are_left_out():
    messages = [decision(1, level="node"), decision(2, version="pool/0"), reward(1)]
    assert joined(messages)[1] == []


def test_what_the_envelope_cut_costs_the_learner_and_nobody_else():
    cut = decision(1, joint=1.0, executed=(10.0, 4.0, 0.0, 2.0))
    assert np.allclose(cut_of(cut), 1.0)
    _, found = joined([cut, decision(2), reward(1, usd=20)])
    assert found[0].reward == pytest.approx(20 / REWARD_SCALE_USD - CUT_PENALTY)
