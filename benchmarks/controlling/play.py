"""Controllers side by side on copies of the same worlds, and what they left behind.

Every entrant gets worlds of its own with the same jobs, prices and luck, sees them as late as the
others and is guarded by the same envelope. Prices are frozen, and the purchase mix is the same for
all (`reasoning.baselines.controller`), so that what differs is capacity.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from benchmarks.controlling.service import Score, Window, on_demand_prices, score, work_done_us
from numpy.typing import NDArray

from gpuloop.loop.learn.passed import LATE_NODE_HOURS, late_prices
from gpuloop.loop.learn.pool_course import PoolCourse
from gpuloop.reasoning.baselines.controller import Controller
from gpuloop.reasoning.rule import RuleConfig, with_offsets
from gpuloop.schemas.policy import CONTROL_TICK_US, Floats, PoolBatch
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.pool_level.build import build_pool_worlds
from gpuloop.twin.workload import DAY_US, Workload

SLOTS: Final = 4096
DAY_TICKS: Final = DAY_US // CONTROL_TICK_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """One controller at one setting of its knob."""

    name: str
    setting: float
    controller: Controller


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Whole days of some worlds."""

    configs: Sequence[TwinConfig]
    workloads: Sequence[Workload]
    traces: Path | None
    days: int
    seed: int = 0
    rule: RuleConfig = field(default_factory=RuleConfig)
    """What every policy sees the wish of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What entrants came to: scores with rows (pools of all worlds, in the order of the stage).

    `differing` is the share of each row's decisions on each day, (rows, days), in which an offset
    changed what was done.
    """

    scores: tuple[Score, ...]
    lost_node_hours: tuple[Floats, ...]
    """What each entrant's rows lost over all days, (rows,): what policies are taught to spare."""
    differing: tuple[Floats, ...]


def play(
    stage: Stage, entrants: Sequence[Entrant], tell: Callable[[int], None] = lambda _: None
) -> Played:
    """Let entrants live through a stage side by side; `tell` is told each day that has passed.

    Raises:
        SlotsFull: a pool had more jobs at once than this harness keeps.

    """
    worlds = build_pool_worlds(
        list(stage.configs),
        hours=stage.days * 24 + 1,
        traces=stage.traces,
        workload=list(stage.workloads),
        slots=SLOTS,
        copies=len(entrants),
    )
    names = [pool.name for config in stage.configs for pool in config.pools] * len(entrants)
    course = PoolCourse(worlds, seed=stage.seed, names=names, rule=stage.rule)
    pools = worlds.rows // len(entrants)
    shares = [slice(place * pools, (place + 1) * pools) for place in range(len(entrants))]
    for entrant in entrants:
        entrant.controller.reset(np.ones(pools, dtype=np.bool_))
    differing = np.zeros((worlds.rows, stage.days))
    late = late_prices(LATE_NODE_HOURS, tuple(names[:pools]), len(entrants))
    lost = np.zeros(worlds.rows)
    books, counts = [worlds.state.books.copy()], [worlds.state.counts.copy()]
    for day in range(stage.days):
        for _ in range(DAY_TICKS):
            batch = course.look()
            lost += course.passed.lost(late)
            wish = np.empty_like(batch.present)
            for entrant, share in zip(entrants, shares, strict=True):
                wish[share] = entrant.controller(rows_of(batch, share))
            differing[:, day] += _differing(course, wish, entrants, shares)
            course.act(wish)
        books.append(worlds.state.books.copy())
        counts.append(worlds.state.counts.copy())
        tell(day + 1)
    whole = score(
        worlds.rules,
        worlds.specs,
        Window(
            first_us=worlds.rules.start_us,
            books=np.array(books),
            counts=np.array(counts),
            work_done_us=work_done_us(worlds.state, worlds.specs),
            on_demand=np.tile(prices(stage), (len(entrants), 1)),
        ),
    )
    return Played(
        scores=tuple(_rows(whole, share) for share in shares),
        lost_node_hours=tuple(lost[share] for share in shares),
        differing=tuple(differing[share] / DAY_TICKS for share in shares),
    )


def _differing(
    course: PoolCourse, wish: Floats, entrants: Sequence[Entrant], shares: Sequence[slice]
) -> NDArray[np.bool_]:
    """Return which rows would do something else without their entrant's offset."""
    plain = wish.copy()
    for entrant, share in zip(entrants, shares, strict=True):
        if isinstance(entrant.controller, Residual):
            plain[share] = entrant.controller.base_wish
    if np.array_equal(plain, wish):
        return np.zeros(len(wish), dtype=np.bool_)
    changed: NDArray[np.bool_] = (course.permitted(wish) != course.permitted(plain)).any(axis=1)
    return changed


def prices(stage: Stage) -> NDArray[np.int64]:
    """Return on-demand prices (rows, hours) of the scored days, millionths of US dollars."""
    return np.concatenate(
        [
            on_demand_prices(
                config,
                traces=stage.traces,
                start_us=workload.start_us,
                first_us=workload.start_us,
                hours=stage.days * 24,
            )
            for config, workload in zip(stage.configs, stage.workloads, strict=True)
        ]
    )


def rows_of(batch: PoolBatch, rows: slice) -> PoolBatch:
    """Return some rows of a batch."""
    return replace(
        batch, **{name: getattr(batch, name)[rows] for name in PoolBatch.__dataclass_fields__}
    )


def _rows(whole: Score, rows: slice) -> Score:
    return Score(**{name: getattr(whole, name)[rows] for name in Score.__dataclass_fields__})


Offsets = Callable[[Floats], Floats]


class Residual:
    """A learned offset on a controller, at an alpha for each pool."""

    def __init__(
        self,
        base: Controller,
        offsets: Offsets,
        alphas: Mapping[str, float],
        mix: RuleConfig | None = None,
    ) -> None:
        """Add `alphas` times the offsets, in delta limits, to what the base wishes; buy by `mix`.

        In a pool that has no alpha the base acts alone.
        """
        self._base = base
        self._offsets = offsets
        self._alphas = dict(alphas)
        self._mix = mix or RuleConfig()
        self.base_wish: Floats = np.zeros((0, 0))
        """What was wished for without the offset, at the last tick."""

    def reset(self, rows: NDArray[np.bool_]) -> None:
        """Let the base forget."""
        self._base.reset(rows)

    def __call__(self, batch: PoolBatch) -> Floats:
        """Return the wish, (n, 4)."""
        self.base_wish = self._base(batch)
        alpha = np.array([self._alphas.get(pool, 0.0) for pool in batch.pools])
        offsets = alpha[:, None] * self._offsets(batch.observation)
        return with_offsets(replace(batch, rule=self.base_wish), offsets, self._mix)
