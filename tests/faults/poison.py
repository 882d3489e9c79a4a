"""A fleet's topics as they were once said, and records that nobody should have put among them.

`told` is half an hour of a whole loop in memory: all that its components read from each other. Two
kinds of bad records are made from it. Poison follows no contract: it is known to be bad by how
it is made, whatever the codec thinks of it. A hostile record may be well formed: one of its values
is absurd, from another field's nature to the largest number there is.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from faults.loops import FLEET, adversary, build
from gpuloop.loop.evaluate.keys import sign_policy
from gpuloop.loop.learn import registry
from gpuloop.loop.shells.fold import encode_outputs
from gpuloop.reasoning.causes import Causes
from gpuloop.reasoning.forecast import Forecaster
from gpuloop.schemas.catalogue import CATALOGUE, MAX_VALUE_BYTES
from gpuloop.schemas.codec import Encoded, encode, encode_binary
from gpuloop.schemas.component import Output, Received
from gpuloop.schemas.messages import Approval, Control, Message
from gpuloop.schemas.messages.control import Claim, PolicyStage, scope
from gpuloop.schemas.units import INT64_MAX
from gpuloop.twin.config import ServiceConfig

MINUTES: Final = 30
KEY: Final = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
"""Whoever signs the policy; its reader is told to trust it."""


@functools.cache
def told(minutes: int = MINUTES) -> tuple[tuple[Encoded, ...], ...]:
    """Return, by minute, what was said in a loop under a policy of moods."""
    loop = build(
        3,
        adversary(3),
        more=[Forecaster(FLEET), Causes(FLEET)],
        services=(ServiceConfig(name="chat", pool="l4", requests_per_second=5.0),),
        fault_rate_factor=3000.0,
        arrival_share=0.4,
    )
    said: list[list[Encoded]] = []

    def hear(event: Received) -> None:
        claim = isinstance(event.message, Control) and isinstance(event.message.body, Claim)
        if not claim:  # Whoever reads this is to be the one decider.
            said[-1] += encode_outputs([_again(event)], "test")

    for topic in CATALOGUE:
        if not topic.startswith("internal."):
            loop.simulation.watch(topic, hear)
    for minute in range(minutes):
        said.append(people() if minute == 5 else [])
        loop.run(1)
    return tuple(tuple(minute) for minute in said)


def people() -> list[Encoded]:
    """Return what people and the learner say: a yes, a version with its weights, its stage."""
    found = registry.shipped()
    assert found is not None
    version, weights = found
    version = sign_policy(msgspec.structs.replace(version, fleet=FLEET), KEY)
    stage = PolicyStage(pool="*", policy_id=version.policy_id, stage="champion", alpha=0.5)
    yes = Approval(fleet=FLEET, command_id="0" * 64, digest="1" * 64, approve=True, by="ann")
    said: list[tuple[str, str, Message]] = [
        ("policies", version.policy_id, version),
        ("controls", scope(stage), Control(fleet=FLEET, by="ann", body=stage)),
        ("approvals", yes.command_id, yes),
    ]
    return [
        *(encode(topic, key, one, event_id=key, source="test") for topic, key, one in said),
        encode_binary("policies.weights", version.weights_digest, weights, source="test"),
    ]


def _again(event: Received) -> Output:
    return Output(
        topic=event.topic,
        key=event.key,
        message=event.message,
        event_id=event.id,
        time_us=0,
        payload=event.payload,
    )


Spoil = Callable[[Encoded, np.random.Generator], Encoded]


def _value(record: Encoded, value: bytes) -> Encoded:
    return replace(record, value=value)


def _header(record: Encoded, name: str, value: bytes | None) -> Encoded:
    kept = tuple(pair for pair in record.headers if pair[0] != name)
    return replace(record, headers=kept if value is None else (*kept, (name, value)))


def _field(record: Encoded, name: str, value: object) -> Encoded:
    fields = msgspec.json.decode(record.value)
    return _value(record, msgspec.json.encode({**fields, name: value}))


POISON: Final[dict[str, Spoil]] = {
    "nothing": lambda record, rng: _value(record, b""),
    "cut short": lambda record, rng: _value(record, record.value[: rng.integers(1, 40)]),
    "no text": lambda record, rng: _value(record, rng.bytes(int(rng.integers(1, 200))) + b"\xff"),
    "too deep": lambda record, rng: _value(record, b'{"x":' + b"[" * 20_000),
    "too long": lambda record, rng: _value(record, b" " * MAX_VALUE_BYTES + record.value),
    "a list": lambda record, rng: _value(record, b"[" + record.value + b"]"),
    "another fleet": lambda record, rng: _field(record, "fleet", "elsewhere"),
    "no fleet": lambda record, rng: _field(record, "fleet", None),
    "a number for a fleet": lambda record, rng: _field(record, "fleet", 7),
    "another type": lambda record, rng: _header(record, "ce_type", b"gpuloop.deadletters"),
    "a later version": lambda record, rng: _header(record, "ce_dataschema", b"gpuloop/x/99"),
    "no text under a key of any length": lambda record, rng: replace(
        record, key=b"k" * 500_000, value=b"?" * 400_000
    ),
}
"""Ways to break a record's contract beyond doubt."""


def poison(record: Encoded, rng: np.random.Generator) -> Encoded:
    """Return a record spoilt beyond doubt; what carries no message can only be made empty."""
    if CATALOGUE[record.topic].encoding == "binary":
        return _value(record, b"")
    return POISON[str(rng.choice(list(POISON)))](record, rng)


NUMBERS: Final = (-1, 0, 1, 2**31, 2**53, INT64_MAX, -INT64_MAX, 1e308, -1e308, 5e-324, 0.5, 60.0)
OTHERS: Final[tuple[Any, ...]] = (
    None, True, "", "nowhere", "x" * 300, "\x00", "../..", [], {}, [None], ["nowhere"] * 3,
)  # fmt: skip


def hostile(record: Encoded, rng: np.random.Generator) -> Encoded:
    """Return a record of which one to three values are absurd, and perhaps the key."""
    if CATALOGUE[record.topic].encoding == "binary":
        return _value(record, rng.bytes(int(rng.integers(1, 400))))
    tree = msgspec.json.decode(record.value)
    for _ in range(int(rng.integers(1, 4))):
        found = _place(tree, rng)
        if found is not None:
            holder, place = found
            number = isinstance(holder[place], int | float) and rng.random() < 0.9
            absurd = NUMBERS if number else (*NUMBERS, *OTHERS)
            holder[place] = copy.deepcopy(absurd[rng.integers(len(absurd))])
    value = msgspec.json.encode(tree)
    key = record.key if rng.random() < 0.9 else rng.bytes(int(rng.integers(0, 9)))
    return replace(record, value=value, key=key)


def _place(tree: Any, rng: np.random.Generator) -> tuple[Any, Any] | None:
    """Return a holder and a place in it, found by going down at random."""
    found = None
    while isinstance(tree, dict | list) and tree:
        places = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        place = places[rng.integers(len(places))]
        found, tree = (tree, place), tree[place]
        if rng.random() < 0.1:
            break
    return found


def everywhere(name: str, number: float) -> Spoil:
    """Return how to spoil a record as a broken source does: one field is always that number."""

    def put(tree: Any) -> Any:
        if isinstance(tree, list):
            return [put(one) for one in tree]
        if isinstance(tree, dict):
            return {key: number if key == name else put(one) for key, one in tree.items()}
        return tree

    return lambda record, rng: _value(
        record, msgspec.json.encode(put(msgspec.json.decode(record.value)))
    )
