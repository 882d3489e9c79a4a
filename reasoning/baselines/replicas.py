"""How many replicas a metric asks for: the arithmetic of the Horizontal Pod Autoscaler.

Source: Kubernetes documentation, "Horizontal Pod Autoscaling", Algorithm details. A replica is a
node here, and utilisation is a share of a node. The target of a metric that was measured for every
replica is `ceil(current * metric / target)`; what is not known is assumed against the direction of
the change, so a gap in the data damps a change and never makes one.
"""

from dataclasses import dataclass

import numpy as np

from gpuloop.schemas.policy import Flags, Floats

EDGE = 1e-9
"""Rounding of floats is no reason to scale; the edge of the tolerance belongs to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMetrics:
    """What is known of the replicas of n pools, each (n,); the three kinds sum to the current."""

    current: Floats
    """Replicas as last asked for."""
    measured: Floats
    """Ready replicas with a metric."""
    utilisation: Floats
    """Mean over the measured ones; 1 is a full node."""
    missing: Floats
    """Ready replicas without a metric."""
    unready: Floats
    """Replicas that were asked for and are not ready yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Relative deviation from the target that is let be, by direction."""

    up: float
    down: float

    def holds(self, ratio: Floats) -> Flags:
        """Return where the metric is as good as at its target, the edges included."""
        within: Flags = (ratio >= 1.0 - self.down - EDGE) & (ratio <= 1.0 + self.up + EDGE)
        return within


def desired_replicas(metrics: ReplicaMetrics, target: float, tolerance: Tolerance) -> Floats:
    """Return the replicas that the metric asks for, (n,); the current ones without any metric.

    On the way down a missing replica counts as full, on the way up missing and unready ones as
    idle. Where that turns the direction round, nothing changes.
    """
    measured = np.maximum(metrics.measured, 1.0)
    ratio = metrics.utilisation / target
    rising, falling = ratio > 1.0, ratio < 1.0
    waiting = np.where(rising, metrics.unready, 0.0)
    missing = np.where(rising | falling, metrics.missing, 0.0)
    assumed = np.where(falling, missing * max(1.0, target), 0.0)
    counted = measured + missing + waiting
    again = (metrics.utilisation * measured + assumed) / counted / target
    filled = np.ceil(again * counted - EDGE)
    turned = (rising & (again < 1.0)) | (falling & (again > 1.0))
    still = tolerance.holds(again) | turned | (metrics.measured < 1.0)
    return np.where(still, metrics.current, filled)


def average_replicas(
    total: Floats, target: Floats, current: Floats, tolerance: Tolerance
) -> Floats:
    """Return `ceil(total / target)`, the replicas of an AverageValue metric of the whole group.

    Within the tolerance of what the current ones are meant to carry, those.
    """
    ratio = total / np.maximum(target * current, EDGE)
    desired = np.ceil(total / target - EDGE)
    return np.where(tolerance.holds(ratio), current, desired)
