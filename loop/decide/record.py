"""The record of a decision: everything needed to judge it later, and nothing computed twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpuloop.actuators.envelope import Executed
from gpuloop.loop.decide.demand import Priced
from gpuloop.loop.decide.policies import Choice, as_action
from gpuloop.loop.decide.release import Draft, Settled
from gpuloop.reasoning.explain import (
    actor_influences,
    demand_words,
    price_words,
    rule_influences,
    rule_limits,
)
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.messages import Decision, Forecast
from gpuloop.schemas.messages.actions import Actuator, Mode
from gpuloop.schemas.messages.decisions import Adjustment, PriceNote
from gpuloop.schemas.policy import (
    DIMENSIONS,
    FEATURE_NAMES,
    FEATURE_VERSION,
    MIGRATION,
    ON_DEMAND,
    PRICE,
    SPOT,
    Floats,
    PoolBatch,
)
from gpuloop.schemas.units import MINUTE_US

STALE_US = 5 * MINUTE_US
"""Age from which an input is named as stale."""

MARKET_STALE_US = 120 * MINUTE_US
_MARKET_FEATURES = frozenset({"spot_discount", "market_ratio", "interruption_rate"})

MOVES: Mapping[Actuator, tuple[int, ...]] = {
    "scaling": (ON_DEMAND, SPOT),
    "pricing": (PRICE,),
    "migration": (MIGRATION,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One moment of deciding: what was seen, wished and allowed, for all pools of a batch."""

    fleet: str
    level: str
    epoch: int
    tick_us: int
    batch: PoolBatch
    choice: Choice
    executed: Executed
    modes: Sequence[Mapping[Actuator, Mode]]
    decision_ids: Sequence[str]
    forecasts: Mapping[str, Forecast]
    envelope_digest: str
    rule: RuleConfig
    priced: Priced | None = None

    def price_note(self, row: int) -> PriceNote | None:
        """Return what a pool's learned price rests on, None where the rule's is wished for."""
        quote = float(self.batch.present[row, PRICE])
        return self.priced.note(row, quote) if self.priced is not None else None


def reasons(scene: Scene, row: int) -> dict[Actuator, str]:
    """Return what a pool's commands give as their reason."""
    by = scene.choice.policy_ids[row]
    joint = scene.choice.joint[row]
    learned = f"; {by} asked for {joint[0]:+.2f}/{joint[1]:+.2f} steps" if any(joint[:2]) else ""
    return {
        "scaling": demand_words(scene.batch, row) + learned,
        "pricing": price_words(scene.batch, row, scene.price_note(row)),
    }


def decide_record(scene: Scene, row: int, drafts: Sequence[Draft], settled: Settled) -> Decision:
    """Return the decision about one pool, with what arbiter and modes left of the action."""
    batch, choice = scene.batch, scene.choice
    action, adjustments = _carried_out(scene, row, drafts, settled)
    forecast = scene.forecasts.get(batch.pools[row])
    actor = choice.actors[row]
    influences = (
        actor_influences(actor, batch.observation[row], alpha=float(choice.alpha[row]))
        if actor is not None and choice.alpha[row] > 0.0
        else rule_influences(batch, row)
    )
    summaries = [one.command.summary for one in drafts if one.command.command_id in settled.listed]
    return Decision(
        fleet=scene.fleet,
        decision_id=scene.decision_ids[row],
        pool=batch.pools[row],
        level="node" if scene.level == "node" else "cluster",
        epoch=scene.epoch,
        tick_us=scene.tick_us,
        dimensions=DIMENSIONS,
        feature_version=FEATURE_VERSION,
        observation=_numbers(batch.observation[row]),
        feature_ages_us=tuple(batch.ages_us[row].tolist()),
        feature_quality=_numbers(batch.quality[row]),
        feasible_low=_numbers(batch.low[row]),
        feasible_high=_numbers(batch.high[row]),
        delta_limit=_numbers(batch.delta[row]),
        rule_action=_numbers(batch.rule[row]),
        policy_action=as_action(choice.policy_action[row]),
        joint_action=as_action(choice.joint[row]),
        executed_action=_numbers(action),
        alpha=float(choice.alpha[row]),
        exploration=as_action(choice.exploration[row]),
        log_probability=float(choice.log_probability[row]),
        policy_id=choice.policy_ids[row],
        policy_digest=choice.policy_digests[row],
        normaliser_digest=choice.normaliser_digests[row],
        envelope_digest=scene.envelope_digest,
        arm=choice.arms[row],
        assignment_probability=choice.probabilities[row],
        forecast_id=forecast.forecast_id if forecast is not None else "",
        modes=dict(scene.modes[row]),
        adjustments=tuple(adjustments[:256]),
        command_ids=tuple(
            one.command.command_id for one in drafts if one.command.command_id in settled.listed
        ),
        stale_inputs=_stale(batch, row),
        influences=influences,
        shadow_actions=choice.shadows[row],
        summary="; ".join(summaries)[:4000] or f"{batch.pools[row]}: no change",
        why_not=_why_not(scene, row, adjustments),
        pricing=scene.price_note(row),
    )


def _carried_out(
    scene: Scene, row: int, drafts: Sequence[Draft], settled: Settled
) -> tuple[Floats, list[Adjustment]]:
    """Return what arbiter and modes left of a pool's action, and what was changed on the way."""
    action = scene.executed.action[row].copy()
    adjustments = list(scene.executed.adjustments[row])
    for actuator, columns in MOVES.items():
        why = _withheld(actuator, scene.modes[row].get(actuator, "off"), drafts, settled)
        if why is None:
            continue
        arbiter, reason = why
        for column in columns:
            rest = 0.0 if column == MIGRATION else float(scene.batch.present[row, column])
            if action[column] != rest:
                adjustments.append(
                    Adjustment(
                        stage="arbiter" if arbiter else "mode",
                        dimension=DIMENSIONS[column],
                        before=float(action[column]),
                        after=rest,
                        reason=reason,
                    )
                )
                action[column] = rest
    return action, adjustments


def _numbers(values: Floats) -> tuple[float, ...]:
    """Return a row as a message holds it: what is no number could be written and never read."""
    return tuple(np.nan_to_num(values).tolist())


def _withheld(
    actuator: Actuator, mode: Mode, drafts: Sequence[Draft], settled: Settled
) -> tuple[bool, str] | None:
    """Return why an actuator's part of the action was not carried out, or None if it was."""
    own = [one for one in drafts if one.command.actuator == actuator]
    if not own:
        return False, "off" if mode == "off" else "nothing left to do"
    held = [settled.held[one.command.command_id] for one in own
            if one.command.command_id in settled.held]  # fmt: skip
    return held[0] if len(held) == len(own) else None


def _stale(batch: PoolBatch, row: int) -> tuple[str, ...]:
    return tuple(
        name
        for name, age, quality in zip(
            FEATURE_NAMES, batch.ages_us[row].tolist(), batch.quality[row].tolist(), strict=True
        )
        if quality > 0.0 and age > (MARKET_STALE_US if name in _MARKET_FEATURES else STALE_US)
    )


def _why_not(scene: Scene, row: int, adjustments: Sequence[Adjustment]) -> str:
    guards = [
        one for one in adjustments if one.dimension in (DIMENSIONS[ON_DEMAND], DIMENSIONS[SPOT])
    ]
    if guards:
        one = guards[-1]
        way = "more" if one.after < one.before else "less"
        return f"not {way}: {one.reason}"[:4000]
    return rule_limits(scene.batch, row, scene.rule)
