"""A decider under test: events in, outputs by kind, its own controls read back like anyone's."""

from collections.abc import Sequence
from typing import Any

import msgspec

from builders import FLEET, START_US, at, control, echo, job_state, offer, received
from gpuloop.loop.decide.decider import Decider
from gpuloop.schemas.component import Output, Received, Tick, load, save
from gpuloop.schemas.messages import Command, Decision, Outcome, PoolState, Proposal
from gpuloop.schemas.messages.actions import ScaleTo
from gpuloop.schemas.messages.control import LONGEST_LEASE_US, KillLease, SetMode
from gpuloop.schemas.units import MINUTE_US

WALL_US = 1_000_000_000


class Loop:
    """One decider; `minute` is fleet time since the start, `outputs` all that it wrote."""

    def __init__(self, *, mode: str = "auto", own: bool = True, **settings: Any) -> None:
        self.decider = Decider(FLEET, **settings)
        self.state = self.decider.initial()
        self.now_us, self.wall_us = START_US, WALL_US
        self.outputs: list[Output] = []
        for billing, usd in (("on_demand", 3.6), ("spot", 1.5)):
            self.send(received("market.offers", offer(billing, usd)))
        for actuator in ("scaling", "pricing", "migration"):
            self.send(control(SetMode(pool="*", actuator=actuator, mode=mode)))
        self.keeper_lives = True
        self.renew()
        if own:
            self.tick()

    def send(self, event: Received | Tick) -> list[Output]:
        self.state, outputs = self.decider.step(self.state, event, at(self.now_us, self.wall_us))
        self.outputs += outputs
        for output in outputs:
            if output.topic == "controls":
                self.send(echo(output))
        return list(outputs)

    def renew(self) -> None:
        """Renew the kill lease, as a living keeper does."""
        if self.keeper_lives:
            until = self.wall_us + LONGEST_LEASE_US
            self.send(control(KillLease(expires_wall_us=until)))

    def tick(self) -> list[Output]:
        return self.send(Tick(tick_us=self.now_us // MINUTE_US * MINUTE_US))

    def minute(self, *pools: PoolState) -> list[Output]:
        """Let a minute pass and show these pools, dated now; the tick comes last."""
        self.now_us += MINUTE_US
        self.wall_us += MINUTE_US // 60
        self.renew()
        outputs = []
        for pool in pools:
            dated = {"tick_us": self.now_us}
            outputs += self.send(received("state.pools", replace(pool, **dated), pool.pool))
        return [*outputs, *self.tick()]

    def running(self, *jobs: str, node: str = "a100-d001", **changes: Any) -> None:
        for job in jobs:
            state = job_state(job, nodes=(node,), **changes)
            self.send(received("state.jobs", state, job))

    def restart(self) -> None:
        """Go on from what a snapshot would hold."""
        self.state = load(type(self.state), save(self.state))
        decider = self.decider
        self.decider = Decider(
            FLEET,
            owner=decider.owner,
            trusted_keys=decider.trusted_keys,
            rule=decider.mind.rule,
            envelope=decider.mind.envelope,
            pricing=decider.mind.pricing,
        )

    def answer(self, command: Command, status: str, reason: str = "ok", **changes: Any) -> None:
        """Report what became of a command."""
        applied = status == "applied"
        outcome = Outcome(
            fleet=FLEET,
            command_id=command.command_id,
            decision_id=command.decision_id,
            actuator=command.actuator,
            target=command.target,
            pool=command.pool,
            status=status,
            reason=reason,
            generation=command.generation + applied,
            epoch=command.epoch,
            event_time_us=self.now_us,
            observed=command.to if applied and isinstance(command.to, ScaleTo) else None,
        )
        self.send(received("actions.outcomes", replace(outcome, **changes), command.target))


def replace(message: Any, **changes: Any) -> Any:
    """Return a message with some fields changed."""
    return msgspec.structs.replace(message, **changes)


def decisions(outputs: Sequence[Output]) -> list[Decision]:
    return [one.message for one in outputs if isinstance(one.message, Decision)]


def commands(outputs: Sequence[Output]) -> list[Command]:
    return [one.message for one in outputs if isinstance(one.message, Command)]


def proposals(outputs: Sequence[Output]) -> list[Proposal]:
    return [one.message for one in outputs if isinstance(one.message, Proposal)]
