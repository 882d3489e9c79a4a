"""The smallest fleet that an executor can act on, and commands for it."""

from gpuloop.actuators.commands import Origin, Tariff, scale
from gpuloop.schemas.fleet import Target
from gpuloop.schemas.identity import decision_id
from gpuloop.schemas.messages import Command
from gpuloop.schemas.messages.actions import Actuator, DesiredState, ScaleTo

FLEET = "test"
TARIFF = Tariff(gpus_per_node=8, on_demand_usd_per_hour=29.0, spot_usd_per_hour=12.0)


class MemoryFleet:
    """One pool, `a100`; every effect on it raises its generation."""

    name = FLEET

    def __init__(self, *, on_demand: int = 16, spot: int = 8) -> None:
        self.state = ScaleTo(on_demand_nodes=on_demand, spot_nodes=spot)
        self.generation = 0

    def read(self, actuator: Actuator, target: str) -> Target | None:
        """Return the pool."""
        known = actuator == "scaling" and target == "a100"
        return Target("a100", self.state, self.generation) if known else None

    def apply(self, actuator: Actuator, target: str, to: DesiredState, now_us: int) -> Target:
        """Scale the pool."""
        assert isinstance(to, ScaleTo)
        self.state, self.generation = to, self.generation + 1
        return Target("a100", self.state, self.generation)


def scale_command(
    number: int, *, generation: int, now_us: int, epoch: int = 1, nodes: int = 20
) -> Command:
    """Return a command for the pool, one of its own for each number and epoch."""
    origin = Origin(
        fleet=FLEET,
        decision_id=decision_id(FLEET, "a100", "cluster", epoch, number),
        pool="a100",
        epoch=epoch,
        now_us=now_us,
    )
    return scale(
        origin,
        before=ScaleTo(on_demand_nodes=16, spot_nodes=8),
        to=ScaleTo(on_demand_nodes=nodes, spot_nodes=8),
        generation=generation,
        tariff=TARIFF,
        mode="auto",
        reason="test",
    )
