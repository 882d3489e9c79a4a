"""The fleet as a component: a twin's world and the executor that guards it, folded together.

Commands and controls in, telemetry, offers and outcomes out. World and executor are one state, so
that whoever saves it saves an effect and the memory of its command together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from gpuloop.actuators import executor
from gpuloop.actuators.executor import ExecutorState
from gpuloop.schemas.catalogue import action_topic
from gpuloop.schemas.component import Context, Event, Output, Received, State, Tick, load, save
from gpuloop.schemas.identity import derived_event_id, sha256_of
from gpuloop.schemas.messages import Command, Control
from gpuloop.schemas.messages.actions import ACTUATORS
from gpuloop.schemas.units import SECOND_US
from gpuloop.twin.config import CarbonConfig, TwinConfig
from gpuloop.twin.state import WorldState
from gpuloop.twin.world import World, build_world

ADDED_LATER: Final[dict[str, object]] = {
    "placement": "binpack",
    "shares": None,
    "service_parts": {},
    "tenants": (),
    "facilities": (),
    "carbon": msgspec.to_builtins(CarbonConfig()),
}
"""Configuration that worlds saved before it existed are taken to have: such a world goes on."""


def origin_of(config: TwinConfig, workload: str, start_us: int) -> str:
    """Return the digest of what a world is made of; only that can go on with its state.

    Keys of `ADDED_LATER` count only where they are not at their defaults.
    """
    made_of = msgspec.to_builtins(config, order="deterministic")
    for key, default in ADDED_LATER.items():
        if made_of[key] == default:
            del made_of[key]
    return sha256_of(msgspec.json.encode(made_of), workload, str(start_us))


class TwinState(State):
    """A world, what its executor remembers, and the digest of what the world was made of."""

    origin: str
    world: WorldState
    executor: ExecutorState


class TwinFleet:
    """Folds commands and time into what a fleet says."""

    name: ClassVar[str] = "twin"
    inputs: ClassVar[tuple[str, ...]] = (*(action_topic(a) for a in ACTUATORS), "controls")
    state_version: ClassVar[int] = 1

    def __init__(self, config: TwinConfig, traces: Path | None, workload: str = "auto") -> None:
        self.state_type = TwinState
        self.tick_every_us = SECOND_US
        self.world: Final[World] = build_world(config, traces, workload)
        self.origin: Final = origin_of(config, self.world.workload_name, self.world.start_us)
        self._beginning: Final = save(self.world.state)

    def initial(self) -> TwinState:
        """Return the world at its start, with an executor that has seen nothing."""
        return TwinState(
            origin=self.origin,
            world=load(WorldState, self._beginning),
            executor=ExecutorState(),
        )

    def step(
        self, state: TwinState, event: Event, ctx: Context
    ) -> tuple[TwinState, Sequence[Output]]:
        """Let time pass up to the event, then obey it.

        Raises:
            ValueError: the state belongs to a world that was made of something else.

        """
        if state.world is not self.world.state:
            self._adopt(state)
        said = self.world.advance(event.tick_us if isinstance(event, Tick) else ctx.now_us)
        match event:
            case Received(message=Command() as command):
                outcomes = executor.handle(
                    state.executor, command, self.world, ctx.now_us, ctx.wall_us
                )
                said += [
                    Output(
                        topic="actions.outcomes",
                        key=outcome.target,
                        message=outcome,
                        event_id=derived_event_id(
                            "actions.outcomes", (event.id, outcome.status, outcome.reason)
                        ),
                        time_us=outcome.event_time_us,
                    )
                    for outcome in outcomes
                ]
                said += self.world.drain()
            case Received(message=Control() as control):
                executor.control(state.executor, control, ctx.wall_us)
            case _:
                pass
        return state, said

    def _adopt(self, state: TwinState) -> None:
        if state.origin != self.origin:
            raise ValueError(
                "this world was begun with another configuration, trace or start; bring those"
                " back, or begin a fresh one"
            )
        self.world.restore(state.world)
