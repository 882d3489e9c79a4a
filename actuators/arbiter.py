"""The arbiter: when wishes want the same thing, the more important purpose gets it.

A wish names the resources it needs undisturbed; a granted wish leases them for a while. Resources
held for another actuator are only taken over by a more important purpose. Ties go by name, so the
same wishes always give the same grants.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from gpuloop.schemas.messages.actions import Actuator

Purpose = Literal["safety", "service", "mitigation", "cost", "revenue"]
PRIORITY: Final[dict[Purpose, int]] = {
    "safety": 0,
    "service": 1,
    "mitigation": 2,
    "cost": 3,
    "revenue": 4,
}
MAX_LEASES: Final = 4096


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A resource held for an actuator until `until_us`."""

    actuator: Actuator
    purpose: Purpose
    until_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Something one actuator wants to do to one target, and what it must have to itself."""

    actuator: Actuator
    target: str
    purpose: Purpose
    resources: tuple[str, ...]
    until_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A wish that has to wait, and the resource and purpose it waits for."""

    wish: Wish
    resource: str
    holder: Purpose


def arbitrate(
    wishes: Iterable[Wish], leases: dict[str, Lease], now_us: int
) -> tuple[list[Wish], list[Refusal], dict[str, Lease]]:
    """Return the granted wishes, the refused ones and the leases that hold afterwards."""
    held = {name: lease for name, lease in leases.items() if lease.until_us > now_us}
    granted: list[Wish] = []
    refused: list[Refusal] = []
    for wish in sorted(wishes, key=lambda one: (PRIORITY[one.purpose], one.actuator, one.target)):
        obstacle = next((name for name in wish.resources if _blocks(held.get(name), wish)), None)
        if obstacle is not None:
            holder = held[obstacle].purpose
            refused.append(Refusal(wish=wish, resource=obstacle, holder=holder))
            continue
        if len(held) + len(wish.resources) > MAX_LEASES:
            refused.append(Refusal(wish=wish, resource="leases", holder="safety"))
            continue
        granted.append(wish)
        for name in wish.resources:
            held[name] = _stronger(held.get(name), wish)
    return granted, refused, held


def _blocks(lease: Lease | None, wish: Wish) -> bool:
    if lease is None or lease.actuator == wish.actuator:
        return False
    return PRIORITY[lease.purpose] <= PRIORITY[wish.purpose]


def _stronger(lease: Lease | None, wish: Wish) -> Lease:
    new = Lease(actuator=wish.actuator, purpose=wish.purpose, until_us=wish.until_us)
    if lease is None or lease.actuator != wish.actuator:
        return new
    purpose = min(lease.purpose, wish.purpose, key=PRIORITY.__getitem__)
    until = max(lease.until_us, wish.until_us)
    return Lease(actuator=wish.actuator, purpose=purpose, until_us=until)
