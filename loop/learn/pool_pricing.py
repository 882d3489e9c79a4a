"""Learned prices of many pools side by side: what tenants said to their quotes, folded and used.

The vectorised twin's counts go through the functions that the live decider calls
(`loop.decide.demand`), at the same epochs.
"""

from typing import Final

import numpy as np

from gpuloop.loop.learn.pool_course import PoolCourse
from gpuloop.reasoning import elasticity
from gpuloop.reasoning.pricing import PriceWish, PricingConfig, price_wish
from gpuloop.schemas.policy import Floats, PoolBatch
from gpuloop.schemas.units import USD_MICROS


class PoolPricer:
    """What some rows of a course should quote; to be asked at every price epoch."""

    def __init__(self, course: PoolCourse, rows: slice, config: PricingConfig) -> None:
        """Know nothing of demand; the quotes of now are the anchors."""
        state = course.worlds.state
        self._course: Final = course
        self._rows: Final = rows
        self._config: Final = config
        self._anchor: Final[Floats] = state.quote[rows].copy()
        self._counts: Floats = state.answers[rows].copy()
        self.curves: Floats = elasticity.blank(*self._counts.shape[:2])
        """(rows, segments, columns)"""

    def __call__(self, batch: PoolBatch) -> PriceWish:
        """Take in what was said since the last call, and return the wish of these rows."""
        state = self._course.worlds.state
        counts = state.answers[self._rows].copy()
        said = elasticity.said_between(self._counts, counts, self._anchor)
        load = self._course.seen.gpus_by_kind[self._rows]
        self.curves = elasticity.fold(self.curves, said, load)
        self._counts = counts
        return price_wish(
            batch,
            self.curves,
            self._anchor / USD_MICROS,
            config=self._config,
            rule=self._course.rule,
            loyalty=np.asarray(state.loyalty[self._rows]),
        )
