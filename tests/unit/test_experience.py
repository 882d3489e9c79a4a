"""Decisions and rewards become transitions, whatever order they arrive in."""

import itertools

import numpy as np
import pytest

from gpuloop.loop.learn import experience
from gpuloop.loop.learn.experience import (
    CUT_PENALTY,
    REWARD_SCALE_USD,
    ExperienceJoin,
    cut_of,
)
from gpuloop.schemas.messages import Decision
from gpuloop.schemas.policy import CONTROL_TICK_US
from learning_builders import LIMIT, RULE, decision, reward


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


def test_buying_the_same_number_of_nodes_otherwise_is_no_cut():
    wished = np.array(RULE) + 0.5 * np.array(LIMIT)
    other = wished + np.array([-1.0, 1.0, 0.0, 0.0])
    assert not cut_of(decision(1, joint=0.5, executed=other)).any()
    fewer = cut_of(decision(1, joint=0.5, executed=wished - np.array([1.0, 0.0, 0.0, 0.0])))
    np.testing.assert_allclose(fewer, [0.25, 0.25, 0.0, 0.0])


def test_what_the_envelope_cut_costs_the_learner_and_nobody_else():
    cut = decision(1, joint=1.0, executed=(10.0, 4.0, 0.0, 2.0))
    assert np.allclose(cut_of(cut), 1.0)
    _, found = joined([cut, decision(2), reward(1, usd=20)])
    assert found[0].reward == pytest.approx(20 / REWARD_SCALE_USD - CUT_PENALTY)


ROOM = 80
SPAN = 600
"""Ticks: far more than there is room for, and far more than an hour."""


@pytest.fixture
def little_room(monkeypatch):
    monkeypatch.setattr(experience, "MAX_PENDING", ROOM)


def read(decisions, rewards, *, at_once, first="decisions"):
    """Read two topics as the learner does, some records at once, and return where that ends."""
    topics = {"decisions": list(decisions), "rewards": list(rewards)}
    order = sorted(topics, key=lambda topic: topic != first)
    join, made, most = ExperienceJoin(), {}, 0
    while any(topics[topic] and join.ahead != topic for topic in order):
        for topic in order:
            if join.ahead == topic:
                continue
            for message in topics[topic][:at_once]:
                take = join.decision if topic == "decisions" else join.reward
                made |= dict(take(message))
            del topics[topic][:at_once]
            most = max(most, len(join.decisions), len(join.rewards))
    return join, made, most


@pytest.mark.parametrize("first", ["decisions", "rewards"])
@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_a_rebuild_loses_nothing_whichever_topic_comes_first_and_in_what_steps(
    little_room, first, at_once
):
    decisions = [decision(t, pool=pool) for t in range(1, SPAN) for pool in "ab"]
    rewards = [reward(t, pool=pool) for t in range(1, SPAN) for pool in "ab"]
    join, made, most = read(decisions, rewards, at_once=at_once, first=first)
    assert len(made) == 2 * (SPAN - 2)
    assert join.skipped == 0
    assert most < ROOM + at_once


def test_what_never_gets_its_counterpart_does_not_stall_the_others(little_room):
    decisions = [decision(t, pool=pool) for t in range(1, SPAN) for pool in "ab"]
    rewards = [reward(t, pool=pool) for t in range(1, SPAN) for pool in "ac"]
    for first in ("decisions", "rewards"):
        _, made, most = read(decisions, rewards, at_once=20, first=first)
        assert set(made) == {(t * CONTROL_TICK_US, "a") for t in range(1, SPAN - 1)}
        assert most < ROOM + 20


@pytest.mark.parametrize("lost", ["decisions", "rewards"])
def test_half_a_topic_that_has_expired_leaves_the_other_half_to_learn_from(little_room, lost):
    decisions = [decision(t) for t in range(SPAN // 2 if lost == "decisions" else 1, SPAN)]
    rewards = [reward(t) for t in range(SPAN // 2 if lost == "rewards" else 1, SPAN)]
    for first in ("decisions", "rewards"):
        _, made, most = read(decisions, rewards, at_once=20, first=first)
        assert len(made) == SPAN - 1 - SPAN // 2
        assert most < ROOM + 20


def test_a_decision_waits_for_a_late_reward_however_much_comes_in_between(little_room):
    join = ExperienceJoin()
    for t in range(1, 200):
        join.decision(decision(t))
    assert join.ahead == "decisions"
    assert len(join.reward(reward(1))) == 1


def test_two_topics_that_never_meet_keep_being_read_in_bounded_memory(little_room):
    decisions = [decision(t, pool="a") for t in range(1, SPAN)]
    rewards = [reward(t, pool="b") for t in range(SPAN, 2 * SPAN)]
    join, made, most = read(decisions, rewards, at_once=20)
    assert made == {}
    assert most < ROOM + 20
    assert join.decided_us == (SPAN - 1) * CONTROL_TICK_US
