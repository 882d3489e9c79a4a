"""Whoever plays in another process comes to the same, for entrants never meet."""

import numpy as np
from benchmarks.controlling.apart import play_apart
from benchmarks.controlling.play import Entrant, Played, Stage
from msgspec.structs import replace

from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.workload import DAY_US, Generator

FIRST_US = 20_000 * DAY_US


def cast() -> tuple[Stage, list[Entrant]]:
    """Return a small world and eleven entrants: one process plays six of them, the other five."""
    config = replace(TwinConfig(seed=3), start_us=FIRST_US)
    small = replace(config, pools=config.pools[2:], arrival_share=0.3)
    stage = Stage(
        configs=[small], workloads=[Generator("bursty", 3, FIRST_US)], traces=None, days=1
    )
    entrants = [
        Entrant(name=name, setting=setting, controller=baseline.make(
            baseline.turned(baseline.config(), setting)))
        for name in ("hpa", "rule+forecast")
        for baseline in (CONTROLLERS[name],)
        for setting in baseline.settings
    ]  # fmt: skip
    return stage, entrants[:11]


def told(played: Played) -> list[list[float]]:
    return [
        [one.cost_usd.sum() for one in played.scores],
        [float(one.violated.sum()) for one in played.scores],
        [float(one.minutes_violated.sum()) for one in played.scores],
        [float(one.sum()) for one in played.lost_node_hours],
        [float(one.sum()) for one in played.differing],
    ]


def test_entrants_come_to_the_same_apart_as_together() -> None:
    apart, together = told(play_apart(cast)), told(play_apart(cast, processes=1))
    assert apart == together
    assert len(np.unique(apart[0])) > 5, "the entrants are to differ, or order would not matter"
