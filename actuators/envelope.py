"""The safety envelope: what of a wish may be done now, and why not the rest.

A pure function over a batch of pools. It knows neither who wishes nor why, keeps nothing (its
memory is an argument) and never widens: each value it returns lies between the present one and the
wished-for one, or, where the wish is refused as a whole, the rule's. The stages run in the order of
`_pass`; the executor has guards of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from gpuloop.schemas.identity import sha256_of
from gpuloop.schemas.messages.decisions import Adjustment, Stage
from gpuloop.schemas.policy import (
    DIMENSIONS,
    EPOCH_US,
    MIGRATION,
    ON_DEMAND,
    PRICE,
    SPOT,
    Flags,
    Floats,
    Integers,
    PoolBatch,
)
from gpuloop.schemas.units import HOUR_US, MINUTE_US

NODES: Final = slice(ON_DEMAND, SPOT + 1)
PRICE_GRID_USD: Final = 1e-4
LONG_AGO_US: Final = -HOUR_US

SENT, ASKED, REHEARSED, HELD = range(4)
"""Tiers: growth that is sent, waits for a person, is only shown, or cannot happen at all."""


class EnvelopeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of every decision. Shares are of a pool's size and never round down to none."""

    window_us: int = HOUR_US
    node_step_share: float = 0.1
    """Nodes that may come or go in one tick, as a share of the ceiling."""
    price_step_share: float = 0.05
    """Relative price change per epoch."""
    shrink_after_growth_us: int = 15 * MINUTE_US
    shrink_every_us: int = 5 * MINUTE_US
    price_every_us: int = 15 * MINUTE_US
    start_share: float = 1.0
    """Nodes started per window, as a share of the ceiling."""
    stop_share: float = 0.25
    """Nodes stopped per window, as a share of the present ones."""
    migrate_share: float = 0.1
    """Jobs moved per window, as a share of the running ones."""

    @property
    def digest(self) -> str:
        """Return the SHA-256 that decisions carry."""
        return sha256_of("envelope", msgspec.json.encode(self, order="deterministic"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeState:
    """What the envelope remembers of n pools: executed changes within the window, and holds."""

    last_growth_us: Integers
    last_shrink_us: Integers
    last_price_us: Integers
    started: Floats
    stopped: Floats
    migrated: Floats
    breaker_open: Flags
    frozen: Flags
    scaling_in_flight: Flags
    pricing_in_flight: Flags
    """A command is under way, so `present` is about to move."""
    tier: Integers = field(default_factory=lambda: np.full(1, SENT))
    """How real growth is: it shares the fleet's budget with its own tier and after lower ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """The action that may be done, (n, 4), and for each pool what was changed on the way."""

    action: Floats
    adjustments: tuple[tuple[Adjustment, ...], ...]


Reason = Callable[[int], str]


@dataclass(slots=True)
class _Notes:
    rows: list[list[Adjustment]]
    wanted: bool = True
    only: Flags = field(default_factory=lambda: np.ones(0, bool))

    def add(self, stage: Stage, before: Floats, after: Floats, reason: str | Reason) -> Floats:
        """Note what a stage changed in the rows of interest and return its result."""
        if not self.wanted:
            return after
        changed = ~(np.abs(before - after) <= 1e-9) & self.only[:, None]
        if changed.any():
            for row, column in zip(*np.nonzero(changed), strict=True):
                self.rows[row].append(
                    Adjustment(
                        stage=stage,
                        dimension=DIMENSIONS[column],
                        before=float(np.nan_to_num(before[row, column])),
                        after=float(after[row, column]),
                        reason=reason if isinstance(reason, str) else reason(int(row)),
                    )
                )
        return after


def delta_limits(
    *,
    present: Floats,
    low: Floats,
    high: Floats,
    nodes_max: Floats,
    price_epoch: Flags,
    config: EnvelopeConfig,
) -> Floats:
    """Return how far each dimension may move in this tick; 0 where it has no choice."""
    delta = np.empty_like(present)
    delta[:, NODES] = np.maximum(1.0, np.ceil(config.node_step_share * nodes_max))[:, None]
    delta[:, MIGRATION] = 1.0
    delta[:, PRICE] = np.where(price_epoch, config.price_step_share * present[:, PRICE], 0.0)
    return np.where(high > low, delta, 0.0)


def stop_budget(present_nodes: Floats, config: EnvelopeConfig) -> Floats:
    """Return nodes that may be stopped per window: at least one, however small the pool."""
    return np.maximum(1.0, np.ceil(config.stop_share * present_nodes))


def migration_budget(running_jobs: Floats, config: EnvelopeConfig) -> Floats:
    """Return jobs that may be moved per window: at least one."""
    return np.maximum(1.0, np.ceil(config.migrate_share * running_jobs))


def apply_envelope(
    wish: Floats,
    batch: PoolBatch,
    state: EnvelopeState,
    config: EnvelopeConfig,
    out_of_range: Flags | None = None,
    *,
    noted: bool = True,
) -> Executed:
    """Return what of a wish (n, 4) may be done; why not the rest only where it is to be `noted`.

    A wish that is not finite, would leave a pool with nothing, or was made outside the range its
    policy knows, is replaced by the rule's, which passes every stage again; if that is unusable
    too, the pool holds. A tripped breaker holds.
    """
    notes = _Notes([[] for _ in batch.pools], wanted=noted)
    finite: Flags = np.all(np.isfinite(wish), axis=1)
    strange = finite & (np.zeros_like(finite) if out_of_range is None else out_of_range)
    empty = finite & ~strange & _empties(wish, batch)
    refused = ~finite | strange | empty

    notes.only = ~refused
    action = _pass(np.where(finite[:, None], wish, batch.present), batch, state, config, notes)
    if refused.any():
        rule = _usable_rule(batch)
        notes.only = strange
        notes.add("out_of_range", wish, rule, "outside what the policy was trained on: the rule's")
        notes.only = empty
        notes.add("fallback", wish, rule, "an empty plan is refused: the rule's")
        notes.only = ~finite
        notes.add("fallback", wish, rule, "not a number: the rule's")
        notes.only = refused
        again = _pass(rule, batch, state, config, notes)
        action = np.where(refused[:, None], again, action)

    notes.only = np.ones_like(refused)
    return Executed(
        action=_hold(action, batch, state, notes),
        adjustments=tuple(tuple(row) for row in notes.rows),
    )


def _usable_rule(batch: PoolBatch) -> Floats:
    usable: Flags = np.all(np.isfinite(batch.rule), axis=1) & ~_empties(batch.rule, batch)
    rule: Floats = np.where(usable[:, None], batch.rule, batch.present)
    return rule


def _pass(
    wish: Floats, batch: PoolBatch, state: EnvelopeState, config: EnvelopeConfig, notes: _Notes
) -> Floats:
    action = _freshness(wish, batch, notes)
    action = _bounds(action, batch, notes)
    action = _delta(action, batch, notes)
    action = _hysteresis(action, batch, state, config, notes)
    action = _disruption(action, batch, state, config, notes)
    # Both before and after: nobody spends what an exchange saves that is called off already.
    action = _exchange(action, wish, batch, notes)
    action = _projection(action, batch, state, notes)
    return _exchange(action, wish, batch, notes)


def _freshness(wish: Floats, batch: PoolBatch, notes: _Notes) -> Floats:
    """Hold on stale inputs: growing takes a fresh demand, shrinking takes everything fresh."""
    after = wish.copy()
    present = batch.present[:, NODES]
    certain = batch.capacity_fresh & batch.demand_fresh & batch.telemetry_fresh
    least = np.where(certain[:, None], -np.inf, present)
    most = np.where(batch.demand_fresh[:, None], np.inf, present)
    after[:, NODES] = np.clip(after[:, NODES], least, most)
    after[:, PRICE] = np.where(
        batch.market_fresh & batch.demand_fresh, after[:, PRICE], batch.present[:, PRICE]
    )
    after[:, MIGRATION] = np.where(batch.demand_fresh, after[:, MIGRATION], 0.0)
    return notes.add("freshness", wish, after, lambda row: f"held: {_stale(batch, row)} not fresh")


def _stale(batch: PoolBatch, row: int) -> str:
    inputs = (
        ("demand", batch.demand_fresh),
        ("capacity", batch.capacity_fresh),
        ("telemetry", batch.telemetry_fresh),
        ("market", batch.market_fresh),
    )
    return ", ".join(name for name, fresh in inputs if not fresh[row])


def _bounds(wish: Floats, batch: PoolBatch, notes: _Notes) -> Floats:
    """Keep within the bounds, or no further outside than the pool already is."""
    low, high = np.minimum(batch.low, batch.present), np.maximum(batch.high, batch.present)
    return notes.add("bounds", wish, np.clip(wish, low, high), "outside what the pool may have")


def _delta(wish: Floats, batch: PoolBatch, notes: _Notes) -> Floats:
    """Bound the step and round it towards the present: whole nodes, 1e-4 dollars."""
    grid = np.array([1.0, 1.0, PRICE_GRID_USD, PRICE_GRID_USD])
    step = np.clip(wish - batch.present, -batch.delta, batch.delta)
    whole = np.sign(step) * np.floor(np.abs(step) / grid + 1e-6) * grid
    after: Floats = np.round(batch.present + whole, 6)
    why = "the step limit of one tick, in whole nodes"
    notes.add("delta", np.round(wish, 4), np.round(after, 4), why)
    return after


def _hysteresis(
    wish: Floats, batch: PoolBatch, state: EnvelopeState, config: EnvelopeConfig, notes: _Notes
) -> Floats:
    """Grow at once; shrink only some time after growing or shrinking; keep prices for a while.

    A price may change a third of an epoch early. A decision comes some time after its tick: counted
    from there, a rest of 15 minutes would outlast the next epoch, and every other be lost.
    """
    now, after = batch.tick_us, wish.copy()
    rested = (now - state.last_growth_us >= config.shrink_after_growth_us) & (
        now - state.last_shrink_us >= config.shrink_every_us
    )
    floor = np.where(rested[:, None], after[:, NODES], batch.present[:, NODES])
    after[:, NODES] = np.maximum(after[:, NODES], floor)
    kept = now - state.last_price_us < config.price_every_us - EPOCH_US // 3
    after[:, PRICE] = np.where(kept, batch.present[:, PRICE], after[:, PRICE])
    after = notes.add("hysteresis", wish, after, "cooling down from the last change")
    settled = after.copy()
    scaling, pricing = state.scaling_in_flight, state.pricing_in_flight
    settled[:, NODES] = np.where(scaling[:, None], batch.present[:, NODES], after[:, NODES])
    settled[:, PRICE] = np.where(pricing, batch.present[:, PRICE], after[:, PRICE])
    return notes.add("hysteresis", after, settled, "an earlier command is still under way")


def _disruption(
    wish: Floats, batch: PoolBatch, state: EnvelopeState, config: EnvelopeConfig, notes: _Notes
) -> Floats:
    """Spend the window's budgets; never take nodes that running work needs."""
    present: Floats = batch.present[:, NODES]
    total: Floats = present.sum(axis=1)
    step = wish[:, NODES] - present
    stops = np.maximum(0.0, stop_budget(total, config) - state.stopped)
    starts = np.maximum(1.0, np.ceil(config.start_share * batch.nodes_max)) - state.started
    growth = _ration(np.maximum(step, 0.0), np.maximum(starts, 0.0), first=SPOT)
    per_node = np.maximum(batch.gpus_per_node, 1.0)
    idle = np.maximum(0.0, total - np.ceil(batch.gpus_allocated / per_node))
    shrinkage = _ration(np.maximum(-step, 0.0), np.minimum(stops, idle), first=ON_DEMAND)
    after = wish.copy()
    after[:, NODES] = present + growth - shrinkage
    left = migration_budget(batch.running_jobs, config) - state.migrated
    after[:, MIGRATION] = np.where(left > 0.0, wish[:, MIGRATION], 0.0)
    return notes.add("disruption", wish, after, "the window's budget, or nodes with running work")


def _projection(wish: Floats, batch: PoolBatch, state: EnvelopeState, notes: _Notes) -> Floats:
    """Cut growth that would break a limit over several dimensions or pools, and nothing else."""
    present = batch.present[:, NODES]
    priced = np.isfinite(batch.node_cost)
    cost = np.where(priced, batch.node_cost, 0.0)
    kept = np.minimum(wish[:, NODES], present)

    def grown(growth: Floats) -> Floats:
        after = wish.copy()
        after[:, NODES] = kept + growth
        return after

    space = np.maximum(0.0, batch.nodes_max - kept.sum(axis=1))
    growth = np.where(priced, np.maximum(wish[:, NODES] - present, 0.0), 0.0)
    growth = _ration(growth, space, first=SPOT)
    why = "the pool's ceiling, or a billing that nobody offers"
    action = notes.add("projection", wish, grown(growth), why)
    unpriced = np.any(~priced & (present > 0.0), axis=1)
    growth = np.where(_unjudged(batch, unpriced)[:, None], 0.0, growth)
    why = "the cost of what is rented already is not known, so no budget can be kept"
    action = notes.add("projection", action, grown(growth), why)
    # What an exchange saves is no other pool's to spend: it may yet be called off.
    exchanges = (wish[:, NODES] > present).any(axis=1) & (kept < present).any(axis=1)
    unmoved, moved = (present * cost).sum(axis=1), (kept * cost).sum(axis=1)
    growth = _afford(growth, cost, np.maximum(0.0, batch.budget - moved))
    moved = np.where(exchanges, unmoved, moved)
    tier = np.where(state.frozen | state.breaker_open, HELD, state.tier)
    growth = _share(growth, cost, (unmoved, moved), batch, tier)
    return notes.add("projection", action, grown(growth), "a budget")


def _unjudged(batch: PoolBatch, unpriced: Flags) -> Flags:
    """Return pools under a budget, their own or their fleet's, whose spending is not known."""
    fleets = np.bincount(batch.fleet, weights=unpriced)[batch.fleet] > 0.0
    unjudged: Flags = (np.isfinite(batch.budget) & unpriced) | (
        np.isfinite(batch.fleet_budget) & fleets
    )
    return unjudged


def _share(
    growth: Floats, cost: Floats, spends: tuple[Floats, Floats], batch: PoolBatch, tier: Integers
) -> Floats:
    """Return the growth (n, 2) that each fleet's budget has room for, tier by tier.

    `spends` are what pools cost as they stand and after what they give up. A pool takes nothing
    from a lower tier, and saves nothing for one: what is only shown does not happen.
    """
    unmoved, moved = spends
    for level in range(HELD + 1):
        own = tier == level
        asked = (growth * cost).sum(axis=1)
        spend = np.where(tier <= level, moved, unmoved) + np.where(tier < level, asked, 0.0)
        room = batch.fleet_budget - np.bincount(batch.fleet, weights=spend)[batch.fleet]
        room = np.maximum(0.0, room)
        asks = np.bincount(batch.fleet, weights=np.where(own, asked, 0.0))[batch.fleet]
        with np.errstate(invalid="ignore"):
            share = np.where(asks > room, room / np.maximum(asks, 1e-9), 1.0)
        growth = np.where(own[:, None], np.floor(growth * share[:, None] + 1e-9), growth)
    return growth


def _exchange(action: Floats, wish: Floats, batch: PoolBatch, notes: _Notes) -> Floats:
    """Call off an exchange of one billing for the other of which only the giving up is left.

    Growth that a guard cut, for an unknown price, say, must not leave fewer nodes than were asked
    for, nor none at all. What the wish as a whole gives up may still go.
    """
    present, after = batch.present[:, NODES], action[:, NODES]
    total, left = present.sum(axis=1), after.sum(axis=1)
    asked = np.minimum(np.maximum(wish[:, NODES], 0.0).sum(axis=1), total)
    half = (asked - left >= 1.0 - 1e-6) | ((left < 0.5) & (total > 0.0))
    spare = np.minimum(np.floor(total - asked + 1e-6), total - 1.0)
    shrinkage = _ration(np.maximum(present - after, 0.0), np.maximum(spare, 0.0), first=ON_DEMAND)
    whole = action.copy()
    whole[:, NODES] = np.where(half[:, None], present - shrinkage, after)
    return notes.add("projection", action, whole, "an exchange of which only half could be done")


def _hold(action: Floats, batch: PoolBatch, state: EnvelopeState, notes: _Notes) -> Floats:
    still = batch.present.copy()
    still[:, MIGRATION] = 0.0
    after = np.where(state.breaker_open[:, None], still, action)
    action = notes.add("breaker", action, after, "the breaker is open until a person resets it")
    after = np.where(state.frozen[:, None], still, action)
    return notes.add("mode", action, after, "frozen by a person")


def _empties(wish: Floats, batch: PoolBatch) -> Flags:
    left = np.maximum(wish[:, NODES], 0.0).sum(axis=1)
    empties: Flags = (left < 0.5) & (batch.present[:, NODES].sum(axis=1) > 0.0)
    return empties


def _ration(nodes: Floats, allowed: Floats, first: int) -> Floats:
    """Give out whole nodes (n, 2) up to a total of `allowed` (n,), column `first` first."""
    given = np.empty_like(nodes)
    given[:, first] = np.minimum(nodes[:, first], np.floor(allowed))
    given[:, 1 - first] = np.minimum(nodes[:, 1 - first], np.floor(allowed) - given[:, first])
    return given


def _afford(nodes: Floats, cost: Floats, money: Floats) -> Floats:
    """Give out whole nodes (n, 2) while `money` (n,) lasts, spot first."""
    free = np.where(cost > 0.0, cost, 1e-9)
    spot = np.minimum(nodes[:, 1], np.floor(money / free[:, 1] + 1e-9))
    rest = money - spot * cost[:, 1]
    on_demand = np.minimum(nodes[:, 0], np.floor(rest / free[:, 0] + 1e-9))
    return np.stack([np.maximum(on_demand, 0.0), np.maximum(spot, 0.0)], axis=1)
