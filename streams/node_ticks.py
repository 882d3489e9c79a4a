"""What a shard of nodes tells at a tick: states that are due and sums per pool."""

from dataclasses import dataclass
from typing import Final, NamedTuple, cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.component import Output
from gpuloop.schemas.identity import derived_event_id, source_event_id
from gpuloop.schemas.messages import NodeState
from gpuloop.schemas.messages.internal import FeatureSum
from gpuloop.schemas.messages.state import FEATURES, Feature
from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams import quality
from gpuloop.streams.horizon import REMEMBER_US
from gpuloop.streams.nodes import NodeShard

FRESH_US: Final = MINUTE_US
PUBLISH_EVERY_US: Final = MINUTE_US


class PoolNodes(NamedTuple):
    """What a shard knows about the nodes of one pool."""

    nodes_heard: int
    features: dict[str, FeatureSum]


@dataclass(frozen=True, slots=True)
class NodeTick:
    """Node states that are due, pool sums, and the blocks that the tick changed."""

    states: list[Output]
    pools: dict[str, PoolNodes]
    changed: set[int]


def at_tick(shard: NodeShard, fleet: str, tick_us: int, *, fresh_us: int = FRESH_US) -> NodeTick:
    """Return what to say about the shard at a tick, and forget nodes silent for an hour.

    A state is due when its sample is new and either something a reader must know changed or the
    last state is a minute old. Sums are over what is believed of nodes heard within `fresh_us`; a
    silent node or a doubted sensor still counts as expected, so both show as quality and age.
    """
    changed = _forget(shard, tick_us)
    rows = shard.rows
    doubted = quality.judge(rows, shard.gpu_models)
    due = rows["unpublished"] & (
        rows["changed"] | (rows["published_us"] <= tick_us - PUBLISH_EVERY_US)
    )
    places = np.flatnonzero(due)
    states = _states(shard, fleet, places, doubted[places], tick_us)
    if states:
        rows["published_us"][places] = _published_us(shard, places, tick_us)
        rows["unpublished"][places] = False
        rows["changed"][places] = False
        changed |= set(np.unique(shard.blocks[places]).tolist())
    believed = quality.trusted(rows, doubted)
    fresh_from_us = tick_us - fresh_us
    sums = {pool: _sum(believed[mine], fresh_from_us) for pool, mine in shard.pools.items()}
    return NodeTick(states, sums, changed)


def _published_us(shard: NodeShard, places: NDArray[np.int64], tick_us: int) -> NDArray[np.int64]:
    """Return the tick, but for a node's first state a time before it that its name decides.

    A fleet that comes up at once would otherwise be told at once for ever, a minute apart.
    """
    told_us = np.full(len(places), tick_us)
    for row in np.flatnonzero(shard.rows["published_us"][places] == 0).tolist():
        told_us[row] -= crc32(shard.labels[places[row]].node.encode()) % PUBLISH_EVERY_US
    return told_us


def _sum(rows: NDArray[np.void], fresh_from_us: int) -> PoolNodes:
    """Return the sums over nodes of one pool, which are in the order of their names."""
    fresh = rows["event_us"] >= fresh_from_us
    seen = np.where(rows["present"] > 0, rows["event_us"][:, None], 0)
    columns = zip(
        FEATURES,
        rows["totals"][fresh].sum(axis=0, dtype=np.float64).tolist(),
        rows["present"][fresh].sum(axis=0, dtype=np.int64).tolist(),
        seen.max(axis=0).tolist(),
        strict=True,
    )
    expected = int(rows["gpus"].sum())
    return PoolNodes(
        int(fresh.sum()),
        {
            name: FeatureSum(total=total, present=present, expected=expected, newest_us=newest)
            for name, total, present, newest in columns
        },
    )


def _forget(shard: NodeShard, tick_us: int) -> set[int]:
    """Drop nodes silent for an hour; return the blocks they were in."""
    rows = shard.rows
    keep = rows["event_us"] >= tick_us - REMEMBER_US
    if keep.all():
        return set()
    changed = set(np.unique(shard.blocks[~keep]).tolist())
    labels = [label for label, kept in zip(shard.labels, keep.tolist(), strict=True) if kept]
    shard.hold(labels, rows[keep], shard.depth)
    return changed


def _states(
    shard: NodeShard,
    fleet: str,
    places: NDArray[np.int64],
    doubted: quality.Codes,
    tick_us: int,
) -> list[Output]:
    """Return the states of nodes."""
    due = shard.rows[places]
    believed = due["present"] * (doubted < quality.DISTRUSTED)
    values = due["totals"].astype(np.float64) / np.maximum(due["present"], 1)
    qualities = believed / due["gpus"][:, None]
    columns = zip(
        [shard.labels[place] for place in places.tolist()],
        *(due[name].tolist() for name in ("event_us", "boot", "seq", "gpus", "present")),
        values.tolist(),
        qualities.tolist(),
        doubted,
        strict=True,
    )
    states = []
    for label, event_us, boot, seq, gpus, present, means, shares, codes in columns:
        age_us = max(tick_us - event_us, 0)
        state = NodeState(
            fleet=fleet,
            node=label.node,
            pool=label.pool,
            rack=label.rack,
            gpu_model=label.gpu_model,
            billing=cast(Billing, label.billing),
            gpus=gpus,
            event_time_us=event_us,
            boot=boot,
            seq=seq,
            features={
                name: Feature(value=mean if known else None, age_us=age_us, quality=share)
                for name, known, mean, share in zip(FEATURES, present, means, shares, strict=True)
            },
            doubts=quality.doubts(codes),
        )
        sample = source_event_id(fleet, label.node, boot, seq)
        states.append(
            Output(
                topic="state.nodes",
                key=label.node,
                message=state,
                event_id=derived_event_id("state.nodes", [sample]),
                time_us=event_us,
            )
        )
    return states
