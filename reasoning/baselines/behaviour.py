"""How fast replicas may follow what is desired: stabilisation windows and scaling policies.

Source: Kubernetes documentation, "Configurable scaling behavior", API autoscaling/v2. It owns what
the autoscaler remembers of its recommendations and changes; what is desired it is told.

The autoscaler looks every 15 s and our tick is a minute, so the syncs of a tick are played one
after another on what was seen at the tick: a policy whose period is shorter than a tick applies as
often as it would have. A change that envelope or executor cut counts for what was done of it.
"""

from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np

from gpuloop.reasoning.baselines.controller import Rows
from gpuloop.reasoning.baselines.replicas import EDGE, Tolerance
from gpuloop.reasoning.baselines.windows import NEVER_US, Ring
from gpuloop.schemas.policy import CONTROL_TICK_US, Flags, Floats, Integers
from gpuloop.schemas.units import MINUTE_US, SECOND_US

PERIOD_MAX_US: Final = 1800 * SECOND_US
WINDOW_MAX_US: Final = 3600 * SECOND_US


class ScalingPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that may change within a period."""

    kind: Literal["percent", "pods"]
    value: float
    period_us: int

    def __post_init__(self) -> None:
        """Refuse what the API refuses."""
        if not (self.value > 0 and 0 < self.period_us <= PERIOD_MAX_US):
            raise ValueError("a policy needs a value above 0 and a period of at most 30 minutes")


class ScalingRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One direction: what it waits for, how far it goes and how much it overlooks."""

    window_us: int
    """Of the recommendations within this time the most cautious one counts."""
    policies: tuple[ScalingPolicy, ...]
    select: Literal["max", "min", "disabled"] = "max"
    """The policy that counts, by how much it lets change."""
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what the API refuses."""
        if not (0 <= self.window_us <= WINDOW_MAX_US and self.tolerance >= 0 and self.policies):
            raise ValueError("rules need a window of at most an hour, a tolerance and a policy")


UP: Final = ScalingRules(
    window_us=0,
    policies=(
        ScalingPolicy(kind="percent", value=100.0, period_us=15 * SECOND_US),
        ScalingPolicy(kind="pods", value=4.0, period_us=15 * SECOND_US),
    ),
)
DOWN: Final = ScalingRules(
    window_us=5 * MINUTE_US,
    policies=(ScalingPolicy(kind="percent", value=100.0, period_us=15 * SECOND_US),),
)


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both directions, with the defaults of Kubernetes."""

    up: ScalingRules = UP
    down: ScalingRules = DOWN
    sync_us: int = 15 * SECOND_US

    def __post_init__(self) -> None:
        """Refuse a sync that does not divide the tick."""
        if self.sync_us <= 0 or CONTROL_TICK_US % self.sync_us:
            raise ValueError("the sync period must divide the control tick")

    @property
    def tolerance(self) -> Tolerance:
        """Return the tolerance of both directions."""
        return Tolerance(up=self.up.tolerance, down=self.down.tolerance)


@dataclass(slots=True)
class ScalingPast(Rows):
    """What an autoscaler remembers of n pools."""

    recommended: Ring
    """What was desired at each tick, before it was stabilised, and first of all what was there."""
    changed: Ring
    """What was changed at each sync, growth positive."""
    asked: Floats
    """(n, syncs) What was asked for at the last tick; whether it was done is seen at the next."""
    asked_us: Integers
    before: Floats
    """Replicas before that."""

    @classmethod
    def empty(cls, pools: int, behaviour: Behaviour) -> "ScalingPast":
        """Return no past, with room for the longest window and period."""
        up, down = behaviour.up, behaviour.down
        longest = max(policy.period_us for policy in (*up.policies, *down.policies))
        syncs = CONTROL_TICK_US // behaviour.sync_us
        return cls(
            Ring.of_ticks(pools, max(up.window_us, down.window_us) + CONTROL_TICK_US),
            Ring.empty(pools, -(-longest // behaviour.sync_us) + syncs),
            np.zeros((pools, syncs)),
            np.full(pools, NEVER_US, np.int64),
            np.zeros(pools),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked of n pools at a tick, each (n,)."""

    now_us: Integers
    current: Floats
    desired: Floats
    known: Flags
    """Where there was a metric; elsewhere nothing changes and nothing is remembered."""
    least: Floats
    """At least one: none at all is no number to scale to."""
    most: Floats


def follow(past: ScalingPast, asked: Asked, behaviour: Behaviour) -> Floats:
    """Return the replicas after this tick, (n,).

    Replicas outside of their bounds are brought to them at once, whatever the metric says; none at
    all means that a person has switched the autoscaler off, and stays.
    """
    _settle(past, asked.current, behaviour)
    new = past.asked_us == NEVER_US
    past.recommended.push(asked.now_us, asked.current, new)
    outside = (asked.current > asked.most) | (asked.current < asked.least)
    acts = asked.known & ~outside
    target = _stabilised(past, asked, behaviour, acts)
    after = np.where(acts, _paced(past, asked, target, behaviour), asked.current)
    bounded = np.clip(asked.current, asked.least, np.maximum(asked.least, asked.most))
    after = np.where(outside & (asked.current > 0.0), bounded, after)
    past.before[:] = asked.current
    past.asked_us[:] = asked.now_us
    past.asked[~acts] = 0.0
    past.asked[~acts, 0] = (after - asked.current)[~acts]
    return after


def _settle(past: ScalingPast, current: Floats, behaviour: Behaviour) -> None:
    """Remember what was done of the last tick's changes, the earlier first."""
    size = np.abs(past.asked)
    direction = np.sign(past.asked.sum(axis=1))
    done = np.clip((current - past.before) * direction, 0.0, size.sum(axis=1))
    earlier = np.cumsum(size, axis=1) - size
    kept = np.clip(done[:, None] - earlier, 0.0, size) * direction[:, None]
    for sync in range(size.shape[1]):
        at = past.asked_us + sync * behaviour.sync_us
        past.changed.push(at, kept[:, sync], kept[:, sync] != 0.0)


def _stabilised(past: ScalingPast, asked: Asked, behaviour: Behaviour, acts: Flags) -> Floats:
    """Return what is desired, no higher and no lower than the window of each direction allows."""
    ring, now, desired = past.recommended, asked.now_us, asked.desired
    most = ring.smallest(now, behaviour.up.window_us, desired)
    least = ring.largest(now, behaviour.down.window_us, desired)
    ring.push(now, desired, acts)
    return np.minimum(np.maximum(asked.current, most), least)


def _paced(past: ScalingPast, asked: Asked, target: Floats, behaviour: Behaviour) -> Floats:
    """Return replicas after the syncs of this tick, each within the policies."""
    total = asked.current.copy()
    past.asked[:] = 0.0
    for sync in range(past.asked.shape[1]):
        top = np.maximum(_limit(past, asked, total, behaviour, sync=sync, up=True), total)
        bottom = np.minimum(_limit(past, asked, total, behaviour, sync=sync, up=False), total)
        grown = np.minimum(target, np.minimum(asked.most, top))
        shrunk = np.maximum(target, np.maximum(asked.least, bottom))
        after = np.where(target > total, grown, np.where(target < total, shrunk, total))
        past.asked[:, sync] = after - total
        total = after
    return total


def _limit(
    past: ScalingPast,
    asked: Asked,
    total: Floats,
    behaviour: Behaviour,
    *,
    sync: int,
    up: bool,
) -> Floats:
    """Return how far one direction may go at a sync, by its policies and by what was changed.

    A percentage is of the replicas at the start of its period, and rounds in favour of change.
    """
    rules = behaviour.up if up else behaviour.down
    if rules.select == "disabled":
        return total
    limits = []
    for policy in rules.policies:
        now = asked.now_us + sync * behaviour.sync_us
        earlier = slice(max(0, sync - (policy.period_us - 1) // behaviour.sync_us), sync)
        changed = past.changed.total(now, policy.period_us) + past.asked[:, earlier].sum(axis=1)
        start, sign = total - changed, 1.0 if up else -1.0
        if policy.kind == "pods":
            limits.append(start + sign * policy.value)
        else:
            scaled = start * (1.0 + sign * policy.value / 100.0)
            limits.append(np.ceil(scaled - EDGE) if up else np.floor(scaled + EDGE))
    farthest = (rules.select == "max") == up
    limit: Floats = np.maximum.reduce(limits) if farthest else np.minimum.reduce(limits)
    return limit
