"""A training round on recorded experience: a pure function of offsets, seed and configuration.

Experience is whatever `decisions` and `rewards` hold up to a cut, in an order of its own (tick,
then pool), so that how the two topics interleaved does not matter, as long as their reader leaves
alone what is ahead. A round starts from its parent's
actor with a fresh critic and takes a fixed number of gradient steps; running it again on the same
offsets gives the same bytes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from gpuloop.loop.learn import registry
from gpuloop.loop.learn.experience import ExperienceJoin, Transition
from gpuloop.loop.shells.fold import receive
from gpuloop.schemas.codec import BadInput, Record
from gpuloop.schemas.messages import Decision, PolicyVersion, Reward
from gpuloop.schemas.messages.learning import OffsetRange

MAX_TRANSITIONS: Final = 100_000
STEPS_AT_ONCE: Final = 50
"""Gradient steps between two looks at whether to stop: well under a second."""


class RoundConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a round is due, and how long it trains."""

    first_after: int = 150
    every: int = 360
    gradient_steps: int = 400

    def due(self, fresh: int, *, rounds_done: int) -> bool:
        """Say whether the transitions since the last round are enough for another."""
        return fresh >= (self.every if rounds_done else self.first_after)


@dataclass
class Experience:
    """Transitions of one fleet so far, and the offsets they came from.

    `fresh` counts those that the last round has not seen; `trained` holds the last offsets it had.
    """

    fleet: str

    joins: dict[int, ExperienceJoin] = field(default_factory=dict)
    """By partition, which a pool's decisions and rewards have in common."""
    transitions: dict[tuple[int, str], Transition] = field(default_factory=dict)
    ranges: dict[tuple[str, int], OffsetRange] = field(default_factory=dict)
    trained: dict[tuple[str, int], int] = field(default_factory=dict)
    fresh: int = 0

    def take(self, record: Record) -> None:
        """Fold one record of `decisions` or `rewards` in.

        Raises:
            BadInput: the record does not follow its contract; it is counted in the range all the
                same, because a rebuild meets it too.
        """
        self._count(record)
        message = receive(record, self.fleet).message
        join = self.joins.setdefault(record.partition, ExperienceJoin())
        if isinstance(message, Decision):
            made = join.decision(message)
        elif isinstance(message, Reward):
            made = join.reward(message)
        else:
            raise BadInput("unknown_type", f"{type(message).__name__} on {record.topic}")
        unseen = record.offset > self.trained.get((record.topic, record.partition), -1)
        for key, transition in made:
            self.fresh += unseen and key not in self.transitions
            self.transitions[key] = transition
        while len(self.transitions) > MAX_TRANSITIONS:
            del self.transitions[min(self.transitions)]

    def _count(self, record: Record) -> None:
        at = (record.topic, record.partition)
        first = self.ranges[at].first if at in self.ranges else record.offset
        self.ranges[at] = OffsetRange(
            topic=record.topic, partition=record.partition, first=first, last=record.offset
        )

    def ahead(self) -> set[tuple[str, int]]:
        """Return the topics and partitions to read no further until their counterpart catches up.

        Of a partition that is one of the two topics at most.
        """
        return {
            (join.ahead, partition)
            for partition, join in self.joins.items()
            if join.ahead is not None
        }

    def trained_through(self, ranges: Iterable[OffsetRange]) -> None:
        """Take a round on these offsets as done."""
        self.trained = {(one.topic, one.partition): one.last for one in ranges}
        self.fresh = 0

    def in_order(self) -> list[Transition]:
        """Return the transitions by tick and pool."""
        return [self.transitions[key] for key in sorted(self.transitions)]


def train_round(
    experience: Experience,
    parent: PolicyVersion,
    parent_weights: bytes,
    *,
    fleet: str,
    version: int,
    seed: int,
    gradient_steps: int,
    created_wall_us: int,
    given_up: Callable[[], bool] = lambda: False,
) -> tuple[PolicyVersion, bytes] | None:
    """Train one version on what is there; the heavy imports happen here.

    Returns None when `given_up` became true meanwhile: a round that is cut short is no round, and
    the next start trains it again.

    Raises:
        ValueError: the parent has no actor, or there is less than a batch to learn from.
    """
    from gpuloop.loop.learn.trainer import Algorithm, Trainer, TrainerConfig

    if parent.actor is None or parent.normaliser is None:
        raise ValueError(f"{parent.policy_id} has no actor to start from")
    algorithm: Algorithm = "td3" if parent.algorithm == "td3" else "sac"
    config = TrainerConfig(algorithm=algorithm, hidden=parent.actor.hidden)
    trainer = Trainer(config, seed=seed + version, normaliser=parent.normaliser)
    trainer.start_from(parent_weights)
    transitions = experience.in_order()
    trainer.add(transitions)
    for done in range(0, gradient_steps, STEPS_AT_ONCE):
        if given_up():
            return None
        trainer.update(min(STEPS_AT_ONCE, gradient_steps - done))
    if trainer.updates == 0:
        raise ValueError(f"{len(transitions)} transitions are less than a batch")
    spec, weights = trainer.export()
    described = registry.describe(
        fleet=fleet,
        algorithm=algorithm,
        version=version,
        parent=parent.policy_id,
        created_wall_us=created_wall_us,
        actor=spec,
        normaliser=parent.normaliser,
        weights=weights,
        seed=seed + version,
        config={"gradient_steps": gradient_steps, **_flat(config)},
        trained_on=[experience.ranges[at] for at in sorted(experience.ranges)],
        summary=f"{len(transitions)} transitions from the stream, {gradient_steps} gradient steps",
    )
    return described, weights


def _flat(config: msgspec.Struct) -> dict[str, float | int | str | bool]:
    return {
        name: ",".join(map(str, value)) if isinstance(value, (tuple, list)) else value
        for name, value in msgspec.structs.asdict(config).items()
    }
