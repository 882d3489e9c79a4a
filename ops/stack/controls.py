"""What the supervisor says on `controls` when a twin's world begins, and how controls are written.

On the twin nothing real can break, so its actuators start in `auto` and the policy that ships with
the project runs at the alpha that its own check earned. On any other fleet nobody has said so yet,
and the decider's own defaults hold. It never overrules what a person has set before.
"""

from collections.abc import Sequence
from typing import Final

from gpuloop.loop.learn import registry
from gpuloop.loop.shells.broker import Broker
from gpuloop.loop.shells.clock import wall_us
from gpuloop.schemas.codec import encode
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import Control
from gpuloop.schemas.messages.actions import Actuator
from gpuloop.schemas.messages.control import ControlBody, PolicyStage, SetMode, scope

EVERY_POOL: Final = "*"
ACTUATORS_ON_THE_TWIN: Final[tuple[Actuator, ...]] = ("scaling", "pricing", "migration")


def publish(
    broker: Broker, bodies: Sequence[ControlBody], *, fleet: str, by: str, reason: str
) -> None:
    """Write controls and return when they are durable; raises `BrokerError` otherwise."""
    now = wall_us()
    broker.produce(
        [
            encode(
                "controls",
                scope(body),
                Control(fleet=fleet, by=by, reason=reason, body=body),
                event_id=derived_event_id("controls", (fleet, scope(body), by, str(now))),
                source=f"gpuloop/{fleet}/{by}",
            )
            for body in bodies
        ]
    )


def publish_first(broker: Broker, fleet: str) -> bool:
    """Grant the twin's actuators their modes unless anything was ever said on `controls`."""
    if any(broker.ends(broker.partitions("controls")).values()):
        return False
    bodies: list[ControlBody] = [
        SetMode(pool=EVERY_POOL, actuator=actuator, mode="auto")
        for actuator in ACTUATORS_ON_THE_TWIN
    ]
    shipped = registry.shipped()
    if shipped is not None:
        version, _ = shipped
        earned = {pool: alpha for pool, alpha in version.alphas.items() if alpha > 0.0}
        bodies += [
            PolicyStage(pool=pool, policy_id=version.policy_id, stage="champion", alpha=alpha)
            for pool, alpha in (earned or {EVERY_POOL: 0.0}).items()
        ]
    publish(broker, bodies, fleet=fleet, by="supervisor", reason="the fleet is a twin")
    return True
