"""Policies at the decider: which versions may act, and what each would do.

What cannot be had is counted and never stops the rule, which needs none of this.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from gpuloop.loop.decide.governance import Governance, assignment_of, is_retired, stage_of
from gpuloop.loop.decide.library import KEPT_VERSIONS, Library, count, staged_policies
from gpuloop.loop.decide.memory import Draw, PoolMemory
from gpuloop.reasoning.actor import ACTION_DECIMALS, Actor, BadActor
from gpuloop.schemas.component import Context
from gpuloop.schemas.identity import sha256_of
from gpuloop.schemas.messages import PolicyVersion
from gpuloop.schemas.messages.control import EVERY
from gpuloop.schemas.policy import (
    DIMENSIONS,
    EPOCH_US,
    MIGRATION,
    Flags,
    Floats,
    PoolBatch,
)

MAX_SHADOWS: Final = 4
UNASKED_SHADOWS: Final = 2
"""Newest versions that are evaluated as shadows though nobody staged them."""

RULE: Final = "rule"
EXPLORATION_FLOOR: Final = 0.02
EXPLORATION_STEP: Final = 0.5
"""Size of an exploring offset, in delta limits."""

NO_DIGEST: Final = sha256_of("none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What policies wish for a batch, before the envelope. Arrays have one row per pool."""

    policy_action: Floats
    joint: Floats
    alpha: Floats
    exploration: Floats
    log_probability: Floats
    out_of_range: Flags
    policy_ids: tuple[str, ...]
    policy_digests: tuple[str, ...]
    normaliser_digests: tuple[str, ...]
    arms: tuple[str, ...]
    probabilities: tuple[float, ...]
    actors: tuple[Actor | None, ...]
    shadows: tuple[dict[str, tuple[float, ...]], ...]


@dataclass(frozen=True, slots=True)
class Acting:
    """The policy that acts on one pool in this tick."""

    policy_id: str = RULE
    actor: Actor | None = None
    alpha: float = 0.0
    exploration: float = 0.0
    arm: str = RULE
    probability: float = 1.0


@dataclass(slots=True)
class Actors:
    """Actors built from a library, kept while it holds what they were built from.

    Nothing but work is saved here: what a library no longer holds is not to be had, so that a
    decider decides the same before a restart and after it.
    """

    built: dict[str, tuple[PolicyVersion, Actor | None]] = field(default_factory=dict)

    def get(self, library: Library, policy_id: str) -> Actor | None:
        """Return the actor of a version, or None while it cannot be had."""
        version = library.versions.get(policy_id)
        if version is None or version.actor is None or version.normaliser is None:
            return None
        data = library.weights.get(version.weights_digest)
        if data is None:
            return None
        known = self.built.get(policy_id)
        if known is None or known[0] != version:
            if len(self.built) >= 4 * KEPT_VERSIONS:
                self.built.clear()
            try:
                actor = Actor.from_safetensors(data, version.actor, version.normaliser)
            except BadActor:
                actor = None
            known = self.built[policy_id] = (version, actor)
        return known[1]


def acting(
    library: Library, actors: Actors, governance: Governance, pool: str, now_us: int
) -> Acting:
    """Return who acts on a pool: the champion, the assigned arm of an experiment, or the rule."""
    stage = stage_of(governance, pool)
    assignment = assignment_of(governance, pool, now_us)
    arm, probability = (assignment.arm, assignment.probability) if assignment else (None, 1.0)
    if stage is None:
        return Acting(arm=arm or RULE, probability=probability)
    acts = arm == stage.policy_id or (arm is None and stage.stage == "champion")
    actor = actors.get(library, stage.policy_id) if acts else None
    if actor is None:
        if acts:
            count(library, "unavailable")
        return Acting(
            exploration=stage.exploration if acts else 0.0,
            arm=arm or RULE,
            probability=probability,
        )
    return Acting(
        policy_id=stage.policy_id,
        actor=actor,
        alpha=stage.alpha,
        exploration=stage.exploration,
        arm=arm or stage.stage,
        probability=probability,
    )


def choose(
    library: Library,
    actors: Actors,
    governance: Governance,
    memories: Sequence[PoolMemory],
    batch: PoolBatch,
    ctx: Context,
    offsets: Floats | None = None,
) -> Choice:
    """Return what the acting policies wish for every pool, and what the shadows would.

    `offsets` (n, 4), where given, act at alpha 1 in their place.
    """
    who = [acting(library, actors, governance, pool, ctx.now_us) for pool in batch.pools]
    policy = np.zeros_like(batch.present)
    strange = np.zeros(len(who), dtype=np.bool_)
    for row, one in enumerate(who):
        if one.actor is not None:
            seen = batch.observation[row : row + 1]
            policy[row] = one.actor(seen)[0]
            strange[row] = one.alpha > 0.0 and not one.actor.in_range(seen)[0]
    alpha = np.array([one.alpha for one in who])
    if offsets is not None:
        policy = np.clip(np.asarray(offsets, dtype=float), -1.0, 1.0)
        alpha = np.ones(len(who))
    draws = [
        _draw(memory, one.exploration, batch, row, ctx)
        for row, (memory, one) in enumerate(zip(memories, who, strict=True))
    ]
    offset = np.array([draw.offset for draw in draws]).reshape(policy.shape)
    joint = np.round(np.clip(alpha[:, None] * policy + offset, -1.0, 1.0), ACTION_DECIMALS)
    return Choice(
        policy_action=policy,
        joint=joint,
        alpha=alpha,
        exploration=offset,
        log_probability=np.array([draw.log_probability for draw in draws]),
        out_of_range=strange,
        policy_ids=tuple(one.policy_id for one in who),
        policy_digests=tuple(_policy_digest(library, one.policy_id) for one in who),
        normaliser_digests=tuple(_normaliser_digest(library, one.policy_id) for one in who),
        arms=tuple(one.arm for one in who),
        probabilities=tuple(one.probability for one in who),
        actors=tuple(one.actor for one in who),
        shadows=_shadow_wishes(library, actors, governance, batch, who),
    )


def rule_only(batch: PoolBatch) -> Choice:
    """Return the choice of the rule alone, for decisions that no policy has a part in."""
    n, zero = len(batch.pools), np.zeros_like(batch.present)
    return Choice(
        policy_action=zero,
        joint=zero,
        alpha=np.zeros(n),
        exploration=zero,
        log_probability=np.zeros(n),
        out_of_range=np.zeros(n, dtype=np.bool_),
        policy_ids=(RULE,) * n,
        policy_digests=(sha256_of(RULE),) * n,
        normaliser_digests=(NO_DIGEST,) * n,
        arms=(RULE,) * n,
        probabilities=(1.0,) * n,
        actors=(None,) * n,
        shadows=tuple({} for _ in batch.pools),
    )


def _shadow_wishes(
    library: Library,
    actors: Actors,
    governance: Governance,
    batch: PoolBatch,
    who: Sequence[Acting],
) -> tuple[dict[str, tuple[float, ...]], ...]:
    wishes: tuple[dict[str, tuple[float, ...]], ...] = tuple({} for _ in batch.pools)
    staged = staged_policies(governance)
    newest = sorted(library.versions.values(), key=lambda one: (-one.version, one.policy_id))
    unasked = [one.policy_id for one in newest if one.policy_id not in staged][:UNASKED_SHADOWS]
    asked = sorted(
        (stage.policy_id, stage.pool)
        for stage in governance.stages.values()
        if stage.stage == "shadow"
    )
    shadows = [*asked, *((name, EVERY) for name in unasked)]
    for policy_id, pool in shadows[:MAX_SHADOWS]:
        actor = actors.get(library, policy_id)
        if actor is None:
            continue
        actions = actor(batch.observation)
        for row, name in enumerate(batch.pools):
            asked_here = pool in (name, EVERY) and not is_retired(governance, name, policy_id)
            if asked_here and who[row].policy_id != policy_id:
                wishes[row][policy_id] = as_action(actions[row])
    return wishes


def as_action(values: Floats) -> tuple[float, ...]:
    """Return a row of an action array as a message holds it, which has no word for no number."""
    return tuple(np.nan_to_num(np.round(np.asarray(values, dtype=float), ACTION_DECIMALS)).tolist())


def _draw(memory: PoolMemory, share: float, batch: PoolBatch, row: int, ctx: Context) -> Draw:
    """Return the pool's exploration, drawn once per bucket and held.

    A finite mixture: no offset, or half a delta limit up or down in one dimension that has a
    choice. Every component has at least the floor's probability, and migration is never explored.
    """
    bucket = int(batch.tick_us[row]) // EPOCH_US * EPOCH_US
    held = memory.draw
    if held is not None and held.bucket_us == bucket and held.share == share:
        return held
    none = (0.0,) * len(DIMENSIONS)
    free = [
        dimension
        for dimension in range(len(DIMENSIONS))
        if dimension != MIGRATION and batch.high[row, dimension] > batch.low[row, dimension]
    ]
    if share <= 0.0 or not free:
        memory.draw = Draw(bucket_us=bucket, share=share, offset=none, log_probability=0.0)
        return memory.draw
    arms = [none]
    for dimension in free:
        for sign in (-1.0, 1.0):
            arm = list(none)
            arm[dimension] = sign * EXPLORATION_STEP
            arms.append(tuple(arm))
    each = max(EXPLORATION_FLOOR, share / (len(arms) - 1))
    probabilities = np.array([1.0 - each * (len(arms) - 1), *([each] * (len(arms) - 1))])
    rng = ctx.rng("exploration", batch.pools[row], bucket)
    picked = int(rng.choice(len(arms), p=probabilities))
    memory.draw = Draw(
        bucket_us=bucket,
        share=share,
        offset=arms[picked],
        log_probability=float(np.log(probabilities[picked])),
    )
    return memory.draw


def _policy_digest(library: Library, policy_id: str) -> str:
    version = library.versions.get(policy_id)
    return version.weights_digest if version is not None else sha256_of(policy_id)


def _normaliser_digest(library: Library, policy_id: str) -> str:
    version = library.versions.get(policy_id)
    if version is None or version.normaliser is None:
        return NO_DIGEST
    return sha256_of(msgspec.json.encode(version.normaliser))
