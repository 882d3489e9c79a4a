"""One deliberation: from the state to decisions and what they lead to.

Observe, wish, guard, draft, arbitrate, record, in this order and for all pools at once, so that
budgets and the arbiter see the fleet. The record of a decision precedes what it leads to. Looking
and deciding are two acts, because in a training environment the offsets come in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Final

import numpy as np

from gpuloop.actuators import commands
from gpuloop.actuators.commands import Origin, Tariff
from gpuloop.actuators.envelope import (
    ASKED,
    REHEARSED,
    SENT,
    EnvelopeConfig,
    EnvelopeState,
    apply_envelope,
    migration_budget,
)
from gpuloop.loop.decide.demand import Priced, learn_demand, with_prices
from gpuloop.loop.decide.governance import DECIDED, is_frozen, modes_of, obstacle
from gpuloop.loop.decide.memory import PoolMemory, envelope_view
from gpuloop.loop.decide.observation import anchor_price, observe_pools
from gpuloop.loop.decide.policies import Actors, Choice, choose, rule_only
from gpuloop.loop.decide.record import Scene, decide_record, reasons
from gpuloop.loop.decide.release import Draft, draft, settle
from gpuloop.loop.decide.state import DeciderState, movable_jobs, surroundings
from gpuloop.loop.decide.suspects import Suspicion
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.reasoning.rule import RuleConfig, with_offsets
from gpuloop.schemas.component import Context, Output
from gpuloop.schemas.identity import decision_id, derived_event_id
from gpuloop.schemas.messages import Command
from gpuloop.schemas.messages.actions import Actuator, Mode, PriceTo, ScaleTo
from gpuloop.schemas.messages.decisions import MAX_COMMANDS
from gpuloop.schemas.policy import (
    EPOCH_US,
    MIGRATION,
    ON_DEMAND,
    PRICE,
    SPOT,
    Floats,
    PoolBatch,
)
from gpuloop.schemas.units import USD_MICROS

TIERS: Final[Mapping[Mode, int]] = {
    "auto": SENT,
    "advise": ASKED,
    "shadow": REHEARSED,
    "off": REHEARSED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mind:
    """What a decider decides with; nothing here changes while it runs."""

    fleet: str
    rule: RuleConfig = field(default_factory=RuleConfig)
    envelope: EnvelopeConfig = field(default_factory=EnvelopeConfig)
    actors: Actors = field(default_factory=Actors)
    pricing: PricingConfig | None = None
    """How prices are learned; None leaves them to the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is seen of some pools at one moment; `now_us` of `ctx` is that moment."""

    tick_us: int
    ctx: Context
    memories: Sequence[PoolMemory]
    modes: Sequence[Mapping[Actuator, Mode]]
    envelope: EnvelopeState
    batch: PoolBatch
    priced: Priced | None = None


def deliberate(
    mind: Mind,
    state: DeciderState,
    tick_us: int,
    ctx: Context,
    suspicion: Suspicion | None = None,
) -> list[Output]:
    """Return the decisions of one tick, or the one reflex to a suspicion, and what follows."""
    if suspicion is None:
        return decide(mind, state, look(mind, state, tick_us, ctx))
    view = look(mind, state, tick_us, ctx, [suspicion.pool])
    view = replace(view, batch=replace(view.batch, rule=_evacuation(view.batch)))
    return _conclude(mind, state, view, rule_only(view.batch), "node")


def look(
    mind: Mind,
    state: DeciderState,
    tick_us: int,
    ctx: Context,
    reflex_of: Sequence[str] | None = None,
) -> View:
    """Return what is seen of all pools, in the order of their names, or of those of a reflex.

    At a price epoch what tenants said since the last one is learned from, once.
    """
    names = sorted(state.pools) if reflex_of is None else reflex_of
    memories = [state.pools[name] for name in names]
    around = surroundings(state, ctx.now_us)
    for memory in memories:
        anchor_price(memory, around, ctx.now_us)
    modes = [modes_of(state.governance, name) for name in names]
    envelope = envelope_view(
        memories,
        [_virtual(mode) for mode in modes],
        [is_frozen(state.governance, (name,), ctx.now_us) for name in names],
        [TIERS[mode["scaling"]] for mode in modes],
    )
    batch = observe_pools(
        memories,
        around,
        envelope,
        tick_us=tick_us,
        now_us=ctx.now_us,
        rule=mind.rule,
        config=mind.envelope,
    )
    priced = None
    if mind.pricing is not None and reflex_of is None and tick_us % EPOCH_US == 0:
        for memory in memories:
            learn_demand(memory)
        batch, priced = with_prices(batch, memories, mind.pricing, mind.rule)
    return View(
        tick_us=tick_us,
        ctx=ctx,
        memories=memories,
        modes=modes,
        envelope=envelope,
        batch=batch,
        priced=priced,
    )


def decide(
    mind: Mind, state: DeciderState, view: View, offsets: Floats | None = None
) -> list[Output]:
    """Return the decisions on a view of all pools, and what follows.

    `offsets` (n, 4) in [-1, 1] act at alpha 1 in place of the policies that are staged.
    """
    choice = choose(
        state.library, mind.actors, state.governance, view.memories, view.batch, view.ctx, offsets
    )
    return _conclude(mind, state, view, choice, "cluster")


def _conclude(
    mind: Mind, state: DeciderState, view: View, choice: Choice, level: str
) -> list[Output]:
    """Return what a choice comes to: the records first, one per pool, then what follows."""
    batch, ctx, epoch = view.batch, view.ctx, state.governance.epoch
    wish = with_offsets(batch, choice.joint, mind.rule)
    scene = Scene(
        fleet=mind.fleet,
        level=level,
        epoch=epoch,
        tick_us=view.tick_us,
        batch=batch,
        choice=choice,
        executed=apply_envelope(wish, batch, view.envelope, mind.envelope, choice.out_of_range),
        modes=view.modes,
        decision_ids=[
            decision_id(mind.fleet, name, level, epoch, view.tick_us) for name in batch.pools
        ],
        forecasts=state.forecasts,
        envelope_digest=mind.envelope.digest,
        rule=mind.rule,
        priced=view.priced,
    )
    rows = range(len(batch.pools))
    drafts = [_drafts(mind, state, scene, row, view.envelope, ctx) for row in rows]
    settled = settle(
        state.desk,
        state.pools,
        [one for row in drafts for one in row],
        ctx,
        obstacle(state.governance, ctx.wall_us),
    )
    decisions = [decide_record(scene, row, drafts[row], settled) for row in rows]
    if level == "cluster":
        for row, memory in enumerate(view.memories):
            memory.last_steps = _steps(batch, row, decisions[row].executed_action)
    records = [
        Output(
            topic="decisions",
            key=decision.pool,
            message=decision,
            event_id=derived_event_id("decisions", [decision.decision_id]),
            time_us=ctx.now_us,
        )
        for decision in decisions
    ]
    return [*records, *settled.outputs]


def _virtual(modes: Mapping[Actuator, Mode]) -> frozenset[Actuator]:
    return frozenset(actuator for actuator in DECIDED if modes[actuator] == "shadow")


def _evacuation(batch: PoolBatch) -> Floats:
    wish = batch.present.copy()
    wish[:, MIGRATION] = batch.high[:, MIGRATION]
    return wish


def _steps(batch: PoolBatch, row: int, executed: tuple[float, ...]) -> tuple[float, ...]:
    limit = np.where(batch.delta[row] > 0.0, batch.delta[row], 1.0)
    steps = (np.array(executed) - batch.present[row]) / limit
    return tuple(np.round(steps, 4).tolist())


def _drafts(
    mind: Mind,
    state: DeciderState,
    scene: Scene,
    row: int,
    envelope: EnvelopeState,
    ctx: Context,
) -> list[Draft]:
    batch, pool = scene.batch, scene.batch.pools[row]
    memory, modes, why = state.pools[pool], scene.modes[row], reasons(scene, row)
    action = scene.executed.action[row]
    origin = Origin(
        fleet=mind.fleet,
        decision_id=scene.decision_ids[row],
        pool=pool,
        epoch=scene.epoch,
        now_us=ctx.now_us,
    )
    found = []
    before, to = _scale_to(batch.present[row]), _scale_to(action)
    if modes["scaling"] != "off" and to != before:
        on_demand, spot = np.where(np.isfinite(batch.node_cost[row]), batch.node_cost[row], 0.0)
        tariff = Tariff(
            gpus_per_node=memory.latest.gpus_per_node,
            on_demand_usd_per_hour=float(on_demand),
            spot_usd_per_hour=float(spot),
        )
        found.append(
            commands.scale(
                origin,
                before=before,
                to=to,
                generation=memory.latest.generations.get("scaling", 0),
                tariff=tariff,
                mode=modes["scaling"],
                reason=why["scaling"],
            )
        )
    quote, new_quote = _price_to(batch.present[row, PRICE]), _price_to(action[PRICE])
    if modes["pricing"] != "off" and new_quote != quote:
        found.append(
            commands.price(
                origin,
                before=quote,
                to=new_quote,
                generation=memory.latest.generations.get("pricing", 0),
                mode=modes["pricing"],
                reason=why["pricing"],
            )
        )
    if modes["migration"] != "off" and action[MIGRATION] > 0.0:
        budget = float(migration_budget(batch.running_jobs, mind.envelope)[row])
        left = max(0.0, budget - float(envelope.migrated[row]))
        share = min(ceil(float(action[MIGRATION]) * left), MAX_COMMANDS - len(found))
        found.extend(_moves(state, origin, modes["migration"], share, ctx))
    return [draft(command) for command in found]


def _moves(
    state: DeciderState, origin: Origin, mode: Mode, most: int, ctx: Context
) -> list[Command]:
    """Return moves of at most `most` jobs, those included that wait for a person's yes."""
    nodes = {name: one for name, one in state.suspects.nodes.items() if one.pool == origin.pool}
    avoid = tuple(sorted(nodes))
    jobs = [
        job
        for job in movable_jobs(state, origin.pool)
        if not is_frozen(state.governance, (job.job,), ctx.now_us)
    ]
    asked = {
        one.command.target
        for one in state.desk.waiting.values()
        if one.command.actuator == "migration" and one.command.pool == origin.pool
    }
    waiting = [job for job in jobs if job.job in asked]
    others = [job for job in jobs if job.job not in asked]
    return [
        commands.migrate(
            origin,
            job=job,
            avoid=avoid,
            mode=mode,
            reason="; ".join(nodes[node].reason for node in avoid if node in job.nodes),
        )
        for job in [*waiting, *others[: max(0, most - len(asked))]][:most]
    ]


def _scale_to(action: Floats) -> ScaleTo:
    return ScaleTo(on_demand_nodes=round(action[ON_DEMAND]), spot_nodes=round(action[SPOT]))


def _price_to(usd: float) -> PriceTo:
    return PriceTo(usd_micros_per_gpu_hour=round(float(usd) * USD_MICROS))
