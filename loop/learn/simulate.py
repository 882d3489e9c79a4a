"""The whole loop in memory: twin, observe, forecast, decide, evaluate, under virtual time.

Environments of the whole loop and the report's re-runs come from here, so they meet the same rule,
envelope, arbiter and ledger as the live fleet, and decide as late (`LAGS`); only the policy's
offsets are given from outside. The loop stands still where a decision is due, shows what the
decider sees, and goes on when it is told the offsets. Draws are keyed by entity, so two runs that
differ in policy meet the same luck.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.decide.deliberate import View, decide, look
from gpuloop.loop.decide.state import DeciderState
from gpuloop.loop.evaluate.evaluator import Evaluator
from gpuloop.loop.services.twin_fleet import TwinFleet
from gpuloop.loop.shells.keeper import Keeper
from gpuloop.loop.shells.simulation import Lag, Simulation
from gpuloop.reasoning.forecast import Forecaster
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.component import Component, Context, Output, Received
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import Control, Decision, Reward
from gpuloop.schemas.messages.actions import Actuator, Mode
from gpuloop.schemas.messages.control import ControlBody, SetMode, scope
from gpuloop.schemas.policy import CONTROL_TICK_US, PoolBatch
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US, USD_MICROS
from gpuloop.streams.observe import Observe
from gpuloop.twin.config import TwinConfig

Offsets = Callable[[PoolBatch], NDArray[Any]]
"""A policy: (n, 4) offsets in [-1, 1] for a batch of n pools, at the alpha it is to act with."""

ACTUATORS: Final[tuple[Actuator, ...]] = ("scaling", "pricing", "migration")

LAGS: Final = (
    Lag(component="decider", every_us=CONTROL_TICK_US, most_us=50 * SECOND_US),
    Lag(
        component="observe",
        every_us=CONTROL_TICK_US,
        most_us=50 * SECOND_US,
        share=0.5,
        topics=("telemetry.resources",),
    ),
)
"""How late the parts of a live loop are, in fleet time at its usual 60 x real time.

There most decisions are made 5 to 45 s after their tick, and for about every other one the newest
count of nodes had missed the tick, so that what they see of capacity is up to two minutes old.
A stack under more load is later than this; the range that its actor was trained on then ends.
"""


def rule_alone(batch: PoolBatch) -> NDArray[Any]:
    """Wish for nothing beyond the rule."""
    return np.zeros_like(batch.present)


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulated fleet earned: US dollars in all, by component and by day it was decided."""

    usd: float
    components: dict[str, float]
    by_day: dict[int, float]
    decisions: int


class WaitingDecider(Decider):
    """A decider that looks when a decision is due, and decides when it is told the offsets."""

    view: View | None = None

    def deliberate(self, state: DeciderState, tick_us: int, ctx: Context) -> list[Output]:
        """Look and say nothing yet."""
        self.view = look(self.mind, state, tick_us, ctx)
        return []


class FleetSimulation:
    """One seeded world; `offsets` is the policy that `run` lets act."""

    def __init__(
        self,
        config: TwinConfig,
        *,
        traces: Path | None,
        workload: str = "auto",
        offsets: Offsets = rule_alone,
        rule: RuleConfig | None = None,
        mode: Mode = "auto",
        gpu_sample_every_us: int = MINUTE_US,
        pricing: PricingConfig | None = None,
    ) -> None:
        """Set up the loop; the world begins at `config.start_us`, its actuators in `mode`.

        The evaluator comes before those who decide: at a tick it says what the minute before it
        earned, and only then is the next decision due.
        """
        config = msgspec.structs.replace(config, gpu_sample_every_us=gpu_sample_every_us)
        twin = TwinFleet(config, traces, workload)
        twin.tick_every_us = CONTROL_TICK_US
        self._decider: Final = WaitingDecider(config.fleet, rule=rule, pricing=pricing)
        components: list[Component[Any]] = [
            Keeper(config.fleet),
            twin,
            Evaluator(settling_us=0),
            Observe(config.fleet),
            Forecaster(config.fleet),
            self._decider,
        ]
        self.workload_name = twin.world.workload_name
        self.start_us = twin.world.start_us
        self._fleet = config.fleet
        self._offsets = offsets
        self.rewards: Final[list[Reward]] = []
        """What windows earned, in the order they ended; a reader may clear it."""
        self.simulation = Simulation(
            components, seed=config.seed, start_us=self.start_us, lags=LAGS
        )
        self.simulation.watch("rewards", self._earned)
        grants = [SetMode(pool="*", actuator=actuator, mode=mode) for actuator in ACTUATORS]
        self.simulation.send(self._control(body) for body in grants)

    def look(self, until_us: int) -> PoolBatch | None:
        """Go on until a decision is due and return what it sees; None if none is by `until_us`."""
        decider = self._decider
        self.simulation.run(until_us, halt=lambda: decider.view is not None)
        return decider.view.batch if decider.view is not None else None

    def act(self, offsets: NDArray[Any]) -> list[Decision]:
        """Let the decision that is due be taken with offsets (n, 4) at alpha 1, and return it.

        Raises:
            RuntimeError: no decision is due.

        """
        view, self._decider.view = self._decider.view, None
        if view is None:
            raise RuntimeError("no decision is due")
        state = self.simulation.states[self._decider.name]
        assert isinstance(state, DeciderState)
        outputs = decide(self._decider.mind, state, view, offsets)
        self.simulation.send(outputs)
        return [one.message for one in outputs if isinstance(one.message, Decision)]

    def run(self, until_us: int) -> Totals:
        """Run until fleet time `until_us`; return what the windows that ended by then earned."""
        while (batch := self.look(until_us)) is not None:
            self.act(self._offsets(batch))
        return totals(self.rewards)

    def _earned(self, event: Received) -> None:
        assert isinstance(event.message, Reward)
        self.rewards.append(event.message)

    def _control(self, body: ControlBody) -> Output:
        return Output(
            topic="controls",
            key=scope(body),
            message=Control(fleet=self._fleet, by="simulation", body=body),
            event_id=derived_event_id("controls", ("simulation", scope(body))),
            time_us=self.start_us,
        )


def totals(rewards: Sequence[Reward]) -> Totals:
    """Add up what windows earned."""
    components: dict[str, int] = {}
    by_day: dict[int, int] = {}
    for reward in rewards:
        day = reward.start_us // (24 * HOUR_US)
        by_day[day] = by_day.get(day, 0) + reward.total_usd_micros
        for name, amount in reward.components.items():
            components[name] = components.get(name, 0) + amount
    return Totals(
        usd=sum(components.values()) / USD_MICROS,
        components={name: amount / USD_MICROS for name, amount in sorted(components.items())},
        by_day={day: amount / USD_MICROS for day, amount in sorted(by_day.items())},
        decisions=len(rewards),
    )
