"""Pools of many worlds side by side, seen and commanded as a live decider sees and commands them.

Features, rule and envelope are the live loop's own functions; this module turns the arrays of the
pool-level twin into what they take. At a tick the fleet is looked at; the decision on it is taken
up to `Lateness.decide_us` later, and as live about every other one knows the capacity of the tick
before. Prices are frozen unless the course is `priced`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gpuloop.actuators.envelope import EnvelopeConfig, EnvelopeState, apply_envelope, delta_limits
from gpuloop.loop.decide.features import (
    SOON_US,
    Facts,
    guard_features,
    pool_features,
    table,
)
from gpuloop.loop.decide.observation import (
    ARRIVING_US,
    PRICE_CEILING,
    PRICE_FLOOR,
    SERVICE_FULL,
    UTILISATION_TARGET,
    WAIT_TARGET_US,
)
from gpuloop.loop.learn.experience import cut_between
from gpuloop.loop.learn.forecasts import Forecasts
from gpuloop.loop.learn.passed import Meter, Passed
from gpuloop.loop.learn.pool_memory import ChangeLog, Samples
from gpuloop.reasoning.rule import RuleConfig, rule_action
from gpuloop.schemas.policy import (
    CONTROL_TICK_US,
    DIMENSIONS,
    EPOCH_US,
    ON_DEMAND,
    PRICE,
    SPOT,
    Flags,
    Floats,
    Integers,
    PoolBatch,
)
from gpuloop.schemas.units import SECOND_US, USD_MICROS
from gpuloop.twin.pool_level import arrays, nodes
from gpuloop.twin.pool_level.sight import Sight
from gpuloop.twin.pool_level.worlds import PoolWorlds

NODES: Final = [ON_DEMAND, SPOT]


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late decisions are, as `simulate.LAGS` says of the live loop at its usual speed."""

    decide_us: int = 50 * SECOND_US
    """The most that passes between a tick and the decision on it; each is drawn below it."""
    stale_share: float = 0.5
    """How many looks know the capacity of the tick before."""

    def __post_init__(self) -> None:
        """Refuse decisions that come after the next tick."""
        if not (0 <= self.decide_us < CONTROL_TICK_US and 0.0 <= self.stale_share <= 1.0):
            raise ValueError("a decision comes before the next tick, and a share lies in 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a decision came to: the action that was carried out, (n, 4), and what it changed."""

    action: Floats
    cut: Floats
    """(n, 4) How far the envelope moved the wish, in delta limits, within [-1, 1]."""


class PoolCourse:
    """Worlds that pass tick by tick: `look`, then `act`."""

    def __init__(
        self,
        worlds: PoolWorlds,
        *,
        seed: int,
        rule: RuleConfig | None = None,
        envelope: EnvelopeConfig | None = None,
        lateness: Lateness | None = None,
        priced: bool = False,
        names: Sequence[str] | None = None,
    ) -> None:
        """Take over worlds that have just begun; `seed` is that of how late decisions are.

        Controllers know the rows by `names`, which need not differ from world to world.
        """
        self.worlds: Final = worlds
        self.rule: Final = rule or RuleConfig()
        self.envelope: Final = envelope or EnvelopeConfig()
        self.tick_us: Final = worlds.rules.start_us.copy()
        self._lateness: Final = lateness or Lateness()
        self._priced: Final = priced
        self._rng: Final = np.random.Generator(np.random.PCG64(seed))
        self._samples: Final = Samples(worlds.rows)
        self._log: Final = ChangeLog(worlds.rows, self.envelope)
        self._forecasts: Final = Forecasts(worlds.rows)
        self._last_steps = np.zeros((worlds.rows, len(DIMENSIONS)))
        self._newest = worlds.look()
        self._markup = worlds.state.quote / self._market()
        numbered = [f"pool{row}" for row in range(worlds.rows)]
        self._names: Final = tuple(numbered if names is None else names)
        self._late_us = 0
        self._meter: Final = Meter(worlds, self._newest)
        self.passed: Passed = self._meter.read(self._newest)
        """What passed between the last two looks."""
        self._batch: PoolBatch | None = None
        self._guards: EnvelopeState | None = None

    @property
    def seen(self) -> Sight:
        """Return what the last look saw, the newest of it, late or not."""
        return self._newest

    def look(self) -> PoolBatch:
        """Return what the decisions of this tick see; the worlds go on until they are taken.

        Raises:
            RuntimeError: decisions are due already.
            SlotsFull: a world has too many jobs at once.

        """
        if self._batch is not None:
            raise RuntimeError("act on what was seen before looking again")
        worlds = self.worlds
        before, now = self._newest, worlds.look()
        self._newest = now
        self.passed = self._meter.read(now)
        counts = worlds.state.counts
        demand = now.gpus_allocated + now.gpus_queued
        self._samples.add(
            demand,
            now.arrived_gpus,
            (counts[:, arrays.ARRIVED] - counts[:, arrays.TURNED_AWAY]).astype(float),
            counts[:, arrays.TURNED_AWAY].astype(float),
        )
        self._forecasts.learn(demand, now.arrived_gpus)
        # One draw for all: who is compared on the same worlds is late at the same ticks.
        stale = np.full(worlds.rows, self._rng.random() < self._lateness.stale_share)
        self._late_us = int(self._rng.integers(0, self._lateness.decide_us + 1))
        seen = _capacity_of(before, now, stale)
        batch, facts = self._see(seen, stale)
        self._guards = self._log.view(self.tick_us + self._late_us)
        wish = rule_action(batch, self.rule)
        told = table(
            pool_features(facts)
            | guard_features(self._last_steps, batch, wish, self._guards, self.envelope)
        )
        worlds.advance(self._late_us)
        self._batch = replace(
            batch,
            rule=wish,
            observation=told.observation,
            ages_us=told.ages_us,
            quality=told.quality,
        )
        return self._batch

    def act(self, wish: Floats) -> Done:
        """Let the envelope pass a wish, (n, 4), carry it out and go on to the next tick.

        Raises:
            RuntimeError: nothing was looked at.
            SlotsFull: a world has too many jobs at once.

        """
        batch = self._batch
        if batch is None:
            raise RuntimeError("look before you act")
        action = self.permitted(wish)
        self._batch = None
        limit = np.where(batch.delta > 0.0, batch.delta, 1.0)
        step = action - batch.present
        self._last_steps = np.round(step / limit, 4)
        now_us = self.tick_us + self._late_us
        answers = self.worlds.scale(action[:, NODES])
        refused: Flags = answers != nodes.DONE
        self._log.close(now_us, answers == nodes.NO_CAPACITY, step)
        done = action.copy()
        done[:, NODES] = np.where(refused[:, None], batch.present[:, NODES], action[:, NODES])
        if self._priced:
            self.worlds.price(action[:, PRICE] * USD_MICROS)
        self._log.add(now_us, batch.present, done)
        self.worlds.advance(CONTROL_TICK_US - self._late_us)
        self.tick_us[:] += CONTROL_TICK_US
        return Done(action=done, cut=cut_between(wish, action, batch.delta))

    def permitted(self, wish: Floats) -> Floats:
        """Return what the envelope would let through of a wish, (n, 4), without doing it.

        Raises:
            RuntimeError: nothing was looked at.

        """
        if self._batch is None or self._guards is None:
            raise RuntimeError("look before you ask")
        return apply_envelope(wish, self._batch, self._guards, self.envelope, noted=False).action

    def _see(self, seen: Sight, stale: Flags) -> tuple[PoolBatch, Facts]:
        """Return the batch without features and rule, and the facts that features are made of."""
        worlds, late_us = self.worlds, float(self._late_us)
        rules, state = worlds.rules, worlds.state
        n, now_us = worlds.rows, self.tick_us + self._late_us
        per_node = rules.gpus_per_node.astype(float)
        quote, market = state.quote / USD_MICROS, self._market() / USD_MICROS
        present = np.column_stack([state.desired, np.zeros(n), quote])
        low, high = self._bounds(present, market * self._markup, now_us)
        nodes_max = rules.nodes_max.astype(float)
        epoch = self.tick_us % EPOCH_US == 0
        violated = (rules.service > 0) & (state.violated > 0)
        crowding = np.maximum(0.0, state.utilisation / SERVICE_FULL - 1.0)
        shortage = state.service_gpus * crowding + np.where(violated, per_node, 0.0)
        queued = seen.gpus_queued + np.where(rules.service > 0, shortage, 0.0)
        demand = seen.gpus_allocated + queued
        trusted = self._forecasts.trusted()
        forecast = np.where(trusted[:, None, None], self._forecasts.gpus, demand[:, None, None])
        node_cost = np.where(rules.billings, seen.node_cost / USD_MICROS, np.inf)
        interruptions = np.where(rules.billings[:, 1], rules.reclaims, 0.0)
        everything, endless = np.ones(n, dtype=np.bool_), np.full(n, np.inf)
        batch = PoolBatch(
            pools=self._names,
            tick_us=self.tick_us.copy(),
            observation=np.zeros((n, 0)),
            ages_us=np.zeros((n, 0), dtype=np.int64),
            quality=np.zeros((n, 0)),
            present=present,
            low=low,
            high=high,
            delta=delta_limits(
                present=present,
                low=low,
                high=high,
                nodes_max=nodes_max,
                price_epoch=epoch,
                config=self.envelope,
            ),
            rule=np.zeros_like(present),
            ready_nodes=seen.ready,
            nodes_min=rules.nodes_min.astype(float),
            nodes_max=nodes_max,
            gpus_per_node=per_node,
            gpus_allocated=seen.gpus_allocated,
            gpus_queued=queued,
            oldest_wait_us=np.where(seen.jobs_queued > 0, now_us - seen.oldest_us, 0),
            nodes_arriving=_due_by(seen, now_us + ARRIVING_US),
            gpus_demanded_peak=np.maximum(self._samples.peak, demand),
            forecast_gpus=forecast,
            forecast_trusted=trusted,
            running_jobs=seen.running_jobs,
            jobs_at_risk=np.zeros(n),
            node_cost=node_cost,
            market_price=market,
            reference_price=market * self._markup,
            interruptions=interruptions,
            budget=endless,
            fleet=np.arange(n),
            fleet_budget=endless,
            utilisation_target=np.full(n, UTILISATION_TARGET),
            capacity_fresh=everything,
            demand_fresh=everything,
            telemetry_fresh=everything,
            market_fresh=everything,
            price_epoch=epoch,
        )
        arrived_gpus, arrived_jobs, refused_jobs = self._samples.since_first()
        facts = Facts(
            now_us=now_us.astype(float),
            tick_age_us=np.full(n, late_us),
            demand_age_us=np.full(n, late_us),
            capacity_age_us=late_us + np.where(stale, float(CONTROL_TICK_US), 0.0),
            forecast_age_us=np.full(n, late_us),
            offer_age_us=np.full(n, late_us),
            service_age_us=np.full(n, late_us),
            wait_target_us=np.full(n, float(WAIT_TARGET_US)),
            whole=everything,
            gpus_per_node=per_node,
            gpus_allocated=seen.gpus_allocated,
            gpus_queued=queued,
            jobs_queued=seen.jobs_queued,
            waited_us=seen.waited_us + seen.jobs_queued * late_us,
            oldest_wait_us=batch.oldest_wait_us.astype(float),
            window_minutes=np.full(n, self._samples.minutes),
            arrived_gpus=arrived_gpus,
            arrived_jobs=arrived_jobs,
            refused_jobs=refused_jobs,
            nodes_max=nodes_max,
            ready=seen.ready,
            ordered=seen.ordered,
            soon=_due_by(seen, now_us + SOON_US),
            service_utilisation=np.where(rules.service > 0, state.utilisation, 0.0),
            first_token_p95_us=np.where(rules.service > 0, state.first_token_us, 0).astype(float),
            readings=_readings(seen, per_node),
            telemetry_quality=np.ones(n),
            asked=present[:, NODES],
            forecast_gpus=forecast,
            forecast_trusted=trusted,
            quote=quote,
            node_cost=node_cost,
            offers_known=everything,
            market=market,
            interruptions=interruptions,
        )
        return batch, facts

    def _bounds(
        self, present: Floats, reference: Floats, now_us: Integers
    ) -> tuple[Floats, Floats]:
        """Return the least and the most of each dimension, (n, 4) each, as the live loop has it."""
        rules = self.worlds.rules
        low, high = np.zeros_like(present), np.zeros_like(present)
        base = np.where(rules.billings[:, 0], ON_DEMAND, SPOT)
        rows = np.arange(len(present))
        low[rows, base] = rules.nodes_min
        high[:, NODES] = np.where(rules.billings, rules.nodes_max[:, None], 0)
        closed = self._log.closed_until_us > now_us[:, None]
        high[:, NODES] = np.where(
            closed, np.minimum(high[:, NODES], present[:, NODES]), high[:, NODES]
        )
        low[:, NODES] = np.minimum(low[:, NODES], high[:, NODES])
        quote = present[:, PRICE]
        low[:, PRICE] = PRICE_FLOOR * reference if self._priced else quote
        high[:, PRICE] = PRICE_CEILING * reference if self._priced else quote
        return low, high

    def _market(self) -> Floats:
        """Return what a GPU-hour costs upstream, (n,) US dollars' millionths."""
        rules, state = self.worlds.rules, self.worlds.state
        cost = self._newest.node_cost / rules.gpus_per_node[:, None]
        found: Floats = np.where(rules.billings[:, 0], cost[:, 0], cost[:, 1])
        return np.where(found > 0.0, found, state.quote)


def _capacity_of(before: Sight, now: Sight, stale: Flags) -> Sight:
    """Return what is seen now, but where it is stale the capacity that was seen before."""
    return now._replace(
        **{
            name: np.where(
                stale.reshape(-1, *[1] * (getattr(now, name).ndim - 1)),
                getattr(before, name),
                getattr(now, name),
            )
            for name in ("ready", "ordered", "arrivals_us", "node_cost")
        }
    )


def _due_by(seen: Sight, until_us: Integers) -> Floats:
    due: Floats = (seen.arrivals_us <= until_us[:, None]).sum(axis=1).astype(float)
    return due


def _readings(seen: Sight, per_node: Floats) -> Floats:
    """Return utilisation, and throttling, which does not occur at this level, (n, 2, 3)."""
    gpus = seen.ready.sum(axis=1) * per_node
    readings = np.zeros((len(gpus), 2, 3))
    readings[:, 0, 0] = seen.busy_gpus / np.maximum(gpus, 1.0)
    readings[:, :, 2] = 1.0
    return readings
