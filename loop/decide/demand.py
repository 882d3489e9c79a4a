"""What the decider knows of each pool's demand, and the price it wishes for by it.

Tenants' answers come as counts in the pools' states; at each price epoch what they grew by goes
into the curves of `reasoning.elasticity`, and `reasoning.pricing` turns these into a wish. Where
nothing is known of a pool's demand yet, its rule's price stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gpuloop.loop.decide.memory import DemandMemory, PoolMemory
from gpuloop.reasoning import elasticity
from gpuloop.reasoning.pricing import PriceWish, PricingConfig, price_wish
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.messages import PoolState
from gpuloop.schemas.messages.decisions import CurveNote, PriceNote
from gpuloop.schemas.policy import PRICE, Floats, PoolBatch
from gpuloop.schemas.units import USD_MICROS

MAX_SEGMENTS: Final = 16
"""Segments of a pool whose demand is learned; the first by name."""


def learn_demand(memory: PoolMemory) -> None:
    """Fold what a pool's tenants said since the last epoch into its curves."""
    pool = memory.latest
    if not pool.quote_usd_micros_per_gpu_hour:
        return
    counts = _counts(pool)
    demand = memory.demand
    if demand is None:
        anchor = pool.quote_usd_micros_per_gpu_hour
        demand = memory.demand = DemandMemory(anchor_usd_micros=anchor, counts=counts)
    names = sorted(counts.keys() | demand.curves.keys())[:MAX_SEGMENTS]
    fresh = elasticity.blank(1, 1)[0, 0].tolist()
    nothing = [0.0] * elasticity.COUNTS
    before = [demand.counts.get(name, nothing) for name in names]
    after = [counts.get(name, old) for name, old in zip(names, before, strict=True)]
    curves = np.array([demand.curves.get(name, fresh) for name in names])
    if names:
        anchors = np.array(float(demand.anchor_usd_micros))
        said = elasticity.said_between(np.array(before), np.array(after), anchors)
        load = _load(pool)
        held = np.array([load.get(name, 0.0) for name in names])
        folded = elasticity.fold(curves, said, held)
        demand.curves = dict(zip(names, folded.tolist(), strict=True))
    demand.counts = demand.counts | counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """The price wishes of a batch, and the curves behind them by pool."""

    wish: PriceWish
    demands: Sequence[DemandMemory | None]

    def note(self, row: int, quote_usd: float) -> PriceNote | None:
        """Return what the wish of a pool rests on, None where nothing is known."""
        wish, demand = self.wish, self.demands[row]
        if demand is None or not np.isfinite(wish.target[row]):
            return None
        best = float(wish.best[row])
        return PriceNote(
            target_usd=round(float(wish.target[row]), 4),
            best_usd=round(best, 4) if np.isfinite(best) else None,
            cost_usd=round(float(np.nan_to_num(wish.cost[row], posinf=0.0)), 4),
            trusted_share=round(float(wish.trusted_share[row]), 4),
            explored_log=round(float(wish.explored[row]), 4),
            curves=_notes(demand, quote_usd),
        )


def with_prices(
    batch: PoolBatch, memories: Sequence[PoolMemory], config: PricingConfig, rule: RuleConfig
) -> tuple[PoolBatch, Priced]:
    """Return the batch with learned prices as the rule's, and what they rest on."""
    demands = [memory.demand for memory in memories]
    segments = max((len(one.curves) for one in demands if one is not None), default=0)
    curves = elasticity.blank(len(demands), max(1, segments))
    for row, one in enumerate(demands):
        if one is not None and one.curves:
            curves[row, : len(one.curves)] = np.array(list(one.curves.values()))
    known = np.array([one is not None for one in demands], dtype=np.bool_)
    anchors = [one.anchor_usd_micros / USD_MICROS if one else 1.0 for one in demands]
    wish = price_wish(
        batch,
        curves,
        np.array(anchors, dtype=float),
        config=config,
        rule=rule,
        loyalty=np.array([one.latest.loyalty_ratio for one in memories], dtype=float),
    )
    wished: Floats = batch.rule.copy()
    low, high = batch.low[:, PRICE], np.maximum(batch.low, batch.high)[:, PRICE]
    wished[:, PRICE] = np.where(known, np.clip(wish.price, low, high), wished[:, PRICE])
    return replace(batch, rule=wished), Priced(wish=wish, demands=demands)


def _counts(pool: PoolState) -> dict[str, list[float]]:
    return {
        one.segment: [
            float(one.accepted_jobs),
            float(one.refused_jobs),
            float(one.accepted_quotes_sum_usd_micros),
            float(one.refused_quotes_sum_usd_micros),
        ]
        for one in pool.quotes
    }


def _load(pool: PoolState) -> dict[str, float]:
    """Return the GPUs that jobs of each class hold or wait for."""
    found: dict[str, float] = {}
    for one in pool.classes:
        found[one.job_class] = found.get(one.job_class, 0.0) + one.running_gpus
    for queue in pool.queues:
        found[queue.job_class] = found.get(queue.job_class, 0.0) + queue.gpus
    return found


def _notes(demand: DemandMemory, quote_usd: float) -> tuple[CurveNote, ...]:
    if not demand.curves:
        return ()
    curves = np.array(list(demand.curves.values()))
    log_quote = np.log(max(quote_usd, 1e-9) * USD_MICROS / demand.anchor_usd_micros)
    told = np.round(np.stack(elasticity.elasticity(curves, np.array(log_quote))), 3)
    trusted = elasticity.trusted(curves)
    return tuple(
        CurveNote(
            segment=name,
            elasticity=float(told[0, place]),
            low=float(told[1, place]),
            high=float(told[2, place]),
            answers=round(float(curves[place, elasticity.ANSWERED]), 1),
            trusted=bool(trusted[place]),
        )
        for place, name in enumerate(demand.curves)
    )
