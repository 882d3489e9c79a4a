"""The rule of this repository as one controller among the others, with its forecast and without.

The algorithm is `reasoning.rule`; here it only loses what comparisons of capacity hold constant.
"""

import dataclasses

import numpy as np

from gpuloop.reasoning.baselines.controller import CapacityController
from gpuloop.reasoning.rule import RuleConfig, demand_gpus, wanted_nodes
from gpuloop.schemas.policy import Floats, PoolBatch


class Tracking(CapacityController):
    """The rule that follows demand and its forecast; nodes kept spare are the service knob."""

    def __init__(self, config: RuleConfig, mix: RuleConfig) -> None:
        """Take the rule's settings; the purchase mix is everyone's."""
        super().__init__(mix)
        self._config = config

    def wanted(self, batch: PoolBatch) -> Floats:
        """Return the total of nodes that the rule wants."""
        return wanted_nodes(batch, self._config)


class BlindTracking(Tracking):
    """The same without a forecast: neither grown for one nor kept for one."""

    def wanted(self, batch: PoolBatch) -> Floats:
        """Return the total of nodes that the rule wants where demand is expected to stay."""
        now = np.broadcast_to(demand_gpus(batch)[:, None, None], batch.forecast_gpus.shape)
        return super().wanted(dataclasses.replace(batch, forecast_gpus=now))
