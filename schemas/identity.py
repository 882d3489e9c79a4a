"""Derived identities: the same inputs give the same id, on any machine, on any day."""

import hashlib
from collections.abc import Iterable

import msgspec

from gpuloop.schemas.messages.actions import DesiredState


def sha256_of(*parts: str | bytes) -> str:
    """Return the SHA-256 of length-prefixed parts, so that no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def source_event_id(fleet: str, source: str, boot: int, seq: int) -> str:
    """Return the `ce_id` of a telemetry event."""
    return f"{fleet}/{source}/{boot}/{seq}"


def derived_event_id(kind: str, inputs: Iterable[str]) -> str:
    """Return the `ce_id` of a message that follows from other messages."""
    return sha256_of(kind, *inputs)


def decision_id(fleet: str, pool: str, level: str, epoch: int, tick_us: int) -> str:
    """Return the id of the one decision of a pool, level and tick under an epoch."""
    return f"{fleet}/{pool}/{level}/{epoch}/{tick_us}"


def command_id(decision: str, actuator: str, target: str) -> str:
    """Return the id of the one command a decision gives to an actuator about a target."""
    return sha256_of("command", decision, actuator, target)


def command_digest(command: str, target: str, to: DesiredState, generation: int) -> str:
    """Return what an approval is bound to: id, target, desired state and generation."""
    return sha256_of(
        "digest", command, target, msgspec.json.encode(to, order="deterministic"), str(generation)
    )
