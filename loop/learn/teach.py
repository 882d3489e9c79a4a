"""Train a policy in the twin and let it earn its alpha: what `gpuloop train` runs.

The learner's own join makes transitions out of the simulated decisions and rewards, so a policy
learns here from exactly what it would learn from live. Three parts, each with its own weeks: the
rule alone runs first to fit the normaliser and fill the buffer, then the policy explores and
trains, then the check runs days that training never saw, policy and rule on the same draws.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from gpuloop.loop.learn.experience import ACTION_SIZE, ExperienceJoin, Transition
from gpuloop.loop.learn.gate import ALPHAS, Gate, earn_alpha
from gpuloop.loop.learn.simulate import FleetSimulation, Offsets, offsets_of, rule_alone
from gpuloop.loop.learn.trainer import Trainer, TrainerConfig, fit_normaliser
from gpuloop.reasoning.actor import Actor
from gpuloop.schemas.component import Received
from gpuloop.schemas.messages import Decision, Reward
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser
from gpuloop.schemas.policy import CONTROL_TICK_US, PoolBatch
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import TwinConfig

DAY_US: Final = 24 * HOUR_US
WARM_UP_US: Final = 6 * HOUR_US
EXPLORATION_BLOCK: Final = 5
"""Control ticks for which one random offset is held while the buffer fills: capacity answers to
what is wished for minutes, not to what flickers."""

Progress = Callable[[str, float], None]
"""Told what is going on and the share of it that is done."""


class Curriculum(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which weeks train and which judge, and how long training lasts."""

    train_from_us: int
    train_days: int
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
    observations, transitions = _first_day(twin, curriculum, traces, seed, progress)
    normaliser = fit_normaliser(observations)
    trainer = Trainer(trainer_config, seed=seed, normaliser=normaliser, device=device)
    trainer.add(transitions)
    taken = len(transitions)
    due = 0.0

    def explore(batch: PoolBatch) -> NDArray[Any]:
        return trainer.act(batch.observation.astype(np.float32), explore=True)

    def learn(made: Sequence[Transition]) -> None:
        nonlocal taken, due
        trainer.add(made)
        taken += len(made)
        due += len(made) * curriculum.updates_per_transition
        if due >= 16:
            trainer.update(int(due))
            due -= int(due)

    config = msgspec.structs.replace(twin, start_us=curriculum.train_from_us, seed=seed)
    fleet = FleetSimulation(config, traces=traces, offsets=explore)
    _listen(fleet, learn)
    for hour in range(24 * curriculum.train_days):
        fleet.simulation.run(fleet.start_us + (hour + 1) * HOUR_US)
        progress(
            f"training: {taken:,} transitions, {trainer.updates:,} updates",
            (hour + 1) / (24 * curriculum.train_days),
        )
    spec, weights = trainer.export()
    return Lesson(
        actor=spec,
        normaliser=normaliser,
        weights=weights,
        transitions=taken,
        updates=trainer.updates,
    )


def _first_day(
    twin: TwinConfig, curriculum: Curriculum, traces: Path | None, seed: int, progress: Progress
) -> tuple[NDArray[np.float32], list[Transition]]:
    """Return what a randomly pushed rule sees: observations to normalise by, and transitions."""
    rng = np.random.default_rng(seed)
    held: dict[int, NDArray[Any]] = {}

    def wander(batch: PoolBatch) -> NDArray[Any]:
        block = int(batch.tick_us[0]) // (EXPLORATION_BLOCK * CONTROL_TICK_US)
        if block not in held:
            held.clear()
            held[block] = rng.uniform(-1.0, 1.0, (len(batch.pools), ACTION_SIZE))
        return held[block][: len(batch.pools)]

    config = msgspec.structs.replace(twin, start_us=curriculum.train_from_us, seed=seed + 1)
    fleet = FleetSimulation(config, traces=traces, offsets=wander)
    made: list[Transition] = []
    _listen(fleet, made.extend)
    hours = max(round(24 * curriculum.random_days), 1)
    for hour in range(hours):
        fleet.simulation.run(fleet.start_us + (hour + 1) * HOUR_US)
        progress("filling the buffer", (hour + 1) / hours)
    return np.stack([one.observation for one in made]), made


def _listen(fleet: FleetSimulation, take: Callable[[Sequence[Transition]], None]) -> None:
    join = ExperienceJoin()

    def on_decision(event: Received) -> None:
        if isinstance(event.message, Decision):
            take([made for _, made in join.decision(event.message)])

    def on_reward(event: Received) -> None:
        if isinstance(event.message, Reward):
            take([made for _, made in join.reward(event.message)])

    fleet.simulation.watch("decisions", on_decision)
    fleet.simulation.watch("rewards", on_reward)


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
    earned: dict[tuple[int, float], float] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for done, (day, usd) in enumerate(zip(days, pool.map(_score, days), strict=True), start=1):
            earned[day.start_us, day.alpha] = usd
            progress(f"checking {len(starts)} days at {len(alphas)} alphas", done / len(days))
    differences = {
        alpha: [earned[start, alpha] - earned[start, 0.0] for start in starts] for alpha in alphas
    }
    return earn_alpha(differences, seed=seed)


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
