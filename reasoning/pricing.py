"""What to ask for a GPU-hour: the price that earns most where demand's answer to it is known.

The wish leaves the rule's price only as far as the curves of `reasoning.elasticity` are trusted,
weighed by the GPUs of their segments, and stays within a band of the market's price. Marginal cost
is what the next GPU-hour costs upstream, dearer where the pool runs short of what it may rent and
cheaper off-peak, where its forecast load is low. What is refused is charged for, so that a price
that turns tenants away must earn more than it saves.

Prices must differ for a curve to be learned, and the market's list prices stand still for months,
so the wish explores: it stands above or below for a few hours at a time, in pairs, first the one or
the other by a seeded hash, further where less is known. A pair differs in nothing else on average.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import msgspec
import numpy as np

from gpuloop.reasoning import elasticity
from gpuloop.reasoning.rule import RuleConfig, price_step, target_price
from gpuloop.schemas.policy import ON_DEMAND, PRICE, SPOT, Floats, PoolBatch
from gpuloop.schemas.units import HOUR_US

GRID: Final = 61
"""Prices of the band that are compared."""
LONGEST_HORIZON: Final = 2
"""Of the forecast's: what is rented now is used for hours."""


class PricingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How prices are set. Ratios unless the name says otherwise.

    The defaults were chosen in the twin on Philly, 25 September to 15 October 2017, over all
    elasticities that docs/pricing.md reports on.
    """

    lowest: float = 0.75
    """The market band, as ratios of the reference price, which follows the market."""
    highest: float = 1.5
    price_step: float = 0.05
    price_tolerance: float = 0.01
    refused_charge: float = 0.1
    """What a refused GPU-hour costs, over the reference price: an assumption."""
    priced_out_charge: float = 0.1
    """What it costs on top where the reference price would have sold it: an assumption."""
    usual_load: float = 0.4
    """Expected load over everything that could be rented at which a GPU-hour costs its price."""
    scarcity: float = 1.0
    """By how much marginal cost rises per unit of load over the usual."""
    off_peak: float = 0.3
    """By how much marginal cost falls at most where no load is expected."""
    explore: float = 0.15
    """How far prices are moved to learn from, where nothing is known."""
    explore_known: float = 0.02
    """The same where all is."""
    hold_us: int = 6 * HOUR_US
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceWish:
    """A wish, (n,) US dollars per GPU-hour, and what it rests on; shares are ratios."""

    price: Floats
    target: Floats
    """Where the price is on its way to, exploration included."""
    best: Floats
    """What trusted curves call for; NaN where none is trusted."""
    trusted_share: Floats
    cost: Floats
    """Of the next GPU-hour sold."""
    explored: Floats
    """By how much the target is off for the sake of learning."""


def price_wish(
    batch: PoolBatch,
    curves: Floats,
    anchor: Floats,
    *,
    config: PricingConfig,
    rule: RuleConfig,
    loyalty: Floats | None = None,
) -> PriceWish:
    """Return what n pools should quote.

    Args:
        batch: the pools.
        curves: (n, segments, columns) of their demand.
        anchor: (n,) US dollars per GPU-hour that the curves' quotes are relative to.
        config: of the price.
        rule: whose price holds, within the band, where no curve is trusted.
        loyalty: (n,) how much less than quoted tenants with a record are told; they are most.

    """
    reference = batch.reference_price
    low, high = config.lowest * reference, config.highest * reference
    cost = marginal_cost(batch, config)
    told = 1.0 - (np.zeros_like(reference) if loyalty is None else loyalty)
    weight = _weights(curves, np.log(told * batch.present[:, PRICE] / anchor))
    sure = np.where(elasticity.trusted(curves), weight, 0.0)
    total = weight.sum(axis=1)
    share = np.divide(sure.sum(axis=1), total, out=np.zeros_like(total), where=total > 0.0)
    ratios = np.exp(np.linspace(np.log(config.lowest), np.log(config.highest), GRID))
    prices = reference[:, None] * ratios
    earned = _earned(curves, sure, told[:, None] * ratios, reference, anchor, cost, config)
    best = prices[np.arange(len(prices)), np.argmax(earned, axis=1)]
    plain = np.clip(target_price(batch, rule), low, high)
    middle = np.exp((1.0 - share) * np.log(plain) + share * np.log(best))
    size = config.explore + share * (config.explore_known - config.explore)
    offset = size * _signs(batch, config)
    target = np.clip(middle * np.exp(offset), low, high)
    return PriceWish(
        price=price_step(batch, target, step=config.price_step, tolerance=config.price_tolerance),
        target=target,
        best=np.where(share > 0.0, best, np.nan),
        trusted_share=share,
        cost=cost,
        explored=offset,
    )


def marginal_cost(batch: PoolBatch, config: PricingConfig) -> Floats:
    """Return what the next GPU-hour costs, (n,) US dollars: dearer when short, cheaper off-peak.

    Without a price upstream it is the market's.
    """
    nodes = batch.present[:, [ON_DEMAND, SPOT]] + 1e-9
    known = np.isfinite(batch.node_cost)
    spent = (np.where(known, nodes * np.where(known, batch.node_cost, 0.0), 0.0)).sum(axis=1)
    held = np.where(known, nodes, 0.0).sum(axis=1) * np.maximum(batch.gpus_per_node, 1.0)
    cost = np.where(held > 0.0, spent / np.maximum(held, 1e-12), batch.market_price)
    capacity = np.maximum(batch.nodes_max * batch.gpus_per_node, 1.0)
    load = batch.forecast_gpus[:, LONGEST_HORIZON, 1] / capacity
    slack = np.clip(1.0 - load / config.usual_load, 0.0, 1.0)
    short = np.maximum(0.0, load - config.usual_load)
    found: Floats = cost * (1.0 - config.off_peak * slack + config.scarcity * short)
    return found


def _weights(curves: Floats, log_quote: Floats) -> Floats:
    """Return the GPUs (n, segments) that each segment would keep busy if it accepted any price."""
    share = elasticity.acceptance(curves, log_quote[:, None])
    found: Floats = curves[..., elasticity.LOAD] / share
    return found


def _earned(
    curves: Floats,
    weight: Floats,
    ratios: Floats,
    reference: Floats,
    anchor: Floats,
    cost: Floats,
    config: PricingConfig,
) -> Floats:
    """Return US dollars per hour at ratios of the reference price that tenants are told, (n, grid).

    A dearer price never sells more, whatever the belief's uncertainty makes of it.
    """
    told = ratios * reference[:, None]
    sells = elasticity.acceptance(curves[:, None], np.log(told / anchor[:, None])[..., None])
    sold = (weight[:, None] * np.minimum.accumulate(sells, axis=1)).sum(axis=-1)
    usual = elasticity.acceptance(curves, np.log(reference / anchor)[:, None])
    usually = (weight * usual).sum(axis=-1)[:, None]
    refused = config.refused_charge * (weight.sum(axis=-1)[:, None] - sold)
    priced_out = config.priced_out_charge * np.maximum(usually - sold, 0.0)
    found: Floats = sold * (told - cost[:, None]) - (refused + priced_out) * reference[:, None]
    return found


def _signs(batch: PoolBatch, config: PricingConfig) -> Floats:
    """Return 1 or -1 per pool: half of each pair of holds, which of them first by a hash."""
    found = []
    for pool, tick_us in zip(batch.pools, batch.tick_us.tolist(), strict=True):
        pair, second = divmod(tick_us // config.hold_us, 2)
        key = f"{config.seed}/{pool}/{pair}".encode()
        first = blake2b(key, digest_size=1).digest()[0] & 1
        found.append(1.0 if first ^ second else -1.0)
    return np.array(found)
