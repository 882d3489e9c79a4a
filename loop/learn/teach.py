"""Train a policy in the twin and let it earn its alpha: what `gpuloop train` runs.

It learns in the environment of `environment`, whose transitions are those that the learner's join
would make of the same decisions. Three parts, each with its own world: a randomly pushed rule fits
the normaliser and fills the buffer, then the policy explores and trains, then the check runs days
that training never saw, policy and rule on the same draws.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from gpuloop.loop.children import end_with
from gpuloop.loop.learn.environment import Course, FleetVecEnv
from gpuloop.loop.learn.experience import ACTION_SIZE, Transition
from gpuloop.loop.learn.gate import ALPHAS, Gate, earn_alpha
from gpuloop.loop.learn.simulate import FleetSimulation, Offsets, offsets_of, rule_alone
from gpuloop.loop.learn.spaces import fit_normaliser
from gpuloop.loop.learn.trainer import Trainer, TrainerConfig
from gpuloop.reasoning.actor import Actor
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import TwinConfig

DAY_US: Final = 24 * HOUR_US
WARM_UP_US: Final = 6 * HOUR_US
HOUR_TICKS: Final = HOUR_US // CONTROL_TICK_US
FIRST_DECISION: Final = 2
"""Control ticks until a new world's first decision: the fleet is claimed first."""

EXPLORATION_BLOCK: Final = 5
"""Control ticks for which one random offset is held while the buffer fills: capacity answers to
what is wished for minutes, not to what flickers."""

Progress = Callable[[str, float], None]
"""Told what is going on and the share of it that is done."""


class Curriculum(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which weeks train and which judge, and how long training lasts."""

    train_from_us: int
    train_days: float
    check_from_us: int
    check_days: int
    updates_per_transition: float = 1.0
    random_days: float = 0.5


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """What training made."""

    actor: ActorSpec
    normaliser: Normaliser
    weights: bytes
    transitions: int
    updates: int


def teach(
    trainer_config: TrainerConfig,
    curriculum: Curriculum,
    twin: TwinConfig,
    *,
    traces: Path | None,
    seed: int,
    progress: Progress,
    device: str = "cpu",
) -> Lesson:
    """Train a policy on the training days and return it; the same arguments give the same bytes."""
    config = msgspec.structs.replace(twin, start_us=curriculum.train_from_us, seed=seed + 1)
    minutes = max(round(24 * HOUR_TICKS * curriculum.random_days), 1)
    made = list(wander(Course(config, traces=traces), minutes, seed, progress))
    normaliser = fit_normaliser(np.stack([one.observation for one in made]))

    config = msgspec.structs.replace(config, seed=seed)
    course = Course(config, traces=traces, normaliser=normaliser)
    env = FleetVecEnv(course)
    trainer = Trainer(trainer_config, seed=seed, normaliser=normaliser, env=env, device=device)
    trainer.add(made)
    minutes = round(24 * HOUR_TICKS * curriculum.train_days)
    total = (minutes - FIRST_DECISION) * env.num_envs

    def tell(done: int) -> None:
        if done // env.num_envs % HOUR_TICKS == 0 or done == total:
            what = f"training: {done:,} transitions, {trainer.updates:,} updates"
            progress(what, done / total)

    trainer.learn(total, updates_per_transition=curriculum.updates_per_transition, tell=tell)
    spec, weights = trainer.export()
    return Lesson(
        actor=spec,
        normaliser=normaliser,
        weights=weights,
        transitions=len(made) + total,
        updates=trainer.updates,
    )


def wander(course: Course, ticks: int, seed: int, progress: Progress) -> Iterator[Transition]:
    """Push the rule about at random for some ticks and yield the transitions, a row per pool.

    The course must show its observations as they are.
    """
    rng = np.random.default_rng(seed)
    observations = course.begin()
    actions = np.zeros((len(course.pools), ACTION_SIZE), np.float32)
    for tick in range(ticks):
        if tick % EXPLORATION_BLOCK == 0:
            actions = rng.uniform(-1.0, 1.0, actions.shape).astype(np.float32)
        step = course.step(actions)
        for row, reward in enumerate(step.rewards):
            yield Transition(observations[row], actions[row], reward, step.observations[row])
        observations = step.observations
        if (tick + 1) % HOUR_TICKS == 0:
            progress("filling the buffer", (tick + 1) / ticks)


class _Day(msgspec.Struct, frozen=True):
    """One day of the check under one alpha, as a worker process is told it."""

    twin: TwinConfig
    traces: str
    start_us: int
    alpha: float
    weights: bytes
    actor: ActorSpec
    normaliser: Normaliser


def check(
    lesson: Lesson,
    curriculum: Curriculum,
    twin: TwinConfig,
    *,
    traces: Path | None,
    seed: int,
    workers: int,
    progress: Progress,
    alphas: Sequence[float] = ALPHAS,
) -> Gate:
    """Run every alpha and the rule on the same held-out days and return the alpha it earned.

    Each day is a world of its own that starts from the trace's running jobs; its first hours are
    not scored, so that the day before does not decide the day.
    """
    starts = [curriculum.check_from_us + day * DAY_US for day in range(curriculum.check_days)]
    days = [
        _Day(
            twin=msgspec.structs.replace(twin, seed=seed),
            traces=str(traces) if traces is not None else "",
            start_us=start,
            alpha=alpha,
            weights=lesson.weights,
            actor=lesson.actor,
            normaliser=lesson.normaliser,
        )
        for start in starts
        for alpha in (0.0, *alphas)
    ]
    what = f"checking {len(starts)} days at {len(alphas)} alphas"
    progress(what, 0.0)
    earned: dict[tuple[int, float], float] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=end_with, initargs=(os.getpid(),)
    ) as pool:
        for done, (day, usd) in enumerate(zip(days, pool.map(_score, days), strict=True), start=1):
            earned[day.start_us, day.alpha] = usd
            progress(what, done / len(days))
    differences = {
        alpha: [earned[start, alpha] - earned[start, 0.0] for start in starts] for alpha in alphas
    }
    return earn_alpha(differences)


def _score(day: _Day) -> float:
    """Return what a day earned after its warm-up, in US dollars."""
    config = msgspec.structs.replace(day.twin, start_us=day.start_us)
    offsets: Offsets = rule_alone
    if day.alpha > 0:
        offsets = offsets_of(
            Actor.from_safetensors(day.weights, day.actor, day.normaliser), day.alpha
        )
    traces = Path(day.traces) if day.traces else None
    fleet = FleetSimulation(config, traces=traces, offsets=offsets)
    before = fleet.run(fleet.start_us + WARM_UP_US)
    whole = fleet.run(fleet.start_us + WARM_UP_US + DAY_US)
    return whole.usd - before.usd
