"""Policy versions: signed, immutable, found again, and rebuilt from the offsets they name."""

import itertools

import msgspec
import numpy as np
import pytest

from gpuloop.loop.evaluate.keys import load_or_create, policy_signature_ok, public_hex
from gpuloop.loop.learn import registry
from gpuloop.loop.learn.experience import OBSERVATION_SIZE
from gpuloop.loop.learn.rounds import Experience, RoundConfig, train_round
from gpuloop.loop.learn.trainer import Trainer, TrainerConfig
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.schemas.codec import BadInput, Record, encode
from gpuloop.schemas.messages.learning import Normaliser
from learning_builders import decision, reward

PLAIN = Normaliser(mean=(0.0,) * OBSERVATION_SIZE, scale=(1.0,) * OBSERVATION_SIZE, clip=5.0)


def parent():
    spec, weights = Trainer(TrainerConfig(hidden=(16, 16)), seed=0, normaliser=PLAIN).export()
    version = registry.describe(
        fleet="f",
        algorithm="sac",
        version=0,
        parent="",
        created_wall_us=0,
        actor=spec,
        normaliser=PLAIN,
        weights=weights,
        seed=0,
        config={},
        summary="made by a test",
    )
    return version, weights


def seen(tick):
    """Return a decision at no offset, with an observation of its own."""
    rng = np.random.default_rng(tick)
    return decision(tick, joint=0.0, observation=rng.normal(size=OBSERVATION_SIZE).tolist())


def records(ticks):
    """Return the two topics' records, each in its own order."""
    topics = {"decisions": [], "rewards": []}
    for tick in range(ticks):
        for topic, message in (("decisions", seen(tick)), ("rewards", reward(tick, usd=tick))):
            encoded = encode(topic, "p", message, event_id=str(tick), source="s")
            topics[topic].append(
                Record(
                    topic=topic,
                    partition=0,
                    offset=tick,
                    timestamp_ms=0,
                    key=encoded.key,
                    headers=encoded.headers,
                    value=encoded.value,
                )
            )
    return topics


def trained(arrival, **options):
    experience = Experience("f")
    for record in arrival:
        experience.take(record)
    version, weights = parent()
    return train_round(
        experience, version, weights, fleet="f", version=1, seed=3, gradient_steps=5,
        created_wall_us=0, **options,
    )  # fmt: skip


def test_a_round_depends_on_offsets_and_not_on_how_topics_interleaved():
    topics = records(140)
    one_after_the_other = trained(topics["decisions"] + topics["rewards"])
    alternating = trained(itertools.chain(*zip(*topics.values(), strict=True)))
    assert one_after_the_other == alternating
    version, weights = alternating
    assert weights != parent()[1]
    assert [(r.topic, r.first, r.last) for r in version.trained_on] == [
        ("decisions", 0, 139),
        ("rewards", 0, 139),
    ]


def test_a_round_that_is_given_up_makes_no_version():
    topics = records(140)
    assert trained(topics["decisions"] + topics["rewards"], given_up=lambda: True) is None


def test_a_record_that_does_not_decode_is_refused_and_still_counted():
    good = records(1)["decisions"][0]
    bad = Record(
        topic=good.topic, partition=0, offset=5, timestamp_ms=0, key=b"", headers=good.headers,
        value=b"{",
    )  # fmt: skip
    experience = Experience("f")
    with pytest.raises(BadInput):
        experience.take(bad)
    assert experience.ranges["decisions", 0].last == 5


def test_rounds_fall_due_by_transitions():
    config = RoundConfig(first_after=10, every=20)
    assert [config.due(n, rounds_done=0) for n in (0, 9, 10)] == [False, False, True]
    assert [config.due(n, rounds_done=3) for n in (10, 19, 20)] == [False, False, True]


def test_a_restarted_learner_counts_only_what_its_last_round_has_not_seen():
    topics = records(30)
    whole = Experience("f")
    for record in topics["decisions"][:20] + topics["rewards"][:20]:
        whole.take(record)
    assert whole.fresh == 19
    again = Experience("f")
    again.trained_through(whole.ranges.values())
    expired = [r for topic in topics.values() for r in topic if r.offset >= 10]
    for record in expired:
        again.take(record)
    assert again.fresh in (9, 10)  # One decision and its reward may straddle the cut.


def test_another_fleets_experience_is_refused():
    experience = Experience("elsewhere")
    with pytest.raises(BadInput) as refused:
        experience.take(records(1)["decisions"][0])
    assert refused.value.reason == "wrong_fleet"


def test_a_published_version_is_found_with_its_signature_and_weights(tmp_path):
    broker = MemoryBroker()
    key = load_or_create(tmp_path / "key.pem")
    version, weights = parent()
    signed = registry.publish(broker, version, weights, key)
    assert registry.published(broker) == [signed]
    assert policy_signature_ok(signed, [public_hex(key)])
    forged = msgspec.structs.replace(signed, alpha=1.0)
    assert not policy_signature_ok(forged, [public_hex(key)])


def test_a_version_that_only_claims_a_key_is_not_found(tmp_path):
    broker = MemoryBroker()
    key = load_or_create(tmp_path / "key.pem")
    version, weights = parent()
    signed = registry.publish(broker, version, weights, key)
    forged = msgspec.structs.replace(signed, policy_id="sac-9-forged", version=2**40)
    broker.produce([encode("policies", forged.policy_id, forged, event_id="e", source="s")])
    assert registry.published(broker) == [signed]


def test_a_stored_policy_is_read_back_and_a_changed_one_refused(tmp_path, monkeypatch):
    version, weights = parent()
    registry.store(tmp_path, version, weights)
    monkeypatch.setattr(registry, "SHIPPED", tmp_path)
    assert registry.shipped() == (version, weights)
    (tmp_path / "actor.safetensors").write_bytes(weights[:-1] + b"\x00")
    with pytest.raises(ValueError, match="not what"):
        registry.shipped()


def test_oversized_weights_are_refused():
    version, _ = parent()
    with pytest.raises(ValueError, match="at most"):
        registry.describe(
            fleet="f", algorithm="sac", version=1, parent="", created_wall_us=0,
            actor=version.actor, normaliser=PLAIN, weights=b"0" * 900_001, seed=0, config={},
            summary="",
        )  # fmt: skip
