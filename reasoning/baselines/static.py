"""A pool that keeps the same size: what every other controller must be worth more than."""

import msgspec
import numpy as np

from gpuloop.reasoning.baselines.controller import CapacityController
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.policy import Floats, PoolBatch


class StaticConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One size; the share is the service knob."""

    share: float = 1.0
    """Nodes as a share of the pool's ceiling."""

    def __post_init__(self) -> None:
        """Refuse more than everything."""
        if not 0.0 <= self.share <= 1.0:
            raise ValueError("a share lies within 0 and 1")


class Static(CapacityController):
    """Hold a share of the ceiling."""

    def __init__(self, config: StaticConfig, mix: RuleConfig) -> None:
        """Take the share."""
        super().__init__(mix)
        self._config = config

    def wanted(self, batch: PoolBatch) -> Floats:
        """Return the total of nodes, rounded up."""
        nodes: Floats = np.ceil(self._config.share * batch.nodes_max - 1e-9)
        return nodes
