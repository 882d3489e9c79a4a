"""What each node last said: one record per node, by arrays over all nodes of a shard.

In memory a shard is one array in the order of names, so that a frame of a thousand samples costs
a few numpy calls. In the table it is cut into blocks of at most 64 nodes, which are rows: small
enough to be rewritten once a tick. A node's block follows from its name and from how often its
shard has split, so a restart finds it again. This module owns places, and duplicates and lateness
of samples; what a shard tells at a tick is in `node_ticks`. Neither knows Faust or a wall clock.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from functools import cached_property
from typing import Final, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.component import State
from gpuloop.schemas.messages.state import FEATURES
from gpuloop.streams import quality
from gpuloop.streams.frames import FrameView

BLOCK_NODES: Final = 64
MAX_DEPTH: Final = 10
"""A shard splits at most into 2**10 blocks; a node beyond that is refused and counted."""

_THROTTLED, _ECC = FEATURES.index("throttled"), FEATURES.index("ecc_uncorrected")
_UNHEARD: Final = -1
"""The boot of a node that was just given a place: any sample is newer."""

NUMBERS: Final = np.dtype(
    [
        ("event_us", "<i8"),
        ("boot", "<i8"),
        ("seq", "<i8"),
        ("published_us", "<i8"),
        ("gpus", "u1"),
        ("unpublished", "?"),
        ("changed", "?"),
        ("totals", "<f4", (len(FEATURES),)),
        ("present", "u1", (len(FEATURES),)),
        *quality.FIELDS,
    ]
)
"""One node. `published_us` is the tick of its last state; `changed` asks for one at the next.

Every byte is written to the changelog with every sample of the node, so numbers are no wider than
what is known: sums over a node's GPUs in the precision in which frames carry each of them.
"""


class Label(NamedTuple):
    """The words that describe a node."""

    node: str
    pool: str
    rack: str
    gpu_model: str
    billing: str


class NodeShard(State, dict=True):
    """The nodes of one partition by name: `labels` and, in the same order, `NUMBERS` records.

    What follows from the labels is computed when it is asked for and kept until they change.
    """

    labels: list[Label] = []
    numbers: bytearray = bytearray()
    depth: int = 0

    @property
    def rows(self) -> NDArray[np.void]:
        """Return the records as a writable view; it dies with the next change of the nodes."""
        return np.frombuffer(self.numbers, dtype=NUMBERS)

    @cached_property
    def places(self) -> dict[str, int]:
        """Return where each node is."""
        return {label.node: place for place, label in enumerate(self.labels)}

    @cached_property
    def blocks(self) -> NDArray[np.int64]:
        """Return the number of each node's block."""
        return blocks_of((label.node for label in self.labels), self.depth)

    @cached_property
    def pools(self) -> dict[str, NDArray[np.int64]]:
        """Return the places of the nodes of each pool, pools in the order of their names."""
        found: dict[str, list[int]] = {}
        for place, label in enumerate(self.labels):
            found.setdefault(label.pool, []).append(place)
        return {pool: np.array(found[pool]) for pool in sorted(found)}

    @cached_property
    def gpu_models(self) -> tuple[str, ...]:
        """Return the GPU model of each node."""
        return tuple(label.gpu_model for label in self.labels)

    def hold(self, labels: list[Label], records: NDArray[np.void], depth: int) -> None:
        """Replace the nodes by these, given in the order of their names."""
        self.labels, self.numbers, self.depth = labels, bytearray(records.tobytes()), depth
        self.relabelled()

    def relabelled(self) -> None:
        """Forget what followed from the labels."""
        for name in ("places", "blocks", "pools", "gpu_models"):
            self.__dict__.pop(name, None)


def blocks_of(nodes: Iterable[str], depth: int) -> NDArray[np.int64]:
    """Return the block of each node in a shard that has split `depth` times."""
    hashes = np.fromiter((crc32(node.encode()) for node in nodes), np.int64)
    return hashes & ((1 << depth) - 1)


@dataclass(slots=True)
class Absorbed:
    """What a frame did: the blocks it changed, and how many samples changed nothing, and why."""

    changed: set[int] = default(default_factory=set)
    dropped: dict[str, int] = default(default_factory=dict)

    def drop(self, reason: str, count: int) -> None:
        """Count samples that changed nothing."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count


def absorb(shard: NodeShard, view: FrameView) -> Absorbed:
    """Take a frame's samples into the shard; the highest (boot, seq) of a node wins, in any order.

    Dropped samples are counted as `duplicate`, `late` (an older (boot, seq)) or `full`.
    """
    done, frame = Absorbed(), view.frame
    if not frame.nodes:
        return done
    places = _places(shard, frame.nodes)
    unknown = np.flatnonzero(places < 0)
    if len(unknown):
        _admit(shard, [_label(view, index) for index in unknown.tolist()], done)
        places = _places(shard, frame.nodes)
    samples = np.flatnonzero(places >= 0)
    done.drop("full", len(places) - len(samples))
    versions = np.array([frame.boots, frame.seqs]).T
    samples = _newest(places, versions, samples, done)
    rows = shard.rows
    mine = rows[places[samples]]
    known = np.stack([mine["boot"], mine["seq"]], axis=1)
    ahead = _later(versions[samples], known)
    same = (versions[samples] == known).all(axis=1)
    done.drop("duplicate", int(same.sum()))
    done.drop("late", int((~ahead & ~same).sum()))
    samples = samples[ahead]
    if len(samples):
        _update(shard, places[samples], samples, view)
        done.changed.update(np.unique(shard.blocks[places[samples]]).tolist())
    return done


def _places(shard: NodeShard, nodes: Sequence[str]) -> NDArray[np.int64]:
    """Return where each node is, -1 for one that has no place."""
    place_of = shard.places.get
    return np.array([place_of(node, -1) for node in nodes])


def _newest(
    places: NDArray[np.int64],
    versions: NDArray[np.int64],
    samples: NDArray[np.int64],
    done: Absorbed,
) -> NDArray[np.int64]:
    """Return one sample per node: of the highest version, and of these the first."""
    if len(np.unique(places[samples])) == len(samples):
        return samples
    boots, seqs = versions[samples].T
    order = samples[np.lexsort((-samples, seqs, boots, places[samples]))]
    last = np.append(places[order][1:] != places[order][:-1], True)
    winner = order[last][np.cumsum(last) - last]
    same = (versions[order] == versions[winner]).all(axis=1)
    done.drop("duplicate", int((same & ~last).sum()))
    done.drop("late", int((~same).sum()))
    return np.sort(order[last])


def _later(mine: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which versions (boot, seq) are later than those known, both of shape (n, 2)."""
    later: NDArray[np.bool_] = (mine[:, 0] > known[:, 0]) | (
        (mine[:, 0] == known[:, 0]) & (mine[:, 1] > known[:, 1])
    )
    return later


def _update(
    shard: NodeShard, places: NDArray[np.int64], samples: NDArray[np.int64], view: FrameView
) -> None:
    """Replace the records of nodes by those of newer samples."""
    rows = shard.rows
    before, after = rows[places], _records(view, samples)
    after["published_us"] = before["published_us"]
    quality.go_on(before, after)
    after["changed"] = (
        before["changed"]
        | (before["boot"] != after["boot"])
        | (before["totals"][:, _THROTTLED] != after["totals"][:, _THROTTLED])
        | (before["totals"][:, _ECC] != after["totals"][:, _ECC])
    )
    rows[places] = after
    frame, labels = view.frame, shard.labels
    said = list(
        zip(frame.nodes, frame.pools, frame.racks, frame.gpu_models, frame.billings, strict=True)
    )
    relabelled = [
        (place, sample)
        for place, sample in zip(places.tolist(), samples.tolist(), strict=True)
        if said[sample] != labels[place]
    ]
    for place, sample in relabelled:
        labels[place] = Label(*said[sample])
        rows["changed"][place] = True
    if relabelled:
        shard.relabelled()


def _admit(shard: NodeShard, labels: Sequence[Label], done: Absorbed) -> None:
    """Give places to nodes that were not known, as long as their blocks have room."""
    newcomers = {label.node: label for label in reversed(labels)}
    depth = shard.depth
    while True:
        sizes = np.bincount(blocks_of([*newcomers, *shard.places], depth), minlength=1 << depth)
        if sizes.max() <= BLOCK_NODES or depth >= MAX_DEPTH:
            break
        depth += 1
    if sizes.max() > BLOCK_NODES:
        newcomers = _fitting(shard, newcomers, depth)
    if not newcomers:
        return
    if depth != shard.depth:
        done.changed.update(range(1 << depth))
    fresh = np.zeros(len(newcomers), dtype=NUMBERS)
    fresh["boot"] = _UNHEARD
    fresh["changed"] = True
    both = [*shard.labels, *newcomers.values()]
    order = sorted(range(len(both)), key=lambda place: both[place].node)
    records = np.concatenate([shard.rows, fresh])[order]
    shard.hold([both[place] for place in order], records, depth)


def _fitting(shard: NodeShard, newcomers: Mapping[str, Label], depth: int) -> dict[str, Label]:
    """Return the newcomers, in the order in which they came, that find room in their blocks."""
    sizes = np.bincount(blocks_of(shard.places, depth), minlength=1 << depth)
    kept: dict[str, Label] = {}
    for name, number in zip(newcomers, blocks_of(newcomers, depth).tolist(), strict=True):
        if sizes[number] < BLOCK_NODES:
            sizes[number] += 1
            kept[name] = newcomers[name]
    return kept


def _label(view: FrameView, index: int) -> Label:
    frame = view.frame
    return Label(
        frame.nodes[index],
        frame.pools[index],
        frame.racks[index],
        frame.gpu_models[index],
        frame.billings[index],
    )


def _records(view: FrameView, samples: NDArray[np.int64]) -> NDArray[np.void]:
    frame = view.frame
    records = np.zeros(len(samples), dtype=NUMBERS)
    records["event_us"] = np.array(frame.event_time_us)[samples]
    records["boot"] = np.array(frame.boots)[samples]
    records["seq"] = np.array(frame.seqs)[samples]
    records["gpus"] = np.array(frame.gpus)[samples]
    records["unpublished"] = True
    records["totals"] = view.totals[samples]
    records["present"] = view.present[samples]
    quality.start(records, view.outside[samples])
    return records
