"""Where policies live: two compacted topics, and the one that ships with the project.

A version is immutable and signed; its weights stand on `policies.weights` under their SHA-256 and
are written first, so that whoever sees a version finds its weights. Nothing here deploys anything:
a stage is set by a person on `controls`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuloop.loop.evaluate.keys import policy_signature_ok, sign_policy
from gpuloop.loop.shells.broker import Broker, read_between
from gpuloop.schemas.codec import BadInput, Record, decode, encode, encode_binary
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import PolicyVersion
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser, OffsetRange
from gpuloop.schemas.policy import DIMENSIONS, FEATURE_VERSION

SHIPPED: Final = Path(__file__).resolve().parent / "shipped"
MAX_WEIGHTS_BYTES: Final = 900_000


def weights_digest(weights: bytes) -> str:
    """Return the digest under which weights are stored."""
    return hashlib.sha256(weights).hexdigest()


def describe(
    *,
    fleet: str,
    algorithm: str,
    version: int,
    parent: str,
    created_wall_us: int,
    actor: ActorSpec,
    normaliser: Normaliser,
    weights: bytes,
    seed: int,
    config: dict[str, float | int | str | bool],
    trained_on: Sequence[OffsetRange] = (),
    alphas: Mapping[str, float] | None = None,
    gate: dict[str, float] | None = None,
    summary: str,
) -> PolicyVersion:
    """Return the unsigned version of some weights; its id follows from them.

    `alphas` are what it earned by pool: nothing where none is named.

    Raises:
        ValueError: the weights are too large for a record.
    """
    if len(weights) > MAX_WEIGHTS_BYTES:
        raise ValueError(f"{len(weights)} bytes of weights, at most {MAX_WEIGHTS_BYTES}")
    digest = weights_digest(weights)
    return msgspec.convert(
        {
            "fleet": fleet,
            "policy_id": f"{algorithm}-{version}-{digest[:12]}",
            "algorithm": algorithm,
            "version": version,
            "parent": parent,
            "created_wall_us": created_wall_us,
            "feature_version": FEATURE_VERSION,
            "dimensions": DIMENSIONS,
            "actor": actor,
            "normaliser": normaliser,
            "weights_digest": digest,
            "alpha": max((alphas or {}).values(), default=0.0),
            "alphas": dict(alphas or {}),
            "seed": seed,
            "config": config,
            "trained_on": tuple(trained_on),
            "gate": gate or {},
            "summary": summary,
        },
        PolicyVersion,
    )


def publish(
    broker: Broker, version: PolicyVersion, weights: bytes, key: Ed25519PrivateKey
) -> PolicyVersion:
    """Sign a version, write its weights and then itself, and return it once both are durable."""
    signed = sign_policy(version, key)
    _write(broker, signed, weights)
    return signed


def _write(broker: Broker, signed: PolicyVersion, weights: bytes) -> None:
    source = f"gpuloop/{signed.fleet}/learner"
    broker.produce(
        [encode_binary("policies.weights", signed.weights_digest, weights, source=source)]
    )
    broker.produce(
        [
            encode(
                "policies",
                signed.policy_id,
                signed,
                event_id=derived_event_id("policies", [signed.policy_id]),
                source=source,
            )
        ]
    )


def publish_again(broker: Broker, version: PolicyVersion) -> bool:
    """Write a published version and its weights once more, and say whether they were there.

    Deciders let go of old versions and cannot read back, so one that is to be staged must come by
    again. It stays what its key signed.
    """
    weights = [
        one.value
        for one in read_all(broker, "policies.weights")
        if one.value is not None and weights_digest(one.value) == version.weights_digest
    ]
    if not weights:
        return False
    _write(broker, version, weights[-1])
    return True


def read_all(broker: Broker, topic: str) -> Iterator[Record]:
    """Yield what a topic holds now, partition by partition."""
    parts = broker.partitions(topic)
    first, end = broker.beginnings(parts), broker.ends(parts)
    for part in parts:
        yield from read_between(broker, part, first[part], end[part])


def published(broker: Broker) -> list[PolicyVersion]:
    """Return every version on the topic that its own key signed, oldest first.

    What does not decode, and what only claims a key, is passed over: a version that nobody signed
    could otherwise be the last of somebody's rounds.
    """
    found: dict[str, PolicyVersion] = {}
    for record in read_all(broker, "policies"):
        try:
            message = decode(record)
        except BadInput:
            continue
        if isinstance(message, PolicyVersion) and policy_signature_ok(
            message, {message.public_key}
        ):
            found[message.policy_id] = message
    return sorted(found.values(), key=lambda v: (v.version, v.policy_id))


def load_weights(broker: Broker, digest: str) -> bytes | None:
    """Return the weights stored under a digest, or None when there are none that match it."""
    for record in read_all(broker, "policies.weights"):
        if record.value and weights_digest(record.value) == digest:
            return record.value
    return None


def shipped() -> tuple[PolicyVersion, bytes] | None:
    """Return the policy that comes with the project, as `load` does."""
    return load(SHIPPED)


def load(folder: Path) -> tuple[PolicyVersion, bytes] | None:
    """Return the policy that was stored in a folder, unsigned, or None where there is none.

    Raises:
        ValueError: the weights are not the ones the manifest names.
    """
    manifest, weights_file = folder / "policy.json", folder / "actor.safetensors"
    if not manifest.exists():
        return None
    version = msgspec.json.decode(manifest.read_bytes(), type=PolicyVersion)
    weights = weights_file.read_bytes()
    if weights_digest(weights) != version.weights_digest:
        raise ValueError(f"{weights_file} is not what {manifest.name} describes")
    return version, weights


def store(folder: Path, version: PolicyVersion, weights: bytes) -> None:
    """Write a version as two files: a readable manifest and its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(version), indent=2)
    (folder / "policy.json").write_bytes(text + b"\n")
    (folder / "actor.safetensors").write_bytes(weights)
