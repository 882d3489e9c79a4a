"""The check behind a policy's alphas: held-out days that it lives through beside the rule.

Every day is a world of its own that begins some hours before its midnight with the jobs that run
then; these hours are not scored, so that how it begins does not decide the day. No day has another
one's luck, for then they would lean on each other. A trace has few days that may judge,
so that as many more as are asked for come from the generator that was fitted to it. Rule and
policy, at each alpha, meet the same jobs, prices and luck, drawn more than once and averaged, for
luck is no evidence. What is compared is what a pool loses (`passed`) in US dollars, and each pool
judges for itself: an alpha is earned where it helps, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from gpuloop.loop.learn.gate import ALPHAS, Gate, earn_alpha
from gpuloop.loop.learn.passed import late_prices
from gpuloop.loop.learn.pool_course import PoolCourse
from gpuloop.loop.learn.scenarios import SLOTS
from gpuloop.loop.learn.teach import DAY_US, SEEDS_APART, Curriculum, Lesson, Progress
from gpuloop.reasoning.actor import Actor
from gpuloop.reasoning.rule import RuleConfig, with_offsets
from gpuloop.schemas.policy import CONTROL_TICK_US
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.workload import Workload, build_workload

WARM_UP_HOURS: Final = 6
LUCKS: Final = 2
"""How often the luck of each day is drawn."""
JUDGING_SEEDS: Final = 1 << 40
"""The first of the generated days'; far beyond what training draws."""
HOUR_TICKS: Final = HOUR_US // CONTROL_TICK_US


def judge(
    lesson: Lesson,
    curriculum: Curriculum,
    twin: TwinConfig,
    *,
    traces: Path | None,
    seed: int,
    progress: Progress,
    rule: RuleConfig | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> dict[str, Gate]:
    """Return for each pool what every alpha gained over the rule, and which of them it earned."""
    days = _days(curriculum, twin, traces)
    hours = WARM_UP_HOURS + 24
    worlds = build_pool_worlds(
        _lucks([config for config, _ in days], seed),
        hours=hours + 1,
        traces=traces,
        workload=[jobs for _, jobs in days for _ in range(LUCKS)],
        slots=SLOTS,
        copies=1 + len(alphas),
    )
    course = PoolCourse(worlds, seed=seed, rule=rule)
    actor = Actor.from_safetensors(lesson.weights, lesson.actor, lesson.normaliser)
    pools = tuple(pool.name for pool in twin.pools)
    prices = late_prices(curriculum.late_node_hours, pools, worlds.rows // len(pools))
    strength = np.repeat([0.0, *alphas], worlds.rows // (1 + len(alphas)))[:, None]
    lost_usd = np.zeros(worlds.rows)
    what = f"checking {len(days)} days at {len(alphas)} alphas"
    batch = course.look()
    for tick in range(hours * HOUR_TICKS):
        offsets = strength * actor.offsets(batch.observation)
        course.act(with_offsets(batch, offsets, course.rule))
        batch = course.look()
        if tick >= WARM_UP_HOURS * HOUR_TICKS:
            lost_usd += course.passed.lost(prices) * course.passed.node_usd
        if (tick + 1) % HOUR_TICKS == 0:
            progress(what, (tick + 1) / (hours * HOUR_TICKS))
    shape = (1 + len(alphas), len(days), LUCKS, len(pools))
    return _verdicts(lost_usd.reshape(shape).mean(axis=2), pools, alphas)


def _days(
    curriculum: Curriculum, twin: TwinConfig, traces: Path | None
) -> list[tuple[TwinConfig, Workload]]:
    """Return the world of each day, from before its midnight on, and its jobs.

    Those of the trace come first, then generated ones.
    """
    midnights = [curriculum.check_from_us + day * DAY_US for day in range(curriculum.check_days)]
    generator = f"generator:{twin.shape}"
    which = [generator if traces is None else "philly"] * len(midnights)
    for day in range(curriculum.check_generated_days):
        midnights.append(curriculum.check_from_us + day % 7 * DAY_US)
        which.append(generator)
    made = []
    for place, (midnight_us, name) in enumerate(zip(midnights, which, strict=True)):
        seed, start_us = JUDGING_SEEDS + place, midnight_us - WARM_UP_HOURS * HOUR_US
        config = replace(twin, start_us=start_us)
        jobs = build_workload(traces, name, start_us=start_us, seed=seed, shape=twin.shape)
        made.append((config, jobs))
    return made


def _lucks(days: Sequence[TwinConfig], seed: int) -> list[TwinConfig]:
    """Return every day as often as its luck is drawn, each with a luck of its own."""
    first = JUDGING_SEEDS + seed * SEEDS_APART
    return [
        replace(config, seed=first + place * LUCKS + luck)
        for place, config in enumerate(days)
        for luck in range(LUCKS)
    ]


def _verdicts(
    lost_usd: NDArray[np.float64], pools: Sequence[str], alphas: Sequence[float]
) -> dict[str, Gate]:
    """Return what each pool earned by what was lost, (1 + alphas, days, pools), the rule first."""
    gained = lost_usd[0] - lost_usd[1:]
    return {
        pool: earn_alpha(
            {alpha: gained[place, :, row].tolist() for place, alpha in enumerate(alphas)},
            tried=len(pools) * len(alphas),
        )
        for row, pool in enumerate(pools)
    }


def earned(gates: Mapping[str, Gate]) -> dict[str, float]:
    """Return the alpha of each pool."""
    return {pool: gate.alpha for pool, gate in gates.items()}


def figures(gates: Mapping[str, Gate]) -> dict[str, float]:
    """Return all checks as flat numbers, as a policy version stores them."""
    return {
        f"{pool}_{name}": value
        for pool, gate in gates.items()
        for name, value in gate.figures().items()
    }
