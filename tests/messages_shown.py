"""A command and its outcomes, for tests of what people are shown."""

import msgspec

from builders import FLEET, START_US
from gpuloop.schemas.messages import Command, Outcome
from gpuloop.schemas.messages.actions import ScaleTo

DIGEST = "ab" * 32
COMMAND = Command(
    fleet=FLEET,
    command_id=DIGEST,
    decision_id="d",
    actuator="scaling",
    target="a100",
    pool="a100",
    mode="auto",
    before=ScaleTo(on_demand_nodes=16, spot_nodes=8),
    to=ScaleTo(on_demand_nodes=17, spot_nodes=8),
    inverse=None,
    generation=0,
    epoch=1,
    issued_at_us=START_US,
    expires_at_us=START_US,
    gpus=8,
    usd_micros_per_hour=29_000_000,
    summary="a100: 16 -> 17 on-demand nodes",
    reason="queue",
    digest=DIGEST,
)


def outcome(status: str, reason: str) -> Outcome:
    """Return an outcome of the command."""
    return msgspec.convert(
        {
            "fleet": FLEET,
            "command_id": DIGEST,
            "decision_id": "d",
            "actuator": "scaling",
            "target": "a100",
            "pool": "a100",
            "status": status,
            "reason": reason,
            "generation": 1,
            "epoch": 1,
            "event_time_us": START_US,
        },
        Outcome,
    )
