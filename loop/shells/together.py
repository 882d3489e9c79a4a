"""Two folds as one component: they share a process, a journal and a snapshot, and nothing else.

A process of its own costs a hundred megabytes before it does anything, so a fold that reads what
another one reads, and is not needed without it, runs beside it. Each is given the events of its own
inputs and keeps its own state; what they write leaves in one cut.
"""

from collections.abc import Sequence
from typing import ClassVar, Final, Generic, TypeVar

from gpuloop.schemas.component import Component, Context, Event, Output, Received, State
from gpuloop.schemas.units import TimeUs

A = TypeVar("A", bound=State)
B = TypeVar("B", bound=State)


class Both(State, Generic[A, B]):
    """The states of two folds."""

    first: A
    second: B


class Together(Generic[A, B]):
    """Runs two folds; a subclass names them, their inputs and the version of their states.

    Both must refuse the same records: one that only the second refused would have changed the
    first's state without what that led to being written.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    state_version: ClassVar[int]

    def __init__(
        self, first: Component[A], second: Component[B], state_type: type[Both[A, B]]
    ) -> None:
        if first.tick_every_us or second.tick_every_us:
            raise ValueError("folds that tick cannot share a component")
        self.state_type = state_type
        self.tick_every_us: TimeUs = 0
        self._first: Final = first
        self._second: Final = second

    def initial(self) -> Both[A, B]:
        """Return both states before any event."""
        return Both(first=self._first.initial(), second=self._second.initial())

    def step(
        self, state: Both[A, B], event: Event, ctx: Context
    ) -> tuple[Both[A, B], Sequence[Output]]:
        """Give the event to those that read its topic, in order.

        Raises:
            BadInput: the record breaks its contract.

        """
        outputs: list[Output] = []
        if _concerns(event, self._first.inputs):
            state.first, said = self._first.step(state.first, event, ctx)
            outputs += said
        if _concerns(event, self._second.inputs):
            state.second, said = self._second.step(state.second, event, ctx)
            outputs += said
        return state, outputs


def _concerns(event: Event, inputs: tuple[str, ...]) -> bool:
    return isinstance(event, Received) and event.topic in inputs
