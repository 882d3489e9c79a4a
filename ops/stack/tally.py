"""What has happened in a run, counted from its messages. Pure: no clock, no broker.

The live view and the report show the same tally, so neither can say what the topics do not.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from gpuloop.schemas.messages import (
    Cause,
    Command,
    Control,
    Decision,
    Message,
    Outcome,
    PolicyVersion,
    PoolState,
    Proposal,
    Reward,
)
from gpuloop.schemas.messages.control import Freeze, Kill
from gpuloop.schemas.policy import CONTROL_TICK_US

SHOWN: Final = 12
TOPICS: Final = (
    "state.pools",
    "decisions",
    "proposals",
    "actions.scaling",
    "actions.pricing",
    "actions.migration",
    "actions.remediation",
    "actions.sharing",
    "actions.outcomes",
    "rewards",
    "insight.causes",
    "policies",
    "controls",
)
FROM_THE_BEGINNING: Final = ("controls",)
"""What was said before the run holds in it."""

FRESH_US: Final = 3 * CONTROL_TICK_US
"""How far a state may lie behind the newest decision and still be called fresh."""

MAX_ACTED: Final = 10_000
"""Changes of who acts that are kept for each pool; nobody changes policies so often."""

_REFUSED: Final = frozenset({"rejected", "expired", "failed"})


class Happening(NamedTuple):
    """A message and when it was written, in wall milliseconds."""

    message: Message
    timestamp_ms: int


def _recent() -> deque[Happening]:
    return deque(maxlen=SHOWN)


class Acted(msgspec.Struct, frozen=True, kw_only=True):
    """Which policy acted on a pool from a tick on, and at which alpha."""

    from_us: int
    policy_id: str
    alpha: float


@dataclass(slots=True)
class Tally:
    """Counts since the start of the run, and the newest of what a person wants to see."""

    decisions: int = 0
    held_not_fresh: int = 0
    """Decisions that wished for a change and held because what they saw was not fresh."""
    commands: int = 0
    proposals: int = 0
    applied: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    rewards_usd_micros: Counter[str] = field(default_factory=Counter)
    reward_total_usd_micros: int = 0
    energy_milliwatt_hours: int = 0
    carbon_milligrams: int = 0
    rewarded_from_us: int | None = None
    rewarded_until_us: int = 0
    causes: int = 0
    policies: set[str] = field(default_factory=set)
    alpha: dict[str, float] = field(default_factory=dict)
    acted: dict[str, list[Acted]] = field(default_factory=dict)
    """Who acted on each pool, a change at a time."""
    first_decision_ms: int | None = None
    pools: dict[str, PoolState] = field(default_factory=dict)
    latest: dict[str, Decision] = field(default_factory=dict)
    fleet_us: int = 0
    """The newest tick that was heard of."""
    fresh_wall_us: int = 0
    """When a state arrived that was not behind the decisions."""
    killed_by: str = ""
    """Who engaged the kill switch; empty while nobody has."""
    frozen: dict[str, int] = field(default_factory=dict)
    """Targets that people hold as they are, and until which fleet time."""
    happened: deque[Happening] = field(default_factory=_recent)
    """The newest commands, outcomes, causes and policies, oldest first."""
    happenings: int = 0
    """How many there have been in all."""

    def take(self, message: Message, timestamp_ms: int) -> None:
        """Count one message."""
        match message:
            case PoolState():
                self._state(message, timestamp_ms)
            case Decision():
                self._decision(message, timestamp_ms)
            case Proposal():
                self.proposals += 1
            case Command():
                self.commands += 1
                self._happen(message, timestamp_ms)
            case Outcome():
                self._outcome(message, timestamp_ms)
            case Reward():
                self._reward(message)
            case Cause():
                self.causes += 1
                self._happen(message, timestamp_ms)
            case PolicyVersion():
                self.policies.add(message.policy_id)
                self._happen(message, timestamp_ms)
            case Control(body=Kill(engaged=engaged)):
                self.killed_by = message.by if engaged else ""
            case Control(body=Freeze(target=target, until_us=until_us)):
                self.frozen[target] = until_us

    def _state(self, state: PoolState, timestamp_ms: int) -> None:
        self.pools[state.pool] = state
        if state.tick_us >= self.fleet_us - FRESH_US:
            self.fresh_wall_us = max(self.fresh_wall_us, timestamp_ms * 1000)
        self.fleet_us = max(self.fleet_us, state.tick_us)

    def _decision(self, decision: Decision, timestamp_ms: int) -> None:
        self.decisions += 1
        self.fleet_us = max(self.fleet_us, decision.tick_us)
        if decision.level == "cluster":  # What a fault calls for at once is the rule's alone.
            self.latest[decision.pool] = decision
            self.alpha[decision.pool] = decision.alpha
            self._note(decision)
        if any(adjustment.stage == "freshness" for adjustment in decision.adjustments):
            self.held_not_fresh += 1
        if self.first_decision_ms is None:
            self.first_decision_ms = timestamp_ms

    def _note(self, decision: Decision) -> None:
        acted = self.acted.setdefault(decision.pool, [])
        who = (decision.policy_id, decision.alpha)
        if (not acted or (acted[-1].policy_id, acted[-1].alpha) != who) and len(acted) < MAX_ACTED:
            acted.append(
                Acted(from_us=decision.tick_us, policy_id=decision.policy_id, alpha=decision.alpha)
            )

    def _reward(self, reward: Reward) -> None:
        self.rewards_usd_micros.update(reward.components)
        self.reward_total_usd_micros += reward.total_usd_micros
        self.energy_milliwatt_hours += reward.energy_milliwatt_hours
        self.carbon_milligrams += reward.carbon_milligrams
        earliest = self.rewarded_from_us
        self.rewarded_from_us = (
            reward.start_us if earliest is None else min(earliest, reward.start_us)
        )
        self.rewarded_until_us = max(self.rewarded_until_us, reward.end_us)

    def _outcome(self, outcome: Outcome, timestamp_ms: int) -> None:
        if outcome.status == "applied":
            self.applied += 1
        elif outcome.status in _REFUSED:
            self.refused[outcome.reason] += 1
        else:
            return
        self._happen(outcome, timestamp_ms)

    def _happen(self, message: Message, timestamp_ms: int) -> None:
        self.happened.append(Happening(message, timestamp_ms))
        self.happenings += 1
