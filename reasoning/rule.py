"""The rule policy: a target tracker with forecast feed-forward and hysteresis, in closed form.

It is the baseline that learned policies are offsets on, so it must stand alone. It sees a batch and
remembers nothing: hysteresis comes from the demand peak in the batch, price epochs from its flag.
"""

import msgspec
import numpy as np

from gpuloop.schemas.policy import MIGRATION, ON_DEMAND, PRICE, SPOT, Floats, PoolBatch
from gpuloop.schemas.units import MINUTE_US


class RuleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the rule tracks its target. Ratios unless the name says otherwise.

    How a pool grows was tuned in the twin on Philly, 9 to 15 October 2017, and generated weeks
    beside it (`make bench-control ARGS=--tune`); `benchmarks/rule.py` prints what a rule earns
    beside a fleet left alone. Cold starts take three minutes and waiting is free for five, so
    capacity that is always held ahead of demand does not pay.
    """

    forecast_weight: float = 1.25
    """How far towards the 15-minute median forecast the pool grows ahead of its demand."""
    spare_nodes: float = 0.0
    """Nodes kept free beyond the target, so that the next small job starts at once.

    Below zero: nodes that the pool stays short of it, so that as much work as fits them may wait
    until something else ends. What runs keeps its nodes: a pool is at most as short as its queue is
    long."""
    spot_share: float = 0.7
    """Share of a mixed pool that may be spot while spot pays."""
    interruption_cost_node_hours: float = 1.0
    """What one reclaim costs, in node-hours of lost work and restarts."""
    stuck_us: int = MINUTE_US
    """A queue that waits for longer, with nothing arriving, gets nodes of its own.

    It would fit by count; it does not because free GPUs are scattered over nodes."""
    scarcity: float = 1.0
    """Relative price over the reference per unit of load over the usual."""
    usual_load: float = 0.4
    """Demand over everything that could be rented at which the reference price holds."""
    price_step: float = 0.05
    """Largest relative price change per epoch."""
    price_tolerance: float = 0.01
    """Relative price change that is not worth a new quote."""


def rule_action(batch: PoolBatch, config: RuleConfig) -> Floats:
    """Return the rule's wish, (n, 4) in the units of `DIMENSIONS`; it lies within the bounds."""
    action = np.empty_like(batch.present)
    action[:, [ON_DEMAND, SPOT]] = split(batch, wanted_nodes(batch, config), config)
    action[:, MIGRATION] = np.where(batch.jobs_at_risk > 0, 1.0, 0.0)
    action[:, PRICE] = wanted_price(batch, config)
    bounded: Floats = np.clip(action, batch.low, np.maximum(batch.low, batch.high))
    return bounded


def demand_gpus(batch: PoolBatch) -> Floats:
    """Return GPUs at work or waited for."""
    return batch.gpus_allocated + batch.gpus_queued


def grow_target(batch: PoolBatch, config: RuleConfig) -> Floats:
    """Return nodes for the demand of now or, where it is higher, the one forecast in 15 minutes."""
    now = demand_gpus(batch)
    ahead = now + config.forecast_weight * np.maximum(batch.forecast_gpus[:, 0, 1] - now, 0.0)
    left = np.minimum(_short_nodes(config) * batch.gpus_per_node, batch.gpus_queued)
    stuck = (batch.oldest_wait_us > config.stuck_us) & (batch.nodes_arriving < 1.0)
    present = batch.present[:, ON_DEMAND] + batch.present[:, SPOT]
    own = np.ceil((batch.gpus_queued - left) / np.maximum(batch.gpus_per_node, 1.0))
    return np.maximum(_nodes(batch, ahead - left, config), np.where(stuck, present + own, 0.0))


def release_target(batch: PoolBatch, config: RuleConfig) -> Floats:
    """Return nodes for the most that was demanded within the window or is likely in an hour.

    Capacity above this has been idle for the whole window and is not expected back.
    """
    soon = np.where(batch.forecast_trusted, batch.forecast_gpus[:, 2, 1], 0.0)
    peak = np.maximum(batch.gpus_demanded_peak, demand_gpus(batch))
    return _nodes(batch, np.maximum(peak, soon), config) - _short_nodes(config)


def wanted_nodes(batch: PoolBatch, config: RuleConfig) -> Floats:
    """Return the total of nodes: the present one, moved into [grow target, release target]."""
    present = batch.present[:, ON_DEMAND] + batch.present[:, SPOT]
    grow = grow_target(batch, config)
    release = np.maximum(release_target(batch, config), grow)
    wanted: Floats = np.clip(np.clip(present, grow, release), batch.nodes_min, batch.nodes_max)
    return wanted


def split(batch: PoolBatch, total: Floats, config: RuleConfig) -> Floats:
    """Return (on demand, spot) nodes that sum to `total`, moving the mix no more than it must.

    Growth fills the cheaper billing up to its share and shrinkage empties the dearer one first;
    the mix alone is no reason to exchange nodes.
    """
    present = batch.present[:, SPOT]
    change = total - present - batch.present[:, ON_DEMAND]
    lowest = np.maximum(batch.low[:, SPOT], present + np.minimum(change, 0.0))
    highest = np.minimum(batch.high[:, SPOT], present + np.maximum(change, 0.0))
    ideal = np.round(total * spot_ideal_share(batch, config))
    spot = np.clip(ideal, lowest, np.maximum(lowest, highest))
    on_demand = np.clip(total - spot, batch.low[:, ON_DEMAND], batch.high[:, ON_DEMAND])
    return np.stack([on_demand, np.clip(total - on_demand, 0.0, None)], axis=1)


def with_offsets(batch: PoolBatch, offsets: Floats, config: RuleConfig) -> Floats:
    """Return the rule's wish moved by offsets (n, 4), in delta limits: what a policy wishes for.

    An offset says how many nodes; which billing they are of is settled in one place for all, so
    that nobody seems to be better at capacity who only buys otherwise. Where no node is asked for
    beyond the rule's, or the sum is no number, the nodes stay as they are.
    """
    nodes = [ON_DEMAND, SPOT]
    wish: Floats = batch.rule + offsets * batch.delta
    total = wish[:, ON_DEMAND] + wish[:, SPOT]
    moved = np.isfinite(total) & (wish[:, nodes] != batch.rule[:, nodes]).any(axis=1)
    bounded = np.clip(np.where(moved, total, 0.0), batch.nodes_min, batch.nodes_max)
    wish[:, nodes] = np.where(moved[:, None], split(batch, bounded, config), wish[:, nodes])
    return wish


def spot_ideal_share(batch: PoolBatch, config: RuleConfig) -> Floats:
    """Return the share of spot: all or nothing where one billing is closed or does not pay."""
    burden = 1.0 + batch.interruptions * config.interruption_cost_node_hours
    pays = batch.node_cost[:, 1] * burden < batch.node_cost[:, 0]
    share = np.where(pays, config.spot_share, 0.0)
    share = np.where(batch.high[:, ON_DEMAND] <= 0.0, 1.0, share)
    return np.where(batch.high[:, SPOT] <= 0.0, 0.0, share)


def wanted_price(batch: PoolBatch, config: RuleConfig) -> Floats:
    """Return the target price, approached by one bounded step per epoch."""
    return price_step(
        batch, target_price(batch, config), step=config.price_step, tolerance=config.price_tolerance
    )


def target_price(batch: PoolBatch, config: RuleConfig) -> Floats:
    """Return the reference price, which follows the market, moved by the pool's own scarcity."""
    capacity = batch.nodes_max * batch.gpus_per_node
    load = demand_gpus(batch) / np.maximum(capacity, 1.0)
    tension = np.clip(config.scarcity * (load - config.usual_load), -0.5, 0.5)
    target: Floats = batch.reference_price * (1.0 + tension)
    return target


def price_step(batch: PoolBatch, target: Floats, *, step: float, tolerance: float) -> Floats:
    """Return the price that goes to a target, (n,), by at most a relative `step` in an epoch.

    It stays between epochs, where the target is not worth a new quote, and where it is not known.
    """
    present = batch.present[:, PRICE]
    most = step * present
    moved = np.round(np.clip(target, present - most, present + most), 4)
    acts = batch.price_epoch & (np.abs(target - present) > tolerance * present)
    return np.where(acts, moved, present)


def _nodes(batch: PoolBatch, gpus: Floats, config: RuleConfig) -> Floats:
    per_node = np.maximum(batch.gpus_per_node, 1.0)
    busy = gpus / per_node / np.maximum(batch.utilisation_target, 0.05)
    idle = np.ceil(gpus / per_node) + config.spare_nodes
    return np.maximum(np.ceil(busy - 1e-9), idle)


def _short_nodes(config: RuleConfig) -> float:
    return max(-config.spare_nodes, 0.0)
