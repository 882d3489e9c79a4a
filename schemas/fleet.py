"""The port through which an executor touches a fleet.

The guards (fleet, kill, expiry, epoch, generation, once-only) belong to the executor and hold for
every fleet; a fleet only knows how to read a target and how to bring it to a desired state. Where
the fleet has a database of its own, executor ledger and effect share its transaction.
"""

from typing import NamedTuple, Protocol

from gpuloop.schemas.messages.actions import Actuator, DesiredState, OutcomeReason


class Target(NamedTuple):
    """What a target is now, and how many changes each led it there."""

    pool: str
    state: DesiredState
    generation: int


class Refused(Exception):
    """The fleet cannot bring the target to the desired state; nothing has changed."""

    def __init__(self, reason: OutcomeReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: OutcomeReason = reason
        self.detail = detail


class Fleet(Protocol):
    """What an executor needs of a fleet."""

    @property
    def name(self) -> str:
        """Return the fleet's name; commands for another fleet are refused."""
        ...

    def read(self, actuator: Actuator, target: str) -> Target | None:
        """Return the present state of a target, or None when there is no such target."""
        ...

    def apply(self, actuator: Actuator, target: str, to: DesiredState, now_us: int) -> Target:
        """Bring a target to a desired state at fleet time `now_us` and raise its generation by one.

        Returns:
            The target as it is afterwards. Capacity that was ordered and is not there yet counts
            as applied: its arrival shows in telemetry.

        Raises:
            Refused: nothing has changed.

        """
        ...
