"""Train a policy in the twin: what `gpuloop train` runs before the policy is judged.

It learns at pool level, in drawn worlds side by side and beside the rule in copies of them
(`pool_env`). Two parts: a randomly pushed rule fits the normaliser and fills the buffer, then the
policy explores and trains episode by episode; `judge` says what it earned. Between episodes the run
can be kept on disk, from where it goes on as if it had not been killed.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec.structs import replace
from stable_baselines3.common.vec_env import VecEnv

from gpuloop.loop.learn import checkpoint
from gpuloop.loop.learn.experience import ACTION_SIZE, Transition
from gpuloop.loop.learn.passed import LATE_NODE_HOURS
from gpuloop.loop.learn.pool_env import PoolVecEnv
from gpuloop.loop.learn.scenarios import Domain
from gpuloop.loop.learn.spaces import fit_normaliser
from gpuloop.loop.learn.trainer import Trainer, TrainerConfig
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.identity import sha256_of
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser
from gpuloop.schemas.policy import CONTROL_TICK_US, MIGRATION, PRICE
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import TwinConfig

DAY_US: Final = 24 * HOUR_US
HOUR_TICKS: Final = HOUR_US // CONTROL_TICK_US

EXPLORATION_BLOCK: Final = 5
"""Control ticks for which one random offset is held while the buffer fills: capacity answers to
what is wished for minutes, not to what flickers."""

PUSHES: Final = (0.0, 0.3, 1.0)
"""How hard the rule is pushed about while the buffer fills, equally often: not at all, too."""

SEEDS_APART: Final = 1_000_000
"""Worlds of a run, at most; those that fill the buffer come from the upper half."""

UNTRIED: Final = (MIGRATION, PRICE)
"""What these worlds leave no choice in: no node of theirs is suspected, and prices stand still."""

_RECIPE: Final = TrainerConfig(n_steps=5, averaging=8_000, batch_size=256, buffer_size=1_000_000)
RECIPES: Final = {
    "sac": replace(_RECIPE, algorithm="sac"),
    "td3": replace(_RECIPE, algorithm="td3", exploration_noise=0.4),
    "td3+bc": replace(_RECIPE, algorithm="td3", exploration_noise=0.4, imitation=0.4),
}
"""How each algorithm learns here. TD3's is the recipe of the policy that ships; the others share
what they can of it and have not been tuned."""

Progress = Callable[[str, float], None]
"""Told what is going on and the share of it that is done."""


class Curriculum(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which weeks train and which judge, and how long training lasts."""

    train_from_us: int
    train_days: int
    check_from_us: int
    check_days: int
    check_generated_days: int = 21
    """Days of the generator beside those of the trace, of seeds that training never draws."""
    worlds: int = 64
    """Side by side, each with all pools of the fleet. Late jobs are few: what is lost shows in many
    worlds sooner than in many looks at some."""
    episodes: int = 4
    episode_hours: int = 24
    random_hours: int = 6
    updates_per_transition: float = 0.03
    late_node_hours: dict[str, float] = msgspec.field(default_factory=lambda: dict(LATE_NODE_HOURS))
    """What a late job costs in each pool (`passed`)."""


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
    kept: Path | None = None,
    rule: RuleConfig | None = None,
) -> Lesson:
    """Train a policy on the training days and return it; the same arguments give the same bytes.

    With a file `kept`, a run that was killed goes on after its last whole episode.
    """
    domain = _domain(curriculum, twin, traces)
    first = seed * SEEDS_APART

    def environment(begins: int, normaliser: Normaliser | None = None) -> PoolVecEnv:
        return PoolVecEnv(
            domain,
            seed=begins,
            rule=rule,
            normaliser=normaliser,
            late_node_hours=curriculum.late_node_hours,
            beside_rule=True,
        )

    raw = environment(first + SEEDS_APART // 2)
    made = list(wander(raw, curriculum.random_hours * HOUR_TICKS, seed, progress))
    normaliser = fit_normaliser(np.stack([one.observation for one in made]))

    env = environment(first, normaliser)
    trainer = Trainer(trainer_config, seed=seed, normaliser=normaliser, env=env, device=device)
    run = _run((trainer_config, curriculum, twin, rule or RuleConfig()), traces, seed=seed)
    done = checkpoint.restore(kept, trainer, run=run) if kept is not None else None
    if done is None:
        trainer.add(made)
    elif done:
        trainer.model.set_env(environment(first + done * curriculum.worlds, normaliser))
    ticks = curriculum.episode_hours * HOUR_TICKS
    total = curriculum.episodes * ticks * env.num_envs

    def tell(transitions: int) -> None:
        if transitions // env.num_envs % HOUR_TICKS == 0 or transitions == total:
            what = f"training: {transitions:,} transitions, {trainer.updates:,} updates"
            progress(what, transitions / total)

    for episode in range(done or 0, curriculum.episodes):
        share = curriculum.updates_per_transition
        trainer.learn(ticks * env.num_envs, updates_per_transition=share, tell=tell)
        if kept is not None:
            checkpoint.save(kept, trainer, episode=episode + 1, run=run)
    spec, weights = trainer.export(untried=UNTRIED)
    return Lesson(
        actor=spec,
        normaliser=normaliser,
        weights=weights,
        transitions=len(made) + total,
        updates=trainer.updates,
    )


def _domain(curriculum: Curriculum, twin: TwinConfig, traces: Path | None) -> Domain:
    begins = curriculum.train_from_us
    return Domain(
        config=replace(twin, start_us=begins),
        traces=traces,
        span_us=(begins, begins + curriculum.train_days * DAY_US) if traces else None,
        hours=curriculum.episode_hours,
        worlds=curriculum.worlds,
    )


def _run(configs: Sequence[msgspec.Struct], traces: Path | None, *, seed: int) -> str:
    """Return what a run is known by: what its bytes depend on, but for code and traces' content."""
    told = [msgspec.json.encode(one, order="deterministic") for one in configs]
    return sha256_of("training", str(seed), str(traces is not None), *map(bytes.hex, told))


def wander(env: VecEnv, ticks: int, seed: int, progress: Progress) -> Iterator[Transition]:
    """Push the rule about at random for some ticks and yield the transitions, a row per pool.

    The environment must show its observations as they are.
    """
    rng = np.random.default_rng(seed)
    observations = np.asarray(env.reset())
    actions = np.zeros((env.num_envs, ACTION_SIZE), np.float32)
    for tick in range(ticks):
        if tick % EXPLORATION_BLOCK == 0:
            hard = rng.choice(PUSHES, (env.num_envs, 1))
            actions = (hard * rng.uniform(-1.0, 1.0, actions.shape)).astype(np.float32)
        env.step_async(actions)
        told, rewards, ended, infos = env.step_wait()
        for row, reward in enumerate(rewards):
            after = infos[row]["terminal_observation"] if ended[row] else np.asarray(told)[row]
            yield Transition(observations[row], actions[row], float(reward), after)
        observations = np.asarray(told)
        if (tick + 1) % HOUR_TICKS == 0:
            progress("filling the buffer", (tick + 1) / ticks)
