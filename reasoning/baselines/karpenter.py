"""Karpenter's way: provision for what is pending at once, consolidate what has been spare a while.

Source: Karpenter documentation, "Scheduling" and "Disruption" (consolidation, budgets). It places
pods on nodes in a simulation; a batch of pools has counts only, so what it would find is bounded by
counts: nodes are packed as closely as they can be, and a queue that does not start although it
would fit gets nodes of its own. A node counts as empty only where there are fewer jobs than nodes.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from gpuloop.reasoning.baselines.controller import (
    Remembering,
    Rows,
    demand_known,
    present_nodes,
    whole_nodes,
)
from gpuloop.reasoning.baselines.windows import Ring
from gpuloop.reasoning.rule import RuleConfig, demand_gpus
from gpuloop.schemas.policy import CONTROL_TICK_US, Flags, Floats, Integers, PoolBatch
from gpuloop.schemas.units import HOUR_US


class KarpenterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node pool; how long a node is left spare is its service knob."""

    consolidate_after_us: int = 0
    """How long a node must have been spare before it may go; Karpenter's default is not at all."""
    policy: Literal["when_empty", "when_empty_or_underutilized"] = "when_empty_or_underutilized"
    budget_share: float = 0.1
    """Nodes that may be on their way out at once, as a share of those that are there."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning, and a window that would take unbounded room."""
        if not 0 <= self.consolidate_after_us <= 24 * HOUR_US or not 0 <= self.budget_share <= 1:
            raise ValueError("consolidation waits for at most a day, a budget is a share")


@dataclass(slots=True)
class KarpenterPast(Rows):
    """What has been spare of n pools, lately."""

    empty: Ring
    spare: Ring
    ready: Floats
    """Nodes at the last tick."""
    since_us: Integers
    """Since when this is known without a gap."""

    @classmethod
    def none(cls, pools: int, window_us: int) -> "KarpenterPast":
        """Return no past: nothing has been spare for any time."""
        never = np.full(pools, np.iinfo(np.int64).max, np.int64)
        rings = Ring.of_ticks(pools, window_us), Ring.of_ticks(pools, window_us)
        return cls(*rings, np.zeros(pools), never)


class Karpenter(Remembering[KarpenterPast]):
    """Provisioning without delay and consolidation within a budget."""

    def __init__(self, config: KarpenterConfig, mix: RuleConfig) -> None:
        """Start without pools."""
        super().__init__(mix, lambda pools: KarpenterPast.none(pools, config.consolidate_after_us))
        self._config = config

    def wanted(self, batch: PoolBatch) -> Floats:
        """Return the total of nodes; the present one where demand is not known."""
        present, known = present_nodes(batch), demand_known(batch)
        past, config = self.past_of(batch), self._config
        gone = self._consolidated(past, batch, known & batch.telemetry_fresh)
        pending = provisioned(batch)
        after = np.where(pending > 0.0, present + pending, present - gone)
        ready = batch.ready_nodes.sum(axis=1)
        leaving = np.maximum(ready - present, 0.0)
        allowed = disruptions_allowed(ready, leaving, config.budget_share)
        after = np.maximum(after, present - allowed)
        return np.where(known, after, present)

    def _consolidated(self, past: KarpenterPast, batch: PoolBatch, seen: Flags) -> Floats:
        """Return nodes that have been spare, or empty, for the whole of `consolidate_after`.

        Nodes that left were among the spare ones, so they are taken out of what was spare before.
        """
        now, window = batch.tick_us, self._config.consolidate_after_us
        ready = np.minimum(batch.ready_nodes.sum(axis=1), present_nodes(batch))
        left = np.maximum(past.ready - ready, 0.0)[:, None]
        past.empty.values -= left
        past.spare.values -= left
        past.ready[:] = ready
        empty, spare = spare_nodes(batch)
        past.since_us[:] = np.where(seen, np.minimum(past.since_us, now), now + CONTROL_TICK_US)
        lasting = past.empty if self._config.policy == "when_empty" else past.spare
        # What was spare at the very start of the window counts as well.
        free = empty if self._config.policy == "when_empty" else spare
        long = np.where(seen & (now - past.since_us >= window), 1.0, 0.0)
        gone = np.maximum(lasting.smallest(now, window + 1, free), 0.0) * long
        past.empty.push(now, empty, seen)
        past.spare.push(now, spare, seen)
        return gone


def provisioned(batch: PoolBatch) -> Floats:
    """Return nodes to be added for pending GPUs, (n,), those already ordered taken into account.

    What waits for more than a tick, with nothing arriving, did not fit where it seems to fit.
    """
    present = present_nodes(batch)
    lacking = whole_nodes(np.nan_to_num(demand_gpus(batch)), batch) - present
    unplaced = (batch.oldest_wait_us > CONTROL_TICK_US) & (batch.nodes_arriving < 1.0)
    own = np.where(unplaced, whole_nodes(np.nan_to_num(batch.gpus_queued), batch), 0.0)
    nodes: Floats = np.maximum(np.maximum(lacking, own), 0.0)
    return nodes


def spare_nodes(batch: PoolBatch) -> tuple[Floats, Floats]:
    """Return nodes that are surely empty and nodes whose work would fit elsewhere, each (n,).

    Only ready nodes are, and none while anything is pending: what is taken must leave room for
    that too. A job keeps one node from being empty, so what is surely empty is what jobs, each on a
    node of its own, would leave.
    """
    ready = np.minimum(batch.ready_nodes.sum(axis=1), present_nodes(batch))
    spare = np.maximum(ready - whole_nodes(np.nan_to_num(batch.gpus_allocated), batch), 0.0)
    spare = np.where(batch.gpus_queued > 0.0, 0.0, spare)
    empty = np.minimum(spare, np.maximum(ready - batch.running_jobs, 0.0))
    return empty, spare


def disruptions_allowed(nodes: Floats, leaving: Floats, share: float) -> Floats:
    """Return nodes that may be taken now: the budget, rounded up, less those on their way out."""
    allowed: Floats = np.maximum(np.ceil(nodes * share - 1e-9) - leaving, 0.0)
    return allowed
