"""Decisions and rewards, joined into transitions.

A transition goes from a decision to the next one of the same pool, one control tick later; its
reward is the ledger's flow in between. Anything else between the two (a missing tick, a new
feature version, a censored window) is a gap: the transition is not made, and nothing is
bootstrapped across it.

Both topics have the same keys and so the same partitions; each partition is joined on its own. A
join asks its reader to leave the topic that is ahead alone for a while, and gives up only what
cannot find a counterpart any more. So the same records make the same transitions however the two
topics interleave, in live reading and in a rebuild, and memory stays bounded.
"""

from collections import OrderedDict
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.messages import Decision, Reward
from gpuloop.schemas.policy import (
    CONTROL_TICK_US,
    DIMENSIONS,
    FEATURE_NAMES,
    FEATURE_VERSION,
    ON_DEMAND,
    SPOT,
)
from gpuloop.schemas.units import HOUR_US, USD_MICROS

REWARD_SCALE_USD: Final = 10.0
"""Dollars per unit of reward, frozen: about a pool's flow in one control tick."""

CUT_PENALTY: Final = 0.02
"""Units of reward per unit of squared distance between what was wished and what was let through.

It belongs to the learner and is never booked: without it an actor drifts to the corners of the box,
where the envelope makes all actions alike and the critic has nothing to tell them apart by."""

MAX_PENDING: Final = 4096
"""Decisions, or rewards, of a partition that wait until the other topic must catch up: days of a
pool, hours of twenty."""

OUT_OF_ORDER_US: Final = HOUR_US
"""Fleet time by which pools may be out of step within a topic: twice what the evaluator waits."""

Array = NDArray[Any]

Topic = Literal["decisions", "rewards"]

MOST: Final = 1e9
"""The largest number in a transition: far beyond any ratio, count or price, far below float32's."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of the control problem: float32 vectors, and the reward in units of its scale."""

    observation: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: float
    next_observation: NDArray[np.float32]


Made = tuple[tuple[int, str], Transition]
"""A transition under its tick and pool, which order experience whatever order it arrived in."""


def reward_of(total_usd_micros: int, cut: NDArray[np.float32]) -> float:
    """Return a transition's reward: scaled dollars less a penalty on what the envelope cut."""
    usd = total_usd_micros / USD_MICROS
    return usd / REWARD_SCALE_USD - CUT_PENALTY * float(np.square(cut).mean())


def cut_of(decision: Decision) -> NDArray[np.float32]:
    """Return how far, in delta limits, the envelope moved each dimension of the wish."""
    rule, joint, executed, limit = (
        np.asarray(vector, np.float32)
        for vector in (
            decision.rule_action,
            decision.joint_action,
            decision.executed_action,
            decision.delta_limit,
        )
    )
    return cut_between(rule + joint * limit, executed, limit).astype(np.float32)


def cut_between(wish: Array, executed: Array, limit: Array) -> Array:
    """Return how far, in delta limits, the envelope moved a wish, (..., 4), within [-1, 1].

    Nodes are told by their total: how they are bought is no policy's wish.
    """
    nodes = [ON_DEMAND, SPOT]
    moved = wish - executed
    moved[..., nodes] = moved[..., nodes].sum(axis=-1, keepdims=True)
    most = limit.copy()
    most[..., nodes] = most[..., nodes].sum(axis=-1, keepdims=True)
    cut = np.where(limit > 0, moved / np.where(limit > 0, most, 1.0), 0.0)
    bounded: Array = np.clip(np.nan_to_num(cut), -1.0, 1.0)
    return bounded


K = TypeVar("K")
V = TypeVar("V")


@dataclass
class ExperienceJoin:
    """Match decisions with rewards in whatever order they arrive.

    Memory is bounded for a reader that stops reading what is `ahead`. `decided_us` and `earned_us`
    are where the two topics have come to.
    """

    decisions: OrderedDict[tuple[str, int], Decision] = field(default_factory=OrderedDict)
    rewards: OrderedDict[str, Reward] = field(default_factory=OrderedDict)
    skipped: int = 0
    decided_us: int = 0
    earned_us: int = 0

    @property
    def ahead(self) -> Topic | None:
        """Say which topic to read no further for now, because too much of it waits."""
        if len(self.decisions) >= MAX_PENDING:
            return "decisions"
        return "rewards" if len(self.rewards) >= MAX_PENDING else None

    def decision(self, decision: Decision) -> list[Made]:
        """Take in a decision and return the transitions that it completes.

        Raises:
            BadInput: its vectors do not fit each other, or hold what float32 cannot.
        """
        if decision.level != "cluster" or decision.feature_version != FEATURE_VERSION:
            return []
        if len(decision.observation) != len(FEATURE_NAMES):
            self.skipped += 1
            return []
        _refuse_misshapen(decision)
        self.decisions[decision.pool, decision.tick_us] = decision
        self.decided_us = decision.tick_us
        previous = self.decisions.get((decision.pool, decision.tick_us - CONTROL_TICK_US))
        made = [t for first in (previous, decision) if first for t in self._join(first)]
        self._make_room()
        return made

    def reward(self, reward: Reward) -> list[Made]:
        """Take in a reward and return the transitions that it completes."""
        self.rewards[reward.decision_id] = reward
        self.earned_us = reward.start_us
        first = self.decisions.get((reward.pool, reward.start_us))
        made = self._join(first) if first else []
        self._make_room()
        return made

    def _join(self, first: Decision) -> list[Made]:
        reward = self.rewards.get(first.decision_id)
        following = self.decisions.get((first.pool, first.tick_us + CONTROL_TICK_US))
        if reward is None or following is None:
            return []
        del self.rewards[first.decision_id]
        del self.decisions[first.pool, first.tick_us]
        if reward.censored or reward.end_us - reward.start_us != CONTROL_TICK_US:
            self.skipped += 1
            return []
        made = Transition(
            observation=np.asarray(first.observation, np.float32),
            action=np.asarray(first.joint_action, np.float32),
            reward=reward_of(reward.total_usd_micros, cut_of(first)),
            next_observation=np.asarray(following.observation, np.float32),
        )
        return [((first.tick_us, first.pool), made)]

    def _make_room(self) -> None:
        """Where too much waits, give up what both topics have passed: it has no counterpart.

        Should both be full of what neither has passed, the oldest of each goes, or neither would
        ever be read on; only then does it matter how the topics interleaved.
        """
        passed_us = min(self.decided_us, self.earned_us) - OUT_OF_ORDER_US
        if len(self.decisions) >= MAX_PENDING:
            old = [key for key, one in self.decisions.items() if one.tick_us < passed_us]
            self._give_up(self.decisions, old)
        if len(self.rewards) >= MAX_PENDING:
            lone = [key for key, one in self.rewards.items() if one.start_us < passed_us]
            self._give_up(self.rewards, lone)
        while len(self.decisions) >= MAX_PENDING <= len(self.rewards):
            self._give_up(self.decisions, [next(iter(self.decisions))])
            self._give_up(self.rewards, [next(iter(self.rewards))])

    def _give_up(self, waiting: MutableMapping[K, V], keys: Iterable[K]) -> None:
        for key in keys:
            del waiting[key]
            self.skipped += 1


def _refuse_misshapen(decision: Decision) -> None:
    """Refuse here what would end the learner once it is joined, and again at every start."""
    vectors = (
        decision.rule_action,
        decision.joint_action,
        decision.executed_action,
        decision.delta_limit,
    )
    if any(len(vector) != len(DIMENSIONS) for vector in vectors):
        raise BadInput("inconsistent", f"an action has {len(DIMENSIONS)} dimensions")
    if any(abs(number) > MOST for vector in (decision.observation, *vectors) for number in vector):
        raise BadInput("out_of_range", f"experience holds numbers up to {MOST:g}")


ACTION_SIZE: Final = len(DIMENSIONS)
OBSERVATION_SIZE: Final = len(FEATURE_NAMES)
