"""Promise 5: on failure, the last good state holds.

Missing metrics never scale down: under a policy that wishes for ever fewer nodes, in a loop that is
free to obey it, telemetry goes dark, some of it or all, and from the time on that inputs may be old
no pool loses a node. A broken policy falls back: weights that are damaged, not finite, of another
shape, or so large that the numbers overflow leave every decision as the rule's, whole and readable.
A decider that comes back from a damaged snapshot: `tests/contract/test_restart_contract.py`.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save as save_tensors

from builders import START_US, control, pool_state, received
from decider_loop import Loop as DeciderLoop
from decider_loop import decisions
from faults.guards import Guard, both, line, value, violations
from faults.loops import Blackout, build, constant
from gpuloop.actuators import envelope
from gpuloop.loop.decide import observation, policies, record
from gpuloop.loop.evaluate.keys import public_hex, sign_policy
from gpuloop.reasoning import actor
from gpuloop.schemas.codec import BadInput, Record, decode, encode
from gpuloop.schemas.messages import Decision, PolicyVersion
from gpuloop.schemas.messages.actions import ScaleTo
from gpuloop.schemas.messages.control import PolicyStage
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser
from gpuloop.schemas.policy import DIMENSIONS, FEATURE_NAMES, FEATURE_VERSION
from gpuloop.schemas.units import MINUTE_US

GRACE_US = 6 * MINUTE_US
"""How old the oldest input that may be acted on is, and a tick."""

DARK = (
    ("telemetry.gpu",),
    ("telemetry.resources",),
    ("telemetry.gpu", "telemetry.jobs"),
    ("telemetry.",),
    ("state.pools",),
)
"""What goes dark. Jobs alone may be quiet because nothing happens to them."""


def check_blackout(seed: int) -> list[str]:
    """Return commands that gave up nodes though what the decision rests on was missing."""
    rng = np.random.Generator(np.random.Philox(seed))
    topics = DARK[seed % len(DARK)]
    start_us = START_US
    dark_us = start_us + int(rng.integers(4, 40)) * MINUTE_US
    loop = build(
        seed,
        constant(-1.0),
        disturbance=Blackout(seed=seed, topics=topics, from_us=dark_us),
        fault_rate_factor=0.0,
    )
    assert loop.start_us == start_us
    loop.run(80)
    return [
        f"{topics} dark since minute {(dark_us - start_us) // MINUTE_US}: {command.summary}"
        for command in loop.commands("scaling")
        if command.issued_at_us >= dark_us + GRACE_US and nodes(command.to) < nodes(command.before)
    ]


def nodes(state: object) -> int:
    assert isinstance(state, ScaleTo)
    return state.on_demand_nodes + state.spot_nodes


def test_no_pool_loses_a_node_while_its_metrics_are_missing() -> None:
    assert violations(check_blackout, range(10)) == []


def test_the_same_policy_shrinks_pools_while_everything_is_there() -> None:
    loop = build(1, constant(-1.0), fault_rate_factor=0.0)
    loop.run(80)
    late = [c for c in loop.commands("scaling") if c.issued_at_us > loop.start_us + 60 * MINUTE_US]
    assert any(nodes(command.to) < nodes(command.before) for command in late)


KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
SIZE, ACTIONS = len(FEATURE_NAMES), len(DIMENSIONS)
BREAKS = ("whole", "not finite", "overflows", "cut", "another shape", "a wild normaliser")


def weights(broken: str) -> tuple[bytes, Normaliser]:
    """Return the weights of a policy that wishes for ever more, broken in some way."""
    first = np.zeros((4, SIZE), np.float32)
    last = np.zeros((ACTIONS, 4), np.float32)
    bias = np.full(ACTIONS, 5.0, np.float32)
    if broken == "not finite":
        bias[:] = np.nan
    if broken == "overflows":
        first[:] = 3e38
        last[:, ::2], last[:, 1::2] = 3e38, -3e38
    if broken == "another shape":
        first = np.zeros((5, SIZE), np.float32)
    data = save_tensors({
        "layer.0.weight": first,
        "layer.0.bias": np.ones(4, np.float32),
        "layer.1.weight": last,
        "layer.1.bias": bias,
    })  # fmt: skip
    scale = 1e-300 if broken == "a wild normaliser" else 1.0
    normaliser = Normaliser(mean=(0.0,) * SIZE, scale=(scale,) * SIZE, clip=10.0)
    return (data[:-7] if broken == "cut" else data), normaliser


def version(data: bytes, normaliser: Normaliser) -> PolicyVersion:
    """Return the signed version that names these weights."""
    unsigned = PolicyVersion(
        fleet="test", policy_id="p1", algorithm="sac", version=1, parent="", created_wall_us=0,
        feature_version=FEATURE_VERSION, dimensions=DIMENSIONS,
        actor=ActorSpec(observation_size=SIZE, action_size=ACTIONS, hidden=(4,)),
        normaliser=normaliser, weights_digest=hashlib.sha256(data).hexdigest(), alpha=1.0,
        seed=0, config={}, trained_on=(), gate={},
    )  # fmt: skip
    return sign_policy(unsigned, KEY)


def live(policy: str | None) -> list[Decision]:
    """Return what is decided in ten minutes, with a champion that is broken so, or with none."""
    loop = DeciderLoop(trusted_keys=[public_hex(KEY)])
    if policy is not None:
        data, normaliser = weights(policy)
        made = version(data, normaliser)
        stage = PolicyStage(pool="*", policy_id="p1", stage="champion", alpha=1.0)
        loop.send(control(stage))
        loop.send(received("policies", made, "p1"))
        loop.send(received("policies.weights", None, made.weights_digest, payload=data))
    made_: list[Decision] = []
    for minute in range(10):
        made_ += decisions(loop.minute(pool_state(queued=minute)))
    return made_


def unreadable(found: Sequence[Decision]) -> list[str]:
    """Return what the readers of `decisions` could not read."""
    problems = []
    for decision in found:
        written = encode("decisions", decision.pool, decision, event_id="d", source="test")
        written_record = Record(
            topic="decisions", partition=0, offset=0, timestamp_ms=0, key=written.key,
            headers=written.headers, value=written.value,
        )  # fmt: skip
        try:
            decode(written_record)
        except BadInput as error:
            problems.append(f"a decision that cannot be read: {error}")
    return problems


def check_policy(seed: int) -> list[str]:
    """Return decisions under a broken policy that are not the rule's, or not readable."""
    broken = BREAKS[1:][seed % (len(BREAKS) - 1)]
    found, rule = live(broken), live(None)
    different = [
        f"{broken}: did {one.executed_action}, the rule {other.executed_action}"
        for one, other in zip(found, rule, strict=True)
        if one.executed_action != other.executed_action
    ]
    return different + unreadable(found)


@pytest.mark.parametrize("seed", range(len(BREAKS) - 1), ids=BREAKS[1:])
def test_a_broken_policy_leaves_the_rule_in_charge(seed: int) -> None:
    assert check_policy(seed) == []


def test_a_whole_policy_does_not() -> None:
    pairs = zip(live("whole"), live(None), strict=True)
    assert any(one.executed_action != other.executed_action for one, other in pairs)


WRITTEN = both(
    line(policies.as_action, ("np.nan_to_num(np.round(", "np.asarray(np.round(")),
    line(record._numbers, ("np.nan_to_num(values)", "np.asarray(values)")),
)
"""That no decision is written with a number that is none, which guards against the same."""

GUARDS = [
    Guard(
        "shrinking takes everything fresh",
        line(envelope._freshness, ("np.where(certain[:, None], -np.inf, present)",
                                   "np.full_like(present, -np.inf)")),
        check_blackout,
    ),
    Guard(
        "nodes must be heard of",
        line(observation.freshness, ("pool.nodes_heard * 2 >= ready", "True")),
        check_blackout,
    ),
    Guard(
        "capacity must be known",
        line(observation.freshness,
             ("pool.capacity_age_us + age <= CAPACITY_AGE_MAX_US", "True")),
        check_blackout,
    ),
    Guard(
        "weights must be numbers",
        both(WRITTEN, line(actor._tensor, ("if not np.isfinite(values).all():", "if False:"))),
        check_policy,
    ),
    Guard(
        "a forward pass must not overflow",
        both(WRITTEN, value(actor, "MOST", float("inf"))),
        check_policy,
    ),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*encountered in matmul:RuntimeWarning")
@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
