"""The keeper of a simulated loop: it renews the kill lease in virtual time.

A simulation is under the dead man's switch like any fleet: without this component, or something
that stands in for it, nothing starts.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from gpuloop.schemas.component import Context, Event, Output, State, Tick
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import Control
from gpuloop.schemas.messages.control import LONGEST_LEASE_US, KillLease, scope
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import TimeUs


class KeeperState(State):
    """A keeper remembers nothing."""


class Keeper:
    """One renewal per control tick; to come before those that need it."""

    name: ClassVar[str] = "keeper"
    inputs: ClassVar[tuple[str, ...]] = ()
    state_version: ClassVar[int] = 1

    def __init__(self, fleet: str) -> None:
        self.state_type: type[KeeperState] = KeeperState
        self.tick_every_us: TimeUs = CONTROL_TICK_US
        self._fleet: Final = fleet

    def initial(self) -> KeeperState:
        """Return the state before any tick."""
        return KeeperState()

    def step(
        self, state: KeeperState, event: Event, ctx: Context
    ) -> tuple[KeeperState, Sequence[Output]]:
        """Renew the lease from this wall time on."""
        if not isinstance(event, Tick):
            return state, ()
        body = KillLease(expires_wall_us=ctx.wall_us + LONGEST_LEASE_US)
        renewal = Output(
            topic="controls",
            key=scope(body),
            message=Control(fleet=self._fleet, by=self.name, reason="alive", body=body),
            event_id=derived_event_id("controls/lease", (self._fleet, str(body.expires_wall_us))),
            time_us=ctx.now_us,
        )
        return state, (renewal,)
