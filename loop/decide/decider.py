"""The decider: the one process that decides for a fleet, as a fold.

It joins what is observed, forecast, diagnosed, granted and answered, and once per control tick
turns it into one decision per pool. Faults and causes that name a node are answered at once. It
decides only while it owns the fleet, which it does once its own claim is read back from `controls`;
with the kill switch on, or its lease lapsed, it still decides and records, and sends nothing.
"""

from collections.abc import Collection, Sequence
from typing import ClassVar, Final

from gpuloop.actuators.envelope import EnvelopeConfig
from gpuloop.loop.decide.answers import expire, on_approval, on_outcome
from gpuloop.loop.decide.deliberate import Mind, deliberate
from gpuloop.loop.decide.governance import (
    Governance,
    acted,
    claim,
    follow,
    must_claim,
    take_over,
)
from gpuloop.loop.decide.library import (
    Library,
    accept_version,
    accept_weights,
    settle_library,
    staged_policies,
)
from gpuloop.loop.decide.memory import forget
from gpuloop.loop.decide.release import Desk, tidy
from gpuloop.loop.decide.state import (
    DeciderState,
    drop,
    know_job,
    know_offer,
    know_pool,
    nodes_asked_about,
)
from gpuloop.loop.decide.suspects import Suspects, Suspicion, lapse, on_cause, on_fault
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.component import Context, Event, Output, Received, Tick
from gpuloop.schemas.horizon import SOURCE_AHEAD_US, STATE_AHEAD_US, refuse_ahead
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import (
    Approval,
    Cause,
    Control,
    Fault,
    Forecast,
    JobState,
    Message,
    Offer,
    Outcome,
    PolicyVersion,
    PoolState,
)
from gpuloop.schemas.messages.control import EVERY, BreakerReset, Claim, scope
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import MINUTE_US, TimeUs

SILENT_US: Final = 10 * MINUTE_US
"""A pool not heard of for this long is no longer waited for; it is still decided for, and held."""

FRESH_AHEAD_US: Final = 5 * MINUTE_US
"""A state dated this far after now would stay fresh for as long, whatever becomes of the pool."""

BEHIND_US: Final = 15 * MINUTE_US
"""A state dated this far before the last one is no repeat: another world writes to these topics."""


class Decider:
    """One decision per pool and tick. `owner` names this decider in its claims on the fleet."""

    name: ClassVar[str] = "decider"
    inputs: ClassVar[tuple[str, ...]] = (
        "state.pools",
        "state.jobs",
        "telemetry.faults",
        "insight.causes",
        "insight.forecasts",
        "market.offers",
        "policies",
        "policies.weights",
        "controls",
        "approvals",
        "actions.outcomes",
    )
    state_version: ClassVar[int] = 1

    def __init__(
        self,
        fleet: str,
        *,
        owner: str = "decider",
        trusted_keys: Collection[str] = (),
        rule: RuleConfig | None = None,
        envelope: EnvelopeConfig | None = None,
        pricing: PricingConfig | None = None,
    ) -> None:
        """Decide for `fleet`.

        `trusted_keys` are the public keys (hex) whose policies may be loaded; prices are learned
        where `pricing` says how, and otherwise the rule's.
        """
        self.state_type = DeciderState
        self.tick_every_us: TimeUs = CONTROL_TICK_US
        self.owner = owner
        self.trusted_keys = frozenset(trusted_keys)
        self.mind = Mind(
            fleet=fleet,
            rule=rule or RuleConfig(),
            envelope=envelope or EnvelopeConfig(),
            pricing=pricing,
        )

    def initial(self) -> DeciderState:
        """Return the state of a decider that knows nothing and owns nothing."""
        return DeciderState(
            governance=Governance(), suspects=Suspects(), library=Library(), desk=Desk()
        )

    def step(
        self, state: DeciderState, event: Event, ctx: Context
    ) -> tuple[DeciderState, Sequence[Output]]:
        """Take in one event; decide when it completes a tick.

        Raises:
            BadInput: news from the far future, which would be believed for as long.

        """
        if isinstance(event, Received):
            _refuse_ahead(event.message, ctx.now_us)  # First: a refusal leaves nothing half done.
        taken = take_over(state.governance, self.owner, ctx.run)
        claims = [self._claim(taken, ctx)] if taken is not None else []
        if isinstance(event, Tick):
            return state, claims + self._tick(state, event.tick_us, ctx)
        return state, claims + self._receive(state, event, ctx)

    def _receive(self, state: DeciderState, event: Received, ctx: Context) -> list[Output]:
        match event.message:
            case PoolState() as pool:
                return self._pool(state, pool, ctx)
            case JobState() as job:
                know_job(state, job)
            case Fault() as fault:
                found = on_fault(state.suspects, fault, event.id, ctx.now_us)
                return self._reflex(state, found, fault.event_time_us, ctx)
            case Cause() as cause:
                named = on_cause(state.suspects, cause, state.jobs, event.id, ctx.now_us)
                return self._reflex(state, named, cause.event_time_us, ctx)
            case Forecast() as forecast:
                if forecast.pool in state.pools:
                    state.forecasts[forecast.pool] = forecast
            case Offer() as offer:
                know_offer(state, offer, ctx.now_us)
            case Control() as control:
                return self._control(state, control, ctx)
            case Approval() as approval:
                return on_approval(self.mind, state, approval, ctx)
            case Outcome() as outcome:
                acted(state.governance, outcome.epoch)
                on_outcome(state, outcome)
            case PolicyVersion() as version:
                staged = staged_policies(state.governance)
                accept_version(state.library, version, self.trusted_keys, staged)
            case None if event.topic == "policies.weights":
                accept_weights(state.library, event.key, event.payload)
            case _:
                drop(state, "unexpected")
        return []

    def _pool(self, state: DeciderState, pool: PoolState, ctx: Context) -> list[Output]:
        if pool.tick_us > ctx.now_us + FRESH_AHEAD_US:
            drop(state, "pools from the future")
            return []
        known = state.pools.get(pool.pool)
        behind_us = 0 if known is None else known.latest.tick_us - pool.tick_us
        state.behind_us = behind_us if behind_us > BEHIND_US else 0
        if state.behind_us:
            drop(state, "pools from the past")
            return []
        if not know_pool(state, pool) or state.decided_us == 0:
            return []  # The first decision waits for a tick, so that it sees every pool.
        tick_us = pool.tick_us // CONTROL_TICK_US * CONTROL_TICK_US
        heard = [
            memory.latest.tick_us
            for memory in state.pools.values()
            if memory.latest.tick_us > pool.tick_us - SILENT_US
        ]
        return self._decide(state, tick_us, ctx) if min(heard) >= tick_us else []

    def _tick(self, state: DeciderState, tick_us: int, ctx: Context) -> list[Output]:
        if must_claim(state.governance):
            return [self._claim(claim(state.governance, self.owner, ctx.run), ctx)]
        outputs = expire(state, ctx)
        for memory in state.pools.values():
            forget(memory, ctx.now_us, self.mind.envelope.window_us)
        lapse(state.suspects, ctx.now_us, nodes_asked_about(state))
        tidy(state.desk, ctx.now_us, ctx.wall_us)
        late_us = tick_us - CONTROL_TICK_US
        if state.decided_us == 0 and state.pools:
            newest = max(memory.latest.tick_us for memory in state.pools.values())
            late_us = newest // CONTROL_TICK_US * CONTROL_TICK_US
        return [*outputs, *self._decide(state, late_us, ctx)]

    def _decide(self, state: DeciderState, tick_us: int, ctx: Context) -> list[Output]:
        if tick_us <= state.decided_us or not state.pools or not state.governance.owns:
            return []
        state.decided_us = tick_us
        return self.deliberate(state, tick_us, ctx)

    def deliberate(self, state: DeciderState, tick_us: int, ctx: Context) -> list[Output]:
        """Decide for all pools; where offsets come from outside, this is what waits for them."""
        return deliberate(self.mind, state, tick_us, ctx)

    def _reflex(
        self, state: DeciderState, found: Suspicion | None, event_us: int, ctx: Context
    ) -> list[Output]:
        """Move the jobs of a node that has just come under suspicion, before the next tick."""
        if found is None or found.pool not in state.pools or not state.governance.owns:
            return []
        memory = state.pools[found.pool]
        memory.last_reflex_us = max(min(event_us, ctx.now_us), memory.last_reflex_us + 1)
        return deliberate(self.mind, state, memory.last_reflex_us, ctx, found)

    def _control(self, state: DeciderState, control: Control, ctx: Context) -> list[Output]:
        body = control.body
        if isinstance(body, BreakerReset):
            for name, memory in state.pools.items():
                if body.pool in (name, EVERY):
                    memory.breaker_open, memory.failures = False, 0
        wanted = follow(state.governance, self.owner, body, ctx)
        if state.governance.owns and not state.library.settled:
            # Its own claim is read back, and so is all that was said before it.
            settle_library(state.library, staged_policies(state.governance))
        return [self._claim(wanted, ctx)] if wanted is not None else []

    def _claim(self, body: Claim, ctx: Context) -> Output:
        control = Control(
            fleet=self.mind.fleet, by=self.owner, reason="the decider takes the fleet", body=body
        )
        return Output(
            topic="controls",
            key=scope(body),
            message=control,
            event_id=derived_event_id("controls", [body.owner, str(body.epoch)]),
            time_us=ctx.now_us,
        )


def _refuse_ahead(message: Message | None, now_us: int) -> None:
    """Refuse news of the far future whole; states of pools come again, so they are only counted."""
    match message:
        case Fault(event_time_us=at_us) | Cause(event_time_us=at_us):
            refuse_ahead(at_us, now_us, SOURCE_AHEAD_US)
        case Offer(fetched_at_us=at_us):
            refuse_ahead(at_us, now_us, SOURCE_AHEAD_US)
        case Forecast(tick_us=at_us):
            refuse_ahead(at_us, now_us, STATE_AHEAD_US)
        case _:
            pass
