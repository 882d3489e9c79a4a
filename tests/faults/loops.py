"""The whole loop in memory under a policy and a misfortune that a test chooses.

Twin, observe, decider and evaluator are the real ones; the policy's offsets are given from outside
and pass the rule, the envelope and the arbiter as any policy's do. What a test judges is what left
on topics, never what the decider believes.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.decide.deliberate import decide, look
from gpuloop.loop.decide.state import DeciderState
from gpuloop.loop.evaluate.evaluator import Evaluator
from gpuloop.loop.services.twin_fleet import TwinFleet
from gpuloop.loop.shells.keeper import Keeper
from gpuloop.loop.shells.simulation import Disturbance, Simulation
from gpuloop.schemas.component import Component, Context, Output, Received, load, save
from gpuloop.schemas.messages import Command, Control, Outcome, PoolState
from gpuloop.schemas.messages.actions import ACTUATORS, Actuator
from gpuloop.schemas.messages.control import ControlBody, Objectives, SetMode, scope
from gpuloop.schemas.policy import PoolBatch
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams.observe import Observe
from gpuloop.twin.config import PoolConfig, TwinConfig

FLEET = "local"
Policy = Callable[[PoolBatch], NDArray[Any]]

POOLS = (
    PoolConfig(
        name="a100", gpu_model="a100", on_demand_nodes=7, spot_nodes=5, nodes_min=3,
        nodes_max=20, quote_over_list=1.3, spot_reclaims_per_node_hour=0.02,
        weights={"long": 0.6, "small": 0.5},
    ),
    PoolConfig(
        name="l4", gpu_model="l4", billings=("spot",), spot_nodes=6, nodes_min=2, nodes_max=12,
        quote_over_list=0.9, spot_reclaims_per_node_hour=0.02, weights={"small": 0.5},
    ),
)  # fmt: skip


def config(seed: int, **changes: Any) -> TwinConfig:
    """Return a small world in which something is always going on."""
    base = TwinConfig(
        seed=seed,
        pools=POOLS,
        services=(),
        arrival_share=0.12,
        fault_rate_factor=300.0,
        gpu_sample_every_us=MINUTE_US,
    )
    return msgspec.structs.replace(base, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blackout(Disturbance):
    """No message of these topics arrives that was sent from a time on."""

    from_us: int

    def fate(self, message: Received) -> tuple[int, int]:
        """Return whether the message arrives."""
        dark = message.topic.startswith(self.topics)
        said = message.message
        at_us = said.tick_us if isinstance(said, PoolState) else getattr(said, "event_time_us", 0)
        return (0, 0) if dark and at_us >= self.from_us else (1, 0)


class Puppet(Decider):
    """A decider whose policy is a test's."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(FLEET)
        self.policy = policy

    def deliberate(self, state: DeciderState, tick_us: int, ctx: Context) -> list[Output]:
        """Decide with the test's offsets, through every guard."""
        view = look(self.mind, state, tick_us, ctx)
        return decide(self.mind, state, view, self.policy(view.batch))


@dataclass
class Loop:
    """A running loop and all that left on its topics."""

    simulation: Simulation
    twin: TwinFleet
    decider: Decider
    start_us: int
    seen: dict[str, list[Received]] = field(default_factory=lambda: defaultdict(list))

    @property
    def state(self) -> DeciderState:
        """Return what the decider knows."""
        state = self.simulation.states[self.decider.name]
        assert isinstance(state, DeciderState)
        return state

    def run(self, minutes: int) -> None:
        """Let fleet time pass."""
        self.simulation.run(self.simulation.now_us + minutes * MINUTE_US)

    def control(self, *bodies: ControlBody) -> None:
        """Let a person say something."""
        self.simulation.send(_controls(bodies, self.simulation.now_us))

    def restart_decider(self) -> None:
        """Go on from what a snapshot would hold."""
        self.simulation.states[self.decider.name] = load(DeciderState, save(self.state))

    def commands(self, *actuators: Actuator) -> list[Command]:
        """Return what was commanded, in its order."""
        found = [
            one.message
            for actuator in actuators or ACTUATORS
            for one in self.seen[f"actions.{actuator}"]
            if isinstance(one.message, Command)
        ]
        return sorted(found, key=lambda command: command.issued_at_us)

    def outcomes(self) -> dict[str, Outcome]:
        """Return how each command ended."""
        ended = [one.message for one in self.seen["actions.outcomes"]]
        return {
            one.command_id: one
            for one in ended
            if isinstance(one, Outcome) and one.status != "accepted" and one.reason != "duplicate"
        }


def build(
    seed: int,
    policy: Policy,
    *,
    disturbance: Disturbance | None = None,
    objectives: Iterable[Objectives] = (),
    more: Iterable[Component[Any]] = (),
    **changes: Any,
) -> Loop:
    """Return a loop at its start, with every actuator in auto and `more` components in it."""
    twin = TwinFleet(config(seed, **changes), None, "generator:bursty")
    twin.tick_every_us = MINUTE_US
    decider = Puppet(policy)
    components: list[Component[Any]] = [Keeper(FLEET), twin, Observe(FLEET), decider, Evaluator()]
    components += more
    start_us = twin.world.start_us
    simulation = Simulation(components, seed=seed, start_us=start_us, disturbance=disturbance)
    loop = Loop(simulation, twin, decider, start_us)
    for topic in (*(f"actions.{one}" for one in ACTUATORS), "actions.outcomes", "decisions",
                  "rewards", "state.pools"):  # fmt: skip
        simulation.watch(topic, loop.seen[topic].append)
    grants = (SetMode(pool="*", actuator=one, mode="auto") for one in ACTUATORS[:3])
    loop.control(*grants, *objectives)
    return loop


def _controls(bodies: Iterable[ControlBody], at_us: int) -> list[Output]:
    return [
        Output(
            topic="controls",
            key=scope(body),
            message=Control(fleet=FLEET, by="me", body=body),
            event_id=f"me/{at_us}/{scope(body)}",
            time_us=at_us,
        )
        for body in bodies
    ]


def adversary(seed: int) -> Policy:
    """Return a policy that for a while wishes for all, for nothing, or for anything."""
    rng = np.random.Generator(np.random.Philox(seed))
    mood, left = "", 0

    def wish(batch: PoolBatch) -> NDArray[Any]:
        nonlocal mood, left
        if left == 0:
            mood, left = str(rng.choice(["all", "none", "jump", "any"])), int(rng.integers(1, 25))
        left -= 1
        shape = batch.present.shape
        match mood:
            case "all":
                return np.full(shape, 1e9)
            case "none":
                return np.full(shape, -1e9)
            case "jump":
                return rng.choice([-1.0, 1.0], size=shape)
            case _:
                return rng.uniform(-1.0, 1.0, size=shape)

    return wish


def constant(nodes: float) -> Policy:
    """Return a policy that wishes for ever more or ever fewer nodes."""
    return functools.partial(_nodes, nodes)


def _nodes(nodes: float, batch: PoolBatch) -> NDArray[Any]:
    offsets = np.zeros_like(batch.present)
    offsets[:, :2] = nodes
    return offsets
