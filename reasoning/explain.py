"""Why a policy wished what it wished, in figures and in one line.

Explanations are computed from the same inputs as the wish and change nothing.
"""

from typing import Final

import numpy as np

from gpuloop.reasoning.actor import Actor
from gpuloop.reasoning.rule import RuleConfig, demand_gpus, grow_target, release_target
from gpuloop.schemas.messages.decisions import Influence, PriceNote
from gpuloop.schemas.policy import FEATURE_NAMES, ON_DEMAND, SPOT, Floats, PoolBatch

MAX_INFLUENCES: Final = 5
LEAST_EFFECT: Final = 1e-3


def actor_influences(actor: Actor, observation: Floats, *, alpha: float) -> tuple[Influence, ...]:
    """Return the features (d,) that moved the actor's strongest dimension most, by `alpha`.

    The effect of a feature is what the action loses when that feature alone is put back to its
    training mean: one forward pass over d rows.
    """
    rows = np.vstack([observation, np.tile(observation, (len(observation), 1))])
    np.fill_diagonal(rows[1:], actor.mean)
    actions = actor(rows).astype(float)
    strongest = int(np.argmax(np.abs(actions[0])))
    effects = alpha * (actions[0, strongest] - actions[1:, strongest])
    return _largest(dict(zip(FEATURE_NAMES, effects.tolist(), strict=True)))


def rule_influences(batch: PoolBatch, row: int) -> tuple[Influence, ...]:
    """Return the parts of the demand behind the rule's wish, in nodes."""
    per_node = max(1.0, float(batch.gpus_per_node[row]))
    demand = float(demand_gpus(batch)[row])
    return _largest(
        {
            "allocated_ratio": float(batch.gpus_allocated[row]) / per_node,
            "queued_gpus_ratio": float(batch.gpus_queued[row]) / per_node,
            "forecast_15m_ratio": max(0.0, batch.forecast_gpus[row, 0, 1] - demand) / per_node,
            "forecast_60m_ratio": max(0.0, batch.forecast_gpus[row, 2, 1] - demand) / per_node,
        }
    )


def demand_words(batch: PoolBatch, row: int) -> str:
    """Return the figures a capacity wish rests on."""
    words = [
        f"{batch.gpus_allocated[row]:.0f} GPUs at work",
        f"queue {batch.gpus_queued[row]:.0f} GPUs",
    ]
    if batch.forecast_trusted[row]:
        words.append(f"forecast 60m {batch.forecast_gpus[row, 2, 1]:.0f} GPUs")
    return ", ".join(words)


def price_words(batch: PoolBatch, row: int, note: PriceNote | None = None) -> str:
    """Return the figures a price wish rests on; `note` says what is known of demand, if it is."""
    capacity = float(batch.nodes_max[row] * batch.gpus_per_node[row])
    load = float(demand_gpus(batch)[row]) / max(1.0, capacity)
    seen = f"market {batch.market_price[row]:.4f} USD, demand {load:.0%} of what can be rented"
    if note is None:
        return seen
    words = [seen, f"towards {note.target_usd:.4f}", f"marginal cost {note.cost_usd:.4f}"]
    words += [
        f"elasticity of {one.segment} {one.elasticity:.2f} ({one.low:.2f} to {one.high:.2f})"
        for one in note.curves
        if one.trusted
    ]
    words.append(f"{note.trusted_share:.0%} of demand known, {note.explored_log:+.1%} to learn")
    return ", ".join(words)


def rule_limits(batch: PoolBatch, row: int, config: RuleConfig) -> str:
    """Return why the rule itself wants neither more nor less."""
    present = float(batch.present[row, ON_DEMAND] + batch.present[row, SPOT])
    grow = float(grow_target(batch, config)[row])
    release = float(release_target(batch, config)[row])
    target = f"the target of {batch.utilisation_target[row]:.0%}"
    if grow > batch.nodes_max[row]:
        return f"not more: {batch.nodes_max[row]:.0f} nodes is the pool's ceiling"
    if present > max(grow, release):
        return f"not less: {batch.nodes_min[row]:.0f} nodes or running work hold it there"
    if present > grow:
        peak = batch.gpus_demanded_peak[row]
        return f"not less: demand was {peak:.0f} GPUs a moment ago or is forecast to come back"
    return f"not more: {max(present, grow):.0f} nodes meet the demand within {target}"


def _largest(effects: dict[str, float]) -> tuple[Influence, ...]:
    ranked = sorted(effects.items(), key=lambda item: (-abs(item[1]), item[0]))
    return tuple(
        Influence(feature=name, effect=round(float(effect), 4))
        for name, effect in ranked[:MAX_INFLUENCES]
        if abs(effect) >= LEAST_EFFECT
    )
