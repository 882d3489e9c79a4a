"""What each node last said, in blocks of at most 64 nodes.

A block is a row of the live node table: small enough to be rewritten once a tick, large enough for
numpy to pay. A node's place follows from its name and from how often its shard has split, so a
restart finds it again. This module owns duplicates and lateness of samples and what a shard tells
about nodes and pools; it knows neither Faust nor a wall clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as default
from typing import Final, NamedTuple, cast
from zlib import crc32

import numpy as np
from msgspec import field
from numpy.typing import NDArray

from gpuloop.schemas.component import Output, State
from gpuloop.schemas.identity import derived_event_id, source_event_id
from gpuloop.schemas.messages import NodeState
from gpuloop.schemas.messages.internal import FeatureSum
from gpuloop.schemas.messages.state import Feature
from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams import quality
from gpuloop.streams.frames import FEATURES, FrameView
from gpuloop.streams.horizon import REMEMBER_US

BLOCK_NODES: Final = 64
MAX_DEPTH: Final = 10
"""A shard splits at most into 2**10 blocks; a node beyond that is refused and counted."""
FRESH_US: Final = MINUTE_US
PUBLISH_EVERY_US: Final = MINUTE_US

_THROTTLED, _ECC = FEATURES.index("throttled"), FEATURES.index("ecc_uncorrected")

NUMBERS: Final = np.dtype(
    [
        ("event_us", "<i8"),
        ("boot", "<i8"),
        ("seq", "<i8"),
        ("published_us", "<i8"),
        ("gpus", "<i4"),
        ("unpublished", "?"),
        ("changed", "?"),
        ("totals", "<f8", (len(FEATURES),)),
        ("present", "<i4", (len(FEATURES),)),
        *quality.FIELDS,
    ]
)
"""One node. `published_us` is the tick of its last state; `changed` asks for one at the next."""


class Label(NamedTuple):
    """The words that describe a node."""

    node: str
    pool: str
    rack: str
    gpu_model: str
    billing: str


class Block(State):
    """Up to 64 nodes by name: `labels` and, in the same order, `NUMBERS` records."""

    labels: list[Label] = []
    numbers: bytearray = bytearray()

    def rows(self) -> NDArray[np.void]:
        """Return the records as a writable view; it dies with the next insertion or removal."""
        return np.frombuffer(self.numbers, dtype=NUMBERS)


class NodeShard(State):
    """The nodes of one partition, in 2**n blocks by the hash of their names."""

    blocks: list[Block] = field(default_factory=lambda: [Block()])

    @property
    def depth(self) -> int:
        """Return how often the shard has split."""
        return len(self.blocks).bit_length() - 1


@dataclass(slots=True)
class Absorbed:
    """What a frame did: the blocks it changed, and how many samples changed nothing, and why."""

    changed: set[int] = default(default_factory=set)
    dropped: dict[str, int] = default(default_factory=dict)

    def drop(self, reason: str) -> None:
        """Count a sample that changed nothing."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


def absorb(shard: NodeShard, view: FrameView) -> Absorbed:
    """Take a frame's samples into the shard; the highest (boot, seq) of a node wins, in any order.

    Dropped samples are counted as `duplicate`, `late` (an older (boot, seq)) or `full`.
    """
    done = Absorbed()
    by_block: dict[int, dict[str, int]] = {}
    frame, mask = view.frame, len(shard.blocks) - 1
    for index, node in enumerate(frame.nodes):
        winners = by_block.setdefault(crc32(node.encode()) & mask, {})
        rival = winners.get(node)
        if rival is None:
            winners[node] = index
            continue
        mine = (frame.boots[index], frame.seqs[index])
        theirs = (frame.boots[rival], frame.seqs[rival])
        if mine > theirs:
            winners[node] = index
        done.drop("duplicate" if mine == theirs else "late")
    newcomers = [
        index
        for number, winners in sorted(by_block.items())
        for index in _update(shard, number, winners, view, done)
    ]
    if newcomers:
        _insert(shard, newcomers, view, done)
    return done


def _update(
    shard: NodeShard, number: int, winners: Mapping[str, int], view: FrameView, done: Absorbed
) -> list[int]:
    """Update the nodes that the block knows; return the samples of those it does not."""
    block = shard.blocks[number]
    frame, rows = view.frame, block.rows()
    unknown = dict(winners)
    places: list[int] = []
    samples: list[int] = []
    versions = list(zip(rows["boot"].tolist(), rows["seq"].tolist(), strict=True))
    for place, label in enumerate(block.labels):
        index = unknown.pop(label.node, None)
        if index is None:
            continue
        mine, known = (frame.boots[index], frame.seqs[index]), versions[place]
        if mine <= known:
            done.drop("duplicate" if mine == known else "late")
            continue
        places.append(place)
        samples.append(index)
        fresh = _label(view, index)
        if fresh != label:
            block.labels[place] = fresh
            rows["changed"][place] = True
    if places:
        before = rows[places]
        after = _records(view, samples)
        after["published_us"] = before["published_us"]
        quality.go_on(before, after)
        after["changed"] = (
            before["changed"]
            | (before["boot"] != after["boot"])
            | (before["totals"][:, _THROTTLED] != after["totals"][:, _THROTTLED])
            | (before["totals"][:, _ECC] != after["totals"][:, _ECC])
        )
        rows[places] = after
        done.changed.add(number)
    return list(unknown.values())


def _insert(shard: NodeShard, samples: list[int], view: FrameView, done: Absorbed) -> None:
    records = _records(view, samples)
    records["changed"] = True
    for position, index in enumerate(samples):
        label = _label(view, index)
        block = _place(shard, label.node)
        while len(block.labels) >= BLOCK_NODES and shard.depth < MAX_DEPTH:
            _split(shard)
            done.changed = set(range(len(shard.blocks)))
            block = _place(shard, label.node)
        if len(block.labels) >= BLOCK_NODES:
            done.drop("full")
            continue
        at = sum(known.node < label.node for known in block.labels)
        block.labels.insert(at, label)
        cut = at * NUMBERS.itemsize
        # A new buffer, because one that numpy looks at cannot be resized.
        block.numbers = block.numbers[:cut] + records[position].tobytes() + block.numbers[cut:]
        done.changed.add(_number(shard, label.node))


def _number(shard: NodeShard, node: str) -> int:
    return crc32(node.encode()) & (len(shard.blocks) - 1)


def _place(shard: NodeShard, node: str) -> Block:
    return shard.blocks[_number(shard, node)]


def _split(shard: NodeShard) -> None:
    """Double the number of blocks; within each, nodes stay in the order of their names."""
    known = [node for block in shard.blocks for node in nodes_of(block)]
    shard.blocks = [Block() for _ in range(2 * len(shard.blocks))]
    fill(shard, known)


def fill(shard: NodeShard, nodes: Iterable[tuple[Label, bytes]]) -> None:
    """Put nodes, given in the order of their names, into the blocks they belong to."""
    for label, numbers in nodes:
        block = _place(shard, label.node)
        block.labels.append(label)
        block.numbers += numbers


def nodes_of(block: Block) -> list[tuple[Label, bytes]]:
    """Return each node of a block with its record."""
    width = NUMBERS.itemsize
    return [
        (label, bytes(block.numbers[at * width : (at + 1) * width]))
        for at, label in enumerate(block.labels)
    ]


def _label(view: FrameView, index: int) -> Label:
    frame = view.frame
    return Label(
        frame.nodes[index],
        frame.pools[index],
        frame.racks[index],
        frame.gpu_models[index],
        frame.billings[index],
    )


def _records(view: FrameView, samples: list[int]) -> NDArray[np.void]:
    frame = view.frame
    records = np.zeros(len(samples), dtype=NUMBERS)
    records["event_us"] = [frame.event_time_us[i] for i in samples]
    records["boot"] = [frame.boots[i] for i in samples]
    records["seq"] = [frame.seqs[i] for i in samples]
    records["gpus"] = [frame.gpus[i] for i in samples]
    records["unpublished"] = True
    records["totals"] = view.totals[samples]
    records["present"] = view.present[samples]
    quality.start(records, view.outside[samples])
    return records


# A tick: what the shard says, and what it forgets.


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
    states: list[Output] = []
    changed: set[int] = set()
    sums: dict[str, _Sum] = {}
    for number, block in enumerate(shard.blocks):
        if _forget(block, tick_us):
            changed.add(number)
        rows = block.rows()
        due = rows["unpublished"] & (
            rows["changed"] | (rows["published_us"] <= tick_us - PUBLISH_EVERY_US)
        )
        places = np.flatnonzero(due).tolist()
        doubted = quality.judge(rows, [label.gpu_model for label in block.labels])
        believed = quality.trusted(rows, doubted)
        if places:
            states += [_state(fleet, block.labels[p], rows[p], doubted[p], tick_us) for p in places]
            rows["published_us"][places] = tick_us
            rows["unpublished"][places] = False
            rows["changed"][places] = False
            changed.add(number)
        for pool in sorted({label.pool for label in block.labels}):
            mine = believed[np.array([label.pool == pool for label in block.labels])]
            sums.setdefault(pool, _Sum()).add(mine, tick_us - fresh_us)
    pools = {pool: sums[pool].result() for pool in sorted(sums)}
    return NodeTick(states, pools, changed)


class _Sum:
    """Sums of one pool over blocks."""

    def __init__(self) -> None:
        self.heard = 0
        self.expected = 0
        self.totals = np.zeros(len(FEATURES))
        self.present = np.zeros(len(FEATURES), dtype=np.int64)
        self.newest = np.zeros(len(FEATURES), dtype=np.int64)

    def add(self, rows: NDArray[np.void], fresh_from_us: int) -> None:
        fresh = rows["event_us"] >= fresh_from_us
        self.heard += int(fresh.sum())
        self.expected += int(rows["gpus"].sum())
        self.totals += rows["totals"][fresh].sum(axis=0)
        self.present += rows["present"][fresh].sum(axis=0)
        seen = np.where(rows["present"] > 0, rows["event_us"][:, None], 0)
        self.newest = np.maximum(self.newest, seen.max(axis=0, initial=0))

    def result(self) -> PoolNodes:
        columns = zip(
            FEATURES,
            self.totals.tolist(),
            self.present.tolist(),
            self.newest.tolist(),
            strict=True,
        )
        return PoolNodes(
            self.heard,
            {
                name: FeatureSum(
                    total=total, present=present, expected=self.expected, newest_us=newest
                )
                for name, total, present, newest in columns
            },
        )


def _forget(block: Block, tick_us: int) -> bool:
    rows = block.rows()
    keep = rows["event_us"] >= tick_us - REMEMBER_US
    if keep.all():
        return False
    block.numbers = bytearray(rows[keep].tobytes())
    block.labels = [label for label, kept in zip(block.labels, keep, strict=True) if kept]
    return True


def _state(fleet: str, label: Label, row: np.void, doubted: quality.Codes, tick_us: int) -> Output:
    event_us, gpus = int(row["event_us"]), int(row["gpus"])
    age_us = max(tick_us - event_us, 0)
    believed = row["present"] * (doubted < quality.DISTRUSTED)
    columns = zip(
        FEATURES, row["totals"].tolist(), row["present"].tolist(), believed.tolist(), strict=True
    )
    state = NodeState(
        fleet=fleet,
        node=label.node,
        pool=label.pool,
        rack=label.rack,
        gpu_model=label.gpu_model,
        billing=cast(Billing, label.billing),
        gpus=gpus,
        event_time_us=event_us,
        boot=int(row["boot"]),
        seq=int(row["seq"]),
        features={
            name: Feature(
                value=total / present if present else None, age_us=age_us, quality=used / gpus
            )
            for name, total, present, used in columns
        },
        doubts=quality.doubts(doubted),
    )
    sample = source_event_id(fleet, label.node, state.boot, state.seq)
    return Output(
        topic="state.nodes",
        key=label.node,
        message=state,
        event_id=derived_event_id("state.nodes", [sample]),
        time_us=event_us,
    )
