"""Builders of signed policy versions, their weights and stages, for a decider that trusts them."""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save

from builders import FLEET, control, pool_state, received
from decider_loop import Loop, replace
from gpuloop.loop.evaluate.keys import public_hex, sign_policy
from gpuloop.schemas.messages import PolicyVersion
from gpuloop.schemas.messages.control import PolicyStage
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser
from gpuloop.schemas.policy import DIMENSIONS, FEATURE_NAMES, FEATURE_VERSION

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
CALM = pool_state(allocated=190)
D, K = len(FEATURE_NAMES), len(DIMENSIONS)


def weights(bias: float = 10.0, inputs: int = D) -> bytes:
    """Return an actor that asks for `tanh(bias)` of on-demand nodes, whatever it sees."""
    layer = {"layer.0.weight": np.zeros((4, inputs), np.float32),
             "layer.0.bias": np.zeros(4, np.float32),
             "layer.1.weight": np.zeros((K, 4), np.float32),
             "layer.1.bias": np.array([bias, 0, 0, 0], np.float32)}  # fmt: skip
    return save(layer)


def version(data: bytes, number: int = 1, key: Ed25519PrivateKey = KEY, **changes) -> PolicyVersion:
    made = PolicyVersion(
        fleet=FLEET,
        policy_id=f"sac-{number}",
        algorithm="sac",
        version=number,
        parent="",
        created_wall_us=0,
        feature_version=FEATURE_VERSION,
        dimensions=DIMENSIONS,
        actor=ActorSpec(observation_size=D, action_size=K, hidden=(4,)),
        normaliser=Normaliser(mean=(0.0,) * D, scale=(1.0,) * D, clip=10.0),
        weights_digest=hashlib.sha256(data).hexdigest(),
        alpha=0.5,
        seed=0,
        config={},
        trained_on=(),
        gate={},
    )
    return sign_policy(replace(made, **changes), key)


def stage(kind: str = "champion", alpha: float = 0.5, number: int = 1, **changes):
    body = PolicyStage(pool="*", policy_id=f"sac-{number}", stage=kind, alpha=alpha, **changes)
    return control(body)


def publish(loop: Loop, one: PolicyVersion, data: bytes) -> None:
    loop.send(received("policies", one))
    digest = hashlib.sha256(data).hexdigest()
    loop.send(received("policies.weights", None, digest, payload=data))


def ready(**settings) -> Loop:
    loop = Loop(trusted_keys=(public_hex(KEY),), **settings)
    loop.minute(CALM)
    loop.minute(CALM)
    loop.outputs.clear()
    return loop
