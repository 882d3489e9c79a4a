"""The evaluator: credits each decision with what its pool earned and cost until the next one.

A decision opens a window at its tick and closes the one before. Windows of a pool lie end to end,
so the rewards of a pool add up to its ledger's flow between the first and the last of them. A
window is read off the ledger two minutes of fleet time after its end, when late telemetry is in;
after a restart the clock is far ahead of what has been read, so telemetry must have come past the
end as well. In memory nothing is late, and a window can be read off the moment it ends. It owns no
money: `ledger` says what things earn and cost.
"""

from bisect import insort
from collections.abc import Sequence
from typing import ClassVar, Final

import msgspec

from gpuloop.loop.evaluate.ledger import DEFINITION, Flow, Ledger
from gpuloop.schemas.component import Context, Event, Output, Received, State, Tick
from gpuloop.schemas.identity import derived_event_id
from gpuloop.schemas.messages import (
    Decision,
    JobEvent,
    Outcome,
    ResourceSample,
    Reward,
    ServiceSample,
)
from gpuloop.schemas.units import MINUTE_US, TimeUs
from gpuloop.streams.horizon import refuse_future

SETTLING_US: Final = 2 * MINUTE_US
GAP_US: Final = 5 * MINUTE_US
"""A longer window, or silence about capacity, does not show what one decision did."""
HORIZON_US: Final = 30 * MINUTE_US
"""How far the ledger may stay behind while nothing is decided or nothing is heard."""

MAX_OPEN_WINDOWS: Final = 128
MAX_TOUCHES: Final = 256

_LEVELS: Final[dict[str, int]] = {"cluster": 0, "continuum": 1}


class Window(msgspec.Struct, array_like=True, order=True):
    """The time from a decision's tick until the next decision about its pool.

    One without a decision has begun at a tick whose decision is still to come.
    """

    start_us: int
    decision_id: str
    epoch: int
    level: int
    fleet: str
    delayed: bool = False


class Touch(msgspec.Struct, array_like=True, order=True):
    """An effect on a pool at some time, and the decision it came from."""

    at_us: int
    decision_id: str


class Pool(msgspec.Struct):
    """One pool's windows: the one being earned, those to come, and what touched the pool."""

    current: Window | None = None
    coming: list[Window] = []
    touches: list[Touch] = []


class EvaluatorState(State):
    """The ledger and the windows of every pool; `refused` counts what met a bound."""

    ledger: Ledger = msgspec.field(default_factory=Ledger)
    pools: dict[str, Pool] = {}
    refused: int = 0


class Evaluator:
    """Folds telemetry, outcomes and decisions into rewards."""

    name: ClassVar[str] = "evaluator"
    inputs: ClassVar[tuple[str, ...]] = (
        "telemetry.jobs",
        "telemetry.services",
        "telemetry.resources",
        "market.offers",
        "actions.outcomes",
        "decisions",
    )
    state_version: ClassVar[int] = 1

    def __init__(self, *, settling_us: TimeUs = SETTLING_US) -> None:
        """Read a window off `settling_us` after its end.

        0 is for a loop in memory, where decisions are made at every tick and nothing is late: a
        window ends at the tick itself, before its decisions, so they can be made knowing it.
        """
        self.state_type = EvaluatorState
        self.tick_every_us: TimeUs = MINUTE_US
        self.settling_us = settling_us

    def initial(self) -> EvaluatorState:
        """Return the state before any event."""
        return EvaluatorState()

    def step(
        self, state: EvaluatorState, event: Event, ctx: Context
    ) -> tuple[EvaluatorState, Sequence[Output]]:
        """Fold one event; rewards come out on ticks.

        Raises:
            BadInput: telemetry from the far future, after which nothing would be late.

        """
        if isinstance(event, Tick):
            outputs = _close(state, event.tick_us, self.settling_us)
            if self.settling_us == 0:
                outputs += _end_now(state, event.tick_us)
            return state, outputs
        match event:
            case Received(message=Decision() as decision):
                _open(state, decision)
            case Received(message=Outcome() as outcome):
                if outcome.status == "applied":
                    _touch(state, outcome.pool, outcome.event_time_us, outcome.decision_id)
            case Received(message=JobEvent() | ServiceSample() | ResourceSample() as sample):
                refuse_future(sample.event_time_us, ctx.now_us)
                state.ledger.observe(event)
            case _:
                state.ledger.observe(event)
        return state, ()


def _open(state: EvaluatorState, decision: Decision) -> None:
    """Plan a decision's window; of several at one tick one owns it and the others overlap."""
    level = _LEVELS.get(decision.level)
    if level is None:
        _touch(state, decision.pool, decision.tick_us, decision.decision_id)
        return
    pool = state.pools.setdefault(decision.pool, Pool())
    window = Window(decision.tick_us, decision.decision_id, decision.epoch, level, decision.fleet)
    if pool.current is not None and window.start_us <= pool.current.start_us:
        if not pool.current.decision_id and window.start_us == pool.current.start_us:
            pool.current = window
            return
        _touch(state, decision.pool, window.start_us, window.decision_id)
        return
    rival = next((other for other in pool.coming if other.start_us == window.start_us), None)
    if rival is not None:
        if (window.epoch, -window.level) <= (rival.epoch, -rival.level):
            _touch(state, decision.pool, window.start_us, window.decision_id)
            return
        pool.coming.remove(rival)
        _touch(state, decision.pool, rival.start_us, rival.decision_id)
    if len(pool.coming) < MAX_OPEN_WINDOWS:
        insort(pool.coming, window)
    else:
        state.refused += 1


def _touch(state: EvaluatorState, pool: str, at_us: int, decision_id: str) -> None:
    touches = state.pools.setdefault(pool, Pool()).touches
    if len(touches) < MAX_TOUCHES:
        insort(touches, Touch(at_us, decision_id))
    else:
        state.refused += 1


def _end_now(state: EvaluatorState, tick_us: int) -> list[Output]:
    """End every current window at a tick, for decisions of that tick that are still to come."""
    outputs: list[Output] = []
    for name in sorted(state.pools):
        pool = state.pools[name]
        if pool.current is not None and not pool.coming:
            pool.coming = [Window(tick_us, "", 0, 0, pool.current.fleet)]
            outputs += _turn(state, name)
    return outputs


def _close(state: EvaluatorState, now_us: int, settling_us: int) -> list[Output]:
    """Turn every window whose end has been known for long enough into a reward, in time order."""
    outputs: list[Output] = []
    while True:
        due = [
            (pool.coming[0].start_us, name)
            for name, pool in state.pools.items()
            if pool.coming
            and _is_settled(state.ledger, pool.coming[0].start_us, now_us, settling_us)
        ]
        if not due:
            break
        _, name = min(due)
        outputs += _turn(state, name)
    state.ledger.advance(max(now_us - HORIZON_US, 0))
    return outputs


def _is_settled(ledger: Ledger, end_us: int, now_us: int, settling_us: int) -> bool:
    """Say whether what happened before `end_us` can be expected to be known."""
    heard = ledger.heard_us >= end_us + settling_us // 2
    return (end_us + settling_us <= now_us and heard) or end_us + HORIZON_US <= now_us


def _turn(state: EvaluatorState, name: str) -> list[Output]:
    """End a pool's current window where the next begins."""
    pool, ledger = state.pools[name], state.ledger
    ended, following = pool.current, pool.coming.pop(0)
    ledger.advance(following.start_us)
    flow = ledger.settle(name)
    # A decision that comes after its time has been settled begins where the ledger stands.
    following.delayed = following.start_us < ledger.now_us
    following.start_us = ledger.now_us
    pool.current = following
    touches = [touch for touch in pool.touches if touch.at_us < following.start_us]
    pool.touches = pool.touches[len(touches) :]
    if ended is None or not ended.decision_id:
        return []
    touched = {touch.decision_id for touch in touches if touch.at_us >= ended.start_us}
    return [_reward(name, ended, following, flow, len(touched - {ended.decision_id}))]


def _reward(pool: str, window: Window, following: Window, flow: Flow, overlap: int) -> Output:
    end_us = following.start_us
    cut_short = (
        end_us - window.start_us > GAP_US
        or end_us - flow.heard_us > GAP_US
        or window.delayed
        or following.delayed
        or flow.corrected
    )
    reward = Reward(
        fleet=window.fleet,
        pool=pool,
        decision_id=window.decision_id,
        start_us=window.start_us,
        end_us=end_us,
        components=flow.components,
        total_usd_micros=sum(flow.components.values()),
        overlap=overlap,
        censored=cut_short,
        definition=DEFINITION,
        **flow.quantities,
    )
    return Output(
        topic="rewards",
        key=pool,
        message=reward,
        event_id=derived_event_id("rewards", (window.decision_id, DEFINITION)),
        time_us=end_us,
    )
