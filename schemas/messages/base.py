"""What every message shares: immutability, a type name and a major version.

Telemetry tolerates fields it does not know, so that a newer collector can talk to an older
reader. Whatever can move the fleet is strict: an unknown field there may be a misspelt limit.
"""

from typing import ClassVar

import msgspec

from gpuloop.schemas.units import Name


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message on a topic; `TYPE` and `MAJOR` name its schema, `gpuloop/<TYPE>/<MAJOR>`."""

    TYPE: ClassVar[str]
    MAJOR: ClassVar[int] = 1

    fleet: Name


class StrictMessage(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message that may cause an effect and is refused when it holds an unknown field."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a message."""


class StrictPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A piece of a strict message."""


def dataschema(kind: type[Message]) -> str:
    """Return the `ce_dataschema` of a message class, as `gpuloop/<type>/<major>`."""
    return f"gpuloop/{kind.TYPE}/{kind.MAJOR}"
