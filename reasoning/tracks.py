"""What the causes component remembers of nodes, jobs and pools: bounded series and membership.

Only this module reads state messages. Progress comes as a cumulative count at uneven times; it is
turned into a pace, useful work per GPU-time, and written into every minute it was true for.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from gpuloop.reasoning.physics import METRICS, UNITS, Panel
from gpuloop.reasoning.series import NEVER, WINDOW_MINUTES, Array, Ring, minute_of
from gpuloop.schemas.component import State
from gpuloop.schemas.messages import JobState, NodeState, PoolState
from gpuloop.schemas.units import MINUTE_US

MAX_NODES: Final = 1024
MAX_JOBS: Final = 1024
KEEP_ENDED_MINUTES: Final = 30
MIN_INTERVAL_US: Final = MINUTE_US
DISTRUSTED: Final = ("contradictory", "frozen")
"""Doubts under which a reading says nothing about the node, only about its sensor."""


class NodeTrack(State):
    """A node: where it stands, since when its jobs are the same, and its sensors by minute."""

    pool: str
    rack: str
    gpus: int
    ring: Ring
    heard: int = NEVER
    settled: int = NEVER


class JobTrack(State):
    """A job: where it runs and at what pace. `moved` is the minute of its last migration."""

    pool: str
    gpus: int
    ring: Ring
    nodes: list[str] = []
    left: list[str] = []
    running: bool = False
    generation: int = 0
    attempt: int = NEVER
    settled: int = NEVER
    moved: int = NEVER
    heard: int = NEVER
    base_us: int = 0
    base_done: int = 0


class PoolTrack(State):
    """A pool: the last minute judged, and what its operators changed, by minute."""

    ring: Ring
    judged: int = NEVER


POOL_SERIES: Final = ("nodes_ready", "quote")


def track_node(tracks: dict[str, NodeTrack], node: NodeState) -> None:
    """Fold one node message; one that is older than the window or the last is merged by minute."""
    track = tracks.get(node.node)
    if track is None:
        if len(tracks) >= MAX_NODES:
            del tracks[min(tracks, key=lambda name: (tracks[name].heard, name))]
        track = NodeTrack(
            pool=node.pool,
            rack=node.rack,
            gpus=node.gpus,
            ring=Ring.empty(len(METRICS)),
            settled=minute_of(node.event_time_us),
        )
        tracks[node.node] = track
    minute = minute_of(node.event_time_us)
    track.pool, track.rack, track.gpus = node.pool, node.rack, node.gpus
    row = np.full(len(METRICS), np.nan)
    for index, metric in enumerate(METRICS):
        feature = node.features.get(metric)
        believed = node.doubts.get(metric) not in DISTRUSTED
        if feature is not None and feature.value is not None and believed:
            row[index] = feature.value
    track.ring.put(minute, minute, row / UNITS)
    track.heard = max(track.heard, minute)


def track_job(jobs: dict[str, JobTrack], nodes: dict[str, NodeTrack], job: JobState) -> None:
    """Fold one job message: membership first, then pace over the time it ran undisturbed."""
    track = jobs.get(job.job)
    minute = minute_of(job.event_time_us)
    if track is None:
        if job.phase != "running":
            return
        if len(jobs) >= MAX_JOBS:
            del jobs[min(jobs, key=lambda name: (jobs[name].running, jobs[name].heard, name))]
        track = JobTrack(pool=job.pool, gpus=job.gpus, ring=Ring.empty(1))
        jobs[job.job] = track
    running = job.phase == "running"
    where = sorted(job.nodes) if running else []
    disturbed = (
        where != track.nodes or job.attempt != track.attempt or job.generation != track.generation
    )
    if job.generation > track.generation:
        track.moved = minute
    if disturbed:
        for name in (*track.nodes, *where):
            if name in nodes:
                nodes[name].settled = max(nodes[name].settled, minute)
        track.left, track.nodes, track.settled = track.nodes or track.left, where, minute
        track.base_us = 0
    if running and job.attempt == track.attempt:  # A start is slow by nature, so it is left out.
        _pace(track, job)
    track.pool, track.gpus, track.running = job.pool, job.gpus, running
    track.generation, track.attempt, track.heard = job.generation, job.attempt, minute


def _pace(track: JobTrack, job: JobState) -> None:
    """Write the pace since the last report; a count that fell starts a new stretch.

    A job without a GPU, which nobody should report, has none.
    """
    elapsed = job.event_time_us - track.base_us
    if track.base_us and elapsed < MIN_INTERVAL_US:
        return
    if track.base_us and job.gpus and job.gpu_us_done >= track.base_done:
        full = elapsed * job.gpus * (job.gpu_milli / 1000)
        pace = (job.gpu_us_done - track.base_done) / full
        row = np.array([pace], dtype=np.float32)
        track.ring.put(minute_of(track.base_us) + 1, minute_of(job.event_time_us), row)
    track.base_us, track.base_done = job.event_time_us, job.gpu_us_done


def track_pool(tracks: dict[str, PoolTrack], pool: PoolState) -> int | None:
    """Fold one pool message; return the minute that is over and was not judged yet, if any."""
    track = tracks.get(pool.pool)
    if track is None:
        track = tracks[pool.pool] = PoolTrack(ring=Ring.empty(len(POOL_SERIES)))
    minute = pool.tick_us // MINUTE_US - 1  # The last one that is over.
    ready = sum(tranche.nodes_ready for tranche in pool.tranches)
    quote = pool.quote_usd_micros_per_gpu_hour / 1e6
    track.ring.put(minute, minute, np.array([ready, quote], dtype=np.float32))
    if minute <= track.judged:
        return None
    track.judged = minute
    return minute


def forget_ended(jobs: dict[str, JobTrack], nodes: dict[str, NodeTrack], minute: int) -> None:
    """Drop jobs that ended and nodes that were silent for longer than anyone asks about them."""
    for name in [
        name
        for name, job in jobs.items()
        if not job.running and minute - job.heard > KEEP_ENDED_MINUTES
    ]:
        del jobs[name]
    for name in [name for name, node in nodes.items() if minute - node.heard > WINDOW_MINUTES]:
        del nodes[name]


def panel(nodes: Mapping[str, NodeTrack], ill: Mapping[str, int], pool: str, minute: int) -> Panel:
    """Return the pool's nodes over the window that ends with `minute`; `ill` since which minute."""
    names = tuple(sorted(name for name, node in nodes.items() if node.pool == pool))
    first = minute - WINDOW_MINUTES + 1
    width = len(METRICS)
    windows = [nodes[name].ring.until(minute, width) for name in names]
    return Panel(
        nodes=names,
        gpus=np.array([nodes[name].gpus for name in names], dtype=np.float32),
        x=np.stack(windows) if windows else np.empty((0, WINDOW_MINUTES, width), np.float32),
        settled=np.array([nodes[name].settled - first for name in names], dtype=np.int64),
        clean=np.array(
            [min(ill.get(name, minute + 1) - first, WINDOW_MINUTES) for name in names],
            dtype=np.int64,
        ),
    )


def paces(track: JobTrack, minute: int) -> Array:
    """Return a job's pace by minute over the window that ends with `minute`."""
    series: Array = track.ring.until(minute, 1)[:, 0]
    return series
