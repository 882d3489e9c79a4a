"""What has happened in a run, counted from its messages. Pure: no clock, no broker.

The live view and the report show the same tally, so neither can say what the topics do not.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from gpuloop.schemas.messages import (
    Cause,
    Command,
    Decision,
    Message,
    Outcome,
    PolicyVersion,
    PoolState,
    Proposal,
    Reward,
)

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
)
_REFUSED: Final = frozenset({"rejected", "expired", "failed"})


def _recent() -> deque[Message]:
    return deque(maxlen=SHOWN)


@dataclass(slots=True)
class Tally:
    """Counts since the start of the run, and the newest of what a person wants to see."""

    decisions: int = 0
    commands: int = 0
    proposals: int = 0
    applied: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    rewards_usd_micros: Counter[str] = field(default_factory=Counter)
    reward_total_usd_micros: int = 0
    rewarded_from_us: int | None = None
    rewarded_until_us: int = 0
    causes: int = 0
    policies: set[str] = field(default_factory=set)
    alpha: dict[str, float] = field(default_factory=dict)
    first_decision_ms: int | None = None
    pools: dict[str, PoolState] = field(default_factory=dict)
    latest: dict[str, Decision] = field(default_factory=dict)
    happened: deque[Message] = field(default_factory=_recent)
    """The newest commands, outcomes, causes and policies, oldest first."""
    happenings: int = 0
    """How many there have been in all."""

    def take(self, message: Message, timestamp_ms: int) -> None:
        """Count one message."""
        match message:
            case PoolState():
                self.pools[message.pool] = message
            case Decision():
                self.decisions += 1
                self.latest[message.pool] = message
                self.alpha[message.pool] = message.alpha
                if self.first_decision_ms is None:
                    self.first_decision_ms = timestamp_ms
            case Proposal():
                self.proposals += 1
            case Command():
                self.commands += 1
                self._happen(message)
            case Outcome():
                self._outcome(message)
            case Reward():
                self._reward(message)
            case Cause():
                self.causes += 1
                self._happen(message)
            case PolicyVersion():
                self.policies.add(message.policy_id)
                self._happen(message)

    def _reward(self, reward: Reward) -> None:
        self.rewards_usd_micros.update(reward.components)
        self.reward_total_usd_micros += reward.total_usd_micros
        earliest = self.rewarded_from_us
        self.rewarded_from_us = (
            reward.start_us if earliest is None else min(earliest, reward.start_us)
        )
        self.rewarded_until_us = max(self.rewarded_until_us, reward.end_us)

    def _outcome(self, outcome: Outcome) -> None:
        if outcome.status == "applied":
            self.applied += 1
        elif outcome.status in _REFUSED:
            self.refused[outcome.reason] += 1
        else:
            return
        self._happen(outcome)

    def _happen(self, message: Message) -> None:
        self.happened.append(message)
        self.happenings += 1
