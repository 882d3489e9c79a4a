"""Policies at the decider: who may act, with what share, and what is written down about it."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import save

from builders import at, control, received
from decider_loop import Loop, commands, decisions, replace
from gpuloop.loop.decide.deliberate import decide, look
from gpuloop.schemas.messages.control import Assignment, PolicyStage
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser
from gpuloop.schemas.policy import DIMENSIONS, FEATURE_NAMES
from gpuloop.schemas.units import HOUR_US, MINUTE_US
from policy_builders import CALM, OTHER, D, K, publish, ready, stage, version, weights


def test_a_champion_moves_the_wish_by_its_share_of_the_delta_limit():
    loop, data = ready(), weights()
    publish(loop, version(data), data)
    loop.send(stage(alpha=0.5))
    outputs = loop.minute(CALM)
    (decision,) = decisions(outputs)
    assert decision.policy_id == "sac-1"
    assert decision.arm == "champion"
    assert decision.alpha == 0.5
    assert decision.policy_action == (1.0, 0.0, 0.0, 0.0)
    assert decision.joint_action == (0.5, 0.0, 0.0, 0.0)
    assert decision.delta_limit[0] == 5.0
    assert sum(decision.executed_action[:2]) == sum(decision.rule_action[:2]) + 2.0
    assert "sac-1 asked for +0.50" in commands(outputs)[0].reason


def test_a_version_without_a_stage_is_evaluated_beside_and_moves_nothing():
    loop, data = ready(), weights()
    publish(loop, version(data), data)
    (decision,) = decisions(loop.minute(CALM))
    assert decision.policy_id == "rule"
    assert decision.shadow_actions == {"sac-1": (1.0, 0.0, 0.0, 0.0)}
    assert commands(loop.outputs) == []


def test_weights_may_come_before_their_version():
    loop, data = ready(), weights()
    digest = hashlib.sha256(data).hexdigest()
    loop.send(received("policies.weights", None, digest, payload=data))
    loop.send(received("policies", version(data)))
    loop.send(stage())
    assert decisions(loop.minute(CALM))[0].policy_id == "sac-1"


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (version(weights(), key=OTHER), "untrusted"),
        (replace(version(weights()), alpha=1.0), "untrusted"),
        (version(weights(), feature_version="pool/0"), "other_features"),
        (version(weights(), dimensions=DIMENSIONS[:3]), "other_features"),
        (
            version(weights(), actor=ActorSpec(observation_size=3, action_size=K, hidden=(4,))),
            "other_shape",
        ),
    ],
)
def test_a_version_that_cannot_be_trusted_or_used_is_counted_and_ignored(one, reason: str):
    loop = ready()
    publish(loop, one, weights())
    loop.send(stage())
    assert decisions(loop.minute(CALM))[0].policy_id == "rule"
    assert loop.state.library.refused[reason] == 1


def test_weights_under_a_wrong_digest_are_ignored():
    loop, data = ready(), weights()
    loop.send(received("policies.weights", None, "0" * 64, payload=data))
    assert loop.state.library.weights == {}


def test_weights_that_do_not_fit_their_version_leave_the_rule_in_charge():
    loop, data = ready(), weights(inputs=3)
    publish(loop, version(data), data)
    loop.send(stage())
    assert decisions(loop.minute(CALM))[0].policy_id == "rule"


def test_a_policy_far_outside_its_training_range_is_replaced_by_the_rule():
    loop, data = ready(), weights()
    narrow = Normaliser(mean=(-9.0,) * D, scale=(0.01,) * D, clip=5.0)
    publish(loop, version(data, normaliser=narrow), data)
    loop.send(stage())
    (decision,) = decisions(loop.minute(CALM))
    assert decision.executed_action[:2] == (16.0, 8.0)
    assert decision.adjustments[0].stage == "out_of_range"


def test_a_canary_acts_only_in_its_arm():
    loop, data = ready(), weights()
    publish(loop, version(data), data)
    loop.send(stage("canary"))
    assert decisions(loop.minute(CALM))[0].policy_id == "rule"
    for arm in ("sac-1", "rule"):
        body = Assignment(experiment="e", pool="*", arm=arm, probability=0.25,
                          from_us=loop.now_us, until_us=loop.now_us + HOUR_US)  # fmt: skip
        loop.send(control(body))
        (decision,) = decisions(loop.minute(CALM))
        assert (decision.policy_id, decision.arm) == (arm, arm)
        assert decision.assignment_probability == 0.25


def test_a_retired_policy_no_longer_acts():
    loop, data = ready(), weights()
    publish(loop, version(data), data)
    loop.send(stage())
    loop.send(stage("retired"))
    assert decisions(loop.minute(CALM))[0].policy_id == "rule"


def explored(seed_minutes: int, share: float) -> list:
    loop = ready(mode="off")
    loop.send(stage(exploration=share, alpha=0.0))
    return [one for _ in range(seed_minutes) for one in decisions(loop.minute(CALM))]


def test_exploration_is_drawn_once_per_bucket_and_held():
    made = explored(900, 0.3)
    buckets: dict[int, set] = {}
    for one in made:
        buckets.setdefault(one.tick_us // (15 * MINUTE_US), set()).add(
            (one.exploration, one.log_probability)
        )
    assert all(len(draws) == 1 for draws in buckets.values())
    assert len({draw for draws in buckets.values() for draw in draws}) > 2


def test_exploration_has_the_probabilities_it_writes_down():
    draws: Counter = Counter()
    logged = {}
    for one in explored(15 * 400, 0.5)[::15]:
        draws[one.exploration] += 1
        logged[one.exploration] = math.exp(one.log_probability)
    assert sum(logged.values()) == pytest.approx(1.0)
    for offset, times in draws.items():
        assert logged[offset] >= 0.02
        assert times / sum(draws.values()) == pytest.approx(logged[offset], abs=0.06)
        assert offset[2] == 0.0
        assert offset == one_joint(offset)


def one_joint(offset: tuple[float, ...]) -> tuple[float, ...]:
    """Return an offset as it should look: half a step in one dimension at most."""
    assert sum(abs(part) for part in offset) in (0.0, 0.5)
    return offset


def test_exploration_joins_the_wish_that_is_learnt_from():
    for one in explored(300, 0.5):
        assert one.joint_action == one.exploration


def test_offsets_from_outside_act_at_full_share_through_the_guards():
    loop = Loop()
    loop.minute(CALM)
    mind = loop.decider.mind
    view = look(mind, loop.state, loop.now_us, at(loop.now_us, loop.wall_us))
    (decision,) = decisions(decide(mind, loop.state, view, np.full(view.batch.present.shape, 3.0)))
    assert decision.alpha == 1.0
    assert decision.joint_action == (1.0, 1.0, 1.0, 1.0)
    assert decision.executed_action[:2] == (16.0, 13.0), "growth is bought as spot, a step at most"


def test_an_explanation_names_the_feature_that_moved_the_actor():
    loop = ready()
    named = FEATURE_NAMES.index("allocated_ratio")
    layer = {"layer.0.weight": np.zeros((4, D), np.float32),
             "layer.0.bias": np.zeros(4, np.float32),
             "layer.1.weight": np.ones((K, 4), np.float32),
             "layer.1.bias": np.zeros(K, np.float32)}  # fmt: skip
    layer["layer.0.weight"][0, named] = 1.0
    data = save(layer)
    publish(loop, version(data), data)
    loop.send(stage())
    (decision,) = decisions(loop.minute(CALM))
    assert [one.feature for one in decision.influences] == ["allocated_ratio"]
    assert decision.influences[0].effect > 0.1


def test_a_shadow_that_is_retired_on_a_pool_is_not_evaluated_there():
    loop, data = ready(), weights()
    publish(loop, version(data), data)
    loop.send(stage("shadow"))
    assert decisions(loop.minute(CALM))[0].shadow_actions
    loop.send(control(PolicyStage(pool="a100", policy_id="sac-1", stage="retired", alpha=0.0)))
    assert not decisions(loop.minute(CALM))[0].shadow_actions
