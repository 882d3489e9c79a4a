"""One pool at one minute, as evidence: how far every vertex of its causal graph is from normal.

Built from the tracks when a minute is judged, and again, from the same tracks, when the deep tier
asks for data; it decides nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from gpuloop.reasoning.physics import CHANNELS, deviations
from gpuloop.reasoning.series import WINDOW_MINUTES, Array, median, spread
from gpuloop.reasoning.topology import CAPACITY, MIGRATION, PRICE, PROGRESS, Column, Topology
from gpuloop.reasoning.tracks import (
    POOL_SERIES,
    JobTrack,
    NodeTrack,
    PoolTrack,
    paces,
    panel,
)

PACE_FLOOR: Final = 0.04
POOL_PACE_FLOOR: Final = 0.03
ACTION_FLOOR: Final = 0.05
MIN_PACE_MINUTES: Final = 10
REPORT_MINUTES: Final = 6
"""Progress of the last minutes is not reported yet."""
RECENT_ACTION_MINUTES: Final = 10
MIN_RACK_NODES: Final = 2


class Reading:
    """A vertex over the window: what it was, what was expected, the departure and its scale.

    `bad` is the sign of trouble; `badness` is the departure in that direction, in scales.
    """

    __slots__ = ("away", "bad", "expected", "scale", "value")

    def __init__(
        self, *, value: Array, expected: Array, away: Array, scale: float, bad: float
    ) -> None:
        self.value, self.expected, self.away = value, expected, away
        self.scale, self.bad = scale, bad

    @property
    def badness(self) -> Array:
        """Return the score by minute, NaN where unknown."""
        scores: Array = np.float32(self.bad) * self.away / np.float32(self.scale)
        return scores

    def newest(self) -> int:
        """Return the index of the newest known minute, -1 when there is none."""
        known = np.flatnonzero(~np.isnan(self.away))
        return int(known[-1]) if len(known) else -1


class Evidence:
    """Readings of a pool's vertices over the window that ends with `minute`."""

    def __init__(
        self,
        *,
        pool: str,
        minute: int,
        nodes: Mapping[str, NodeTrack],
        jobs: Mapping[str, JobTrack],
        pools: Mapping[str, PoolTrack],
        ill: Mapping[str, int],
    ) -> None:
        self.pool, self.minute = pool, minute
        self.first = minute - WINDOW_MINUTES + 1
        here = {name: job for name, job in jobs.items() if job.pool == pool}
        self.readings: dict[Column, Reading] = {}
        self._read_nodes(nodes, ill)
        names = {column.subject for column in self.readings}
        racks = {name: nodes[name].rack for name in sorted(names)}
        self._read_racks(racks)
        for name in sorted(here):
            self._read_job(name, here[name], ill)
        self._read_pool(pools.get(pool), here)
        self.topology = Topology(
            rack_of=racks,
            nodes_of={
                name: tuple(node for node in _held(here[name], minute) if node in racks)
                for name in sorted(here)
                if here[name].running
            },
            weights={name: job.gpus for name, job in here.items()},
            channels=tuple(channel.metric for channel in CHANNELS),
        )

    def _read_nodes(self, nodes: Mapping[str, NodeTrack], ill: Mapping[str, int]) -> None:
        sheet = panel(nodes, ill, self.pool, self.minute)
        if not sheet.nodes:
            return
        for channel, found in zip(CHANNELS, deviations(sheet), strict=True):
            for row, node in enumerate(sheet.nodes):
                self.readings[Column(node, channel.metric)] = Reading(
                    value=found.value[row],
                    expected=found.expected[row],
                    away=found.away[row],
                    scale=float(found.scale[row]),
                    bad=channel.bad,
                )

    def _read_racks(self, racks: Mapping[str, str]) -> None:
        """Read a rack as its better half: it departs only when most of its nodes do."""
        for rack in sorted(set(racks.values())):
            members = [node for node, place in racks.items() if place == rack]
            for channel in CHANNELS:
                parts = [self.readings[Column(node, channel.metric)] for node in members]
                self.readings[Column(rack, channel.metric)] = Reading(
                    value=_better_half([part.value for part in parts], channel.bad),
                    expected=_better_half([part.expected for part in parts], channel.bad),
                    away=_better_half([part.away for part in parts], channel.bad),
                    scale=max(part.scale for part in parts),
                    bad=channel.bad,
                )

    def _read_job(self, name: str, job: JobTrack, ill: Mapping[str, int]) -> None:
        pace = paces(job, self.minute)
        past = np.arange(WINDOW_MINUTES) < ill.get(name, self.minute + 1) - self.first
        known = np.flatnonzero(past & ~np.isnan(pace))
        self.readings[Column(name, PROGRESS)] = _against_past(
            pace, known[: len(known) - REPORT_MINUTES], PACE_FLOOR
        )
        moved = np.zeros(WINDOW_MINUTES, dtype=np.float32)
        if self.first <= job.moved <= self.minute:
            start = job.moved - self.first
            moved[start : start + RECENT_ACTION_MINUTES] = 1.0
        self.readings[Column(name, MIGRATION)] = _action(moved, np.zeros_like(moved), bad=1.0)

    def _read_pool(self, track: PoolTrack | None, jobs: Mapping[str, JobTrack]) -> None:
        """Read a pool's pace, useful work per GPU-time of its settled jobs, and its operators."""
        column = Column(self.pool, PROGRESS)
        away = np.full((max(len(jobs), 1), WINDOW_MINUTES), np.nan, dtype=np.float32)
        weights = np.ones(len(away), dtype=np.float32)
        for row, name in enumerate(sorted(jobs)):
            away[row] = self.readings[Column(name, PROGRESS)].away
            weights[row] = jobs[name].gpus
        held = weights[:, None] * ~np.isnan(away)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (np.nansum(weights[:, None] * away, axis=0) / held.sum(axis=0)) + 1.0
        mean[-REPORT_MINUTES:] = np.nan
        known = np.flatnonzero(~np.isnan(mean))
        self.readings[column] = _against_past(
            mean.astype(np.float32), known[: len(known) - REPORT_MINUTES], POOL_PACE_FLOOR
        )
        if track is None:
            return
        window = track.ring.until(self.minute, len(POOL_SERIES))
        for metric, bad in ((CAPACITY, -1.0), (PRICE, 1.0)):
            series = window[:, POOL_SERIES.index(metric)]
            self.readings[Column(self.pool, metric)] = _action(
                series, np.broadcast_to(median(series, axis=0), series.shape), bad=bad
            )


def _held(job: JobTrack, minute: int) -> Iterable[str]:
    """Return the nodes a job runs on, and those it left a moment ago."""
    recent = minute - job.settled <= RECENT_ACTION_MINUTES
    return dict.fromkeys((*job.nodes, *(job.left if recent else ())))


def _better_half(series: list[Array], bad: float) -> Array:
    """Return, by minute, the lower middle of the series when ordered from well to ill."""
    ordered = np.sort(np.stack(series) * np.float32(bad), axis=0)
    present = np.count_nonzero(~np.isnan(ordered), axis=0)
    middle = np.take_along_axis(ordered, np.maximum(present - 1, 0)[None, :] // 2, axis=0)[0]
    middle[present < MIN_RACK_NODES] = np.nan
    half: Array = middle * np.float32(bad)
    return half


def _against_past(series: Array, known: np.ndarray, floor: float) -> Reading:
    """Return a series against the median of its known past, as a part of it."""
    normal = np.float32(np.nan)
    scale = floor
    if len(known) >= MIN_PACE_MINUTES:
        past = series[known]
        normal = np.float32(median(past, axis=0))
        scale = max(float(spread(past / normal, axis=0)), floor)
    with np.errstate(invalid="ignore", divide="ignore"):
        away = (series / normal - 1.0).astype(np.float32)
    expected = np.full_like(series, normal)
    return Reading(value=series, expected=expected, away=away, scale=scale, bad=-1.0)


def _action(value: Array, expected: Array, *, bad: float) -> Reading:
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(expected == 0, value - expected, value / expected - 1.0)
    away = relative.astype(np.float32)
    return Reading(value=value, expected=expected, away=away, scale=ACTION_FLOOR, bad=bad)
