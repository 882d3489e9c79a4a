"""What people said no to, and for how long it is not asked again.

A no holds for the direction, not for the exact figures: to ask for a little less a minute later
would be to ask again. It holds in wall time, as the person lives in it, and for proposals only: a
mode that is granted afterwards is the newer word.
"""

from typing import Final

import msgspec

from gpuloop.schemas.messages import Command
from gpuloop.schemas.messages.actions import PriceTo, ScaleTo
from gpuloop.schemas.units import MINUTE_US

ASK_AGAIN_WALL_US: Final = 30 * MINUTE_US
MAX_VETOES: Final = 4096
"""Past this the no that ends first is forgotten: what it held is only asked for again."""


class Veto(msgspec.Struct, frozen=True, kw_only=True):
    """A person's no, and the wall time until which it holds."""

    by: str
    reason: str
    until_wall_us: int


def refuse(vetoes: dict[str, Veto], command: Command, by: str, reason: str, wall_us: int) -> str:
    """Keep a no in mind and return it in words."""
    if len(vetoes) >= MAX_VETOES:
        del vetoes[min(vetoes, key=lambda key: vetoes[key].until_wall_us)]
    no = Veto(by=by, reason=reason, until_wall_us=wall_us + ASK_AGAIN_WALL_US)
    vetoes[_direction(command)] = no
    return f"{_words(no)}; holds for {ASK_AGAIN_WALL_US // MINUTE_US} minutes"


def said_no(vetoes: dict[str, Veto], command: Command, wall_us: int) -> str | None:
    """Return the no that holds a command back, in words, or None."""
    no = vetoes.get(_direction(command))
    if no is None or no.until_wall_us <= wall_us:
        return None
    minutes = -((wall_us - no.until_wall_us) // MINUTE_US)
    return f"{_words(no)}; not asked again for {minutes} minutes"


def lasting(vetoes: dict[str, Veto], wall_us: int) -> dict[str, Veto]:
    """Return the vetoes that still hold."""
    return {key: no for key, no in vetoes.items() if no.until_wall_us > wall_us}


def _words(no: Veto) -> str:
    return f"{no.by} said no: {no.reason}" if no.reason else f"{no.by} said no"


def _direction(command: Command) -> str:
    """Return what a no is about: growing or shrinking a pool, a dearer or cheaper quote, a job."""
    way = ""
    match command.before, command.to:
        case ScaleTo() as before, ScaleTo() as to:
            grows = to.on_demand_nodes > before.on_demand_nodes or to.spot_nodes > before.spot_nodes
            way = "/grow" if grows else "/shrink"
        case PriceTo() as old, PriceTo() as new:
            way = "/up" if new.usd_micros_per_gpu_hour > old.usd_micros_per_gpu_hour else "/down"
    return f"{command.actuator}/{command.target}{way}"
