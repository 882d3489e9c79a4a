"""The second look: whether a command that waited may still be sent as it was shown.

What a person agreed to is put before the same envelope that let it be proposed, on what is known
now. It goes as a whole or not at all: an approval is bound to what was shown.
"""

import numpy as np

from gpuloop.actuators.envelope import NODES, apply_envelope
from gpuloop.loop.decide.deliberate import Mind, look
from gpuloop.loop.decide.state import DeciderState
from gpuloop.schemas.component import Context
from gpuloop.schemas.messages import Command
from gpuloop.schemas.messages.actions import MigrateTo, PriceTo, ScaleTo
from gpuloop.schemas.policy import EPOCH_US, MIGRATION, PRICE
from gpuloop.schemas.units import USD_MICROS


def objection(mind: Mind, state: DeciderState, command: Command, ctx: Context) -> str | None:
    """Return what the guards have against a command now, or None."""
    tick_us = ctx.now_us
    if isinstance(command.to, PriceTo):
        tick_us -= tick_us % EPOCH_US  # The epoch in which it was proposed, or the one after.
    view = look(mind, state, tick_us, ctx)
    row = view.batch.pools.index(command.pool)
    wish = view.batch.present.copy()
    match command.to:
        case ScaleTo(on_demand_nodes=on_demand, spot_nodes=spot):
            wish[row, NODES] = on_demand, spot
        case PriceTo(usd_micros_per_gpu_hour=micros):
            wish[row, PRICE] = micros / USD_MICROS
        case MigrateTo():
            wish[row, MIGRATION] = 1.0
        case _:
            return f"nothing here moves {command.actuator}"
    executed = apply_envelope(wish, view.batch, view.envelope, mind.envelope)
    if np.allclose(executed.action[row], wish[row], atol=1e-9):
        return None
    found = [f"{one.stage}: {one.reason}" for one in executed.adjustments[row]]
    return "; ".join(dict.fromkeys(found))
