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
from gpuloop.schemas.messages import Decision, Reward
from gpuloop.schemas.policy import CONTROL_TICK_US, DIMENSIONS, FEATURE_NAMES, FEATURE_VERSION

SIZE = len(FEATURE_NAMES)


def decision(tick, *, pool="p", joint=0.5, executed=None, version=FEATURE_VERSION, level="cluster"):
    rule = (10.0, 4.0, 0.0, 2.0)
    limit = (2.0, 2.0, 1.0, 0.1)
    wish = tuple(r + joint * x for r, x in zip(rule, limit, strict=True))
    return Decision(
        fleet="f",
        decision_id=f"f/{pool}/{level}/1/{tick}",
        pool=pool,
        level=level,
        epoch=1,
        tick_us=tick * CONTROL_TICK_US,
        dimensions=DIMENSIONS,
        feature_version=version,
        observation=(float(tick),) * SIZE,
        feature_ages_us=(0,) * SIZE,
        feature_quality=(1.0,) * SIZE,
        feasible_low=(0.0,) * 4,
        feasible_high=(50.0,) * 4,
        delta_limit=limit,
        rule_action=rule,
        policy_action=(joint,) * 4,
        joint_action=(joint,) * 4,
        executed_action=wish if executed is None else executed,
        alpha=1.0,
        exploration=(0.0,) * 4,
        log_probability=0.0,
        policy_id="rule",
        policy_digest="0" * 64,
        normaliser_digest="0" * 64,
        envelope_digest="0" * 64,
        arm="champion",
        assignment_probability=1.0,
        forecast_id="",
        modes={},
        adjustments=(),
        command_ids=(),
        stale_inputs=(),
        influences=(),
        summary="",
        why_not="",
    )


def reward(tick, *, pool="p", usd=20, censored=False):
    return Reward(
        fleet="f",
        pool=pool,
        decision_id=f"f/{pool}/cluster/1/{tick}",
        start_us=tick * CONTROL_TICK_US,
        end_us=(tick + 1) * CONTROL_TICK_US,
        components={"revenue": usd * 1_000_000},
        total_usd_micros=usd * 1_000_000,
        overlap=0,
        censored=censored,
        definition="ledger/1",
    )


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
