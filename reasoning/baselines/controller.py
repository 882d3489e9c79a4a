"""What a controller is, and the layer that all of them share below the total of nodes.

It owns the way from a total to an action, and how a controller's past is kept and forgotten. It
knows no algorithm.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np

from gpuloop.reasoning.rule import RuleConfig, demand_gpus, split
from gpuloop.schemas.policy import MIGRATION, ON_DEMAND, PRICE, SPOT, Flags, Floats, PoolBatch


class Controller(Protocol):
    """A policy of n pools side by side, called once per control tick and in the order of ticks."""

    def reset(self, rows: Flags) -> None:
        """Forget the past of the flagged pools; the number of flags is that of pools from now on.

        A number other than before forgets everything. To be called before the first tick.
        """

    def __call__(self, batch: PoolBatch) -> Floats:
        """Return the wish, (n, 4) in the units of `DIMENSIONS`; ValueError for other rows."""


class CapacityController(ABC):
    """A controller that decides the total of nodes; it remembers nothing unless it says so."""

    def __init__(self, mix: RuleConfig) -> None:
        """Share the purchase mix `mix` with the controllers that this one is compared with."""
        self._mix = mix

    @abstractmethod
    def wanted(self, batch: PoolBatch) -> Floats:
        """Return the total of nodes per pool, (n,), before the pool's bounds."""

    def __call__(self, batch: PoolBatch) -> Floats:
        """Return the wish, (n, 4): the total within the bounds, bought as everyone buys."""
        return capacity_action(batch, self.wanted(batch), self._mix)

    def reset(self, rows: Flags) -> None:  # noqa: B027 - most have no past.
        """Forget nothing: there is nothing to forget."""


def capacity_action(batch: PoolBatch, total: Floats, mix: RuleConfig) -> Floats:
    """Return the action (n, 4) for a total of nodes: the rule's split, the present price.

    A total that is not finite is the present one. The last node stays: the envelope refuses an
    empty plan and puts the rule's in its place, which would credit a controller with the rule.
    """
    present = present_nodes(batch)
    least = np.maximum(batch.nodes_min, np.minimum(present, 1.0))
    bounded = np.clip(np.where(np.isfinite(total), total, present), least, batch.nodes_max)
    nodes = [ON_DEMAND, SPOT]
    low, high = batch.low[:, nodes], batch.high[:, nodes]
    action = np.empty_like(batch.present)
    action[:, nodes] = np.clip(split(batch, bounded, mix), low, np.maximum(low, high))
    action[:, MIGRATION] = np.where(batch.jobs_at_risk > 0, 1.0, 0.0)
    action[:, PRICE] = batch.present[:, PRICE]
    return action


def present_nodes(batch: PoolBatch) -> Floats:
    """Return the total of nodes that were last asked for."""
    total: Floats = batch.present[:, ON_DEMAND] + batch.present[:, SPOT]
    return total


def demand_known(batch: PoolBatch) -> Flags:
    """Return where demand and capacity are fresh; elsewhere there is no metric to act on."""
    known: Flags = batch.demand_fresh & batch.capacity_fresh & np.isfinite(demand_gpus(batch))
    return known


def whole_nodes(gpus: Floats, batch: PoolBatch) -> Floats:
    """Return the nodes that so many GPUs fill when they are packed as closely as they can be."""
    nodes: Floats = np.ceil(gpus / np.maximum(batch.gpus_per_node, 1.0) - 1e-9)
    return nodes


class Rows:
    """A dataclass of arrays, or of such dataclasses, whose first axis is the pool."""

    def forget(self, rows: Flags, blank: "Rows") -> None:
        """Set the flagged rows to those of `blank`, which has the same shape."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            mine, fresh = getattr(self, field.name), getattr(blank, field.name)
            if isinstance(mine, Rows):
                mine.forget(rows, fresh)
            else:
                mine[rows] = fresh[rows]


Past = TypeVar("Past", bound=Rows)


class Remembering(CapacityController, Generic[Past]):
    """A controller with a past: a `Rows` that `blank` makes for a number of pools."""

    def __init__(self, mix: RuleConfig, blank: Callable[[int], Past]) -> None:
        """Start without pools."""
        super().__init__(mix)
        self._blank = blank
        self._pools = 0
        self._past = blank(0)

    def reset(self, rows: Flags) -> None:
        """Forget the past of the flagged pools, or of all where their number changes."""
        blank = self._blank(len(rows))
        if len(rows) == self._pools:
            self._past.forget(rows, blank)
        else:
            self._pools, self._past = len(rows), blank

    def past_of(self, batch: PoolBatch) -> Past:
        """Return the past of the batch's pools; ValueError where it was kept for others."""
        if len(batch.pools) != self._pools:
            raise ValueError(f"a batch of {len(batch.pools)} pools, but reset for {self._pools}")
        return self._past
