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
from itertools import repeat
from typing import Final, NamedTuple
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.component import State
from gpuloop.schemas.messages import Frame
from gpuloop.schemas.messages.state import FEATURES
from gpuloop.schemas.units import INT64_MAX
from gpuloop.streams import quality
from gpuloop.streams.frames import FrameView

BLOCK_NODES: Final = 64
MAX_DEPTH: Final = 10
"""A shard splits at most into 2**10 blocks; a node beyond that is refused and counted."""

_THROTTLED, _ECC = FEATURES.index("throttled"), FEATURES.index("ecc_uncorrected")
_encode: Final = msgspec.msgpack.Encoder().encode
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
    def members(self) -> dict[int, tuple[NDArray[np.int64], msgspec.Raw]]:
        """Return, by block, the places of its nodes and their labels as its row says them.

        A row is written with every sample of its nodes, and its words hardly ever change.
        """
        order = np.argsort(self.blocks, kind="stable")
        numbers, begins = np.unique(self.blocks[order], return_index=True)
        places = np.split(order, begins)[1:]
        return {
            number: (mine, msgspec.Raw(_encode([self.labels[place] for place in mine.tolist()])))
            for number, mine in zip(numbers.tolist(), places, strict=True)
        }

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
        for name in ("places", "blocks", "members", "pools", "gpu_models"):
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


def absorb(shard: NodeShard, view: FrameView, *, latest_us: int = INT64_MAX) -> Absorbed:
    """Take a frame's samples into the shard; the highest (boot, seq) of a node wins, in any order.

    Dropped samples are counted as `duplicate`, `late` (an older (boot, seq)), `full`, or `future`:
    dated after `latest_us`, which a node would be remembered by for ever.
    """
    done, frame = Absorbed(), view.frame
    early = view.event_us <= latest_us
    done.drop("future", len(early) - int(early.sum()))
    places = _places(shard, frame.nodes)
    unknown = np.flatnonzero((places < 0) & early)
    if len(unknown):
        _admit(shard, [_label(view, index) for index in unknown.tolist()], done)
        places = _places(shard, frame.nodes)
    samples = np.flatnonzero((places >= 0) & early)
    done.drop("full", int(early.sum()) - len(samples))
    if not len(samples):
        return done
    samples = _newest(places, view, samples, done)
    before = shard.rows[places[samples]]
    boots, seqs = view.boots[samples], view.seqs[samples]
    same_boot = boots == before["boot"]
    ahead = (boots > before["boot"]) | (same_boot & (seqs > before["seq"]))
    if not ahead.all():
        same = same_boot & (seqs == before["seq"])
        done.drop("duplicate", int(same.sum()))
        done.drop("late", int((~ahead & ~same).sum()))
        samples, before = samples[ahead], before[ahead]
    if len(samples):
        _update(shard, places[samples], before, samples, view)
        done.changed.update(np.unique(shard.blocks[places[samples]]).tolist())
    return done


def _places(shard: NodeShard, nodes: Sequence[str]) -> NDArray[np.int64]:
    """Return where each node is, -1 for one that has no place."""
    return np.fromiter(map(shard.places.get, nodes, repeat(-1)), np.int64, len(nodes))


def _newest(
    places: NDArray[np.int64],
    view: FrameView,
    samples: NDArray[np.int64],
    done: Absorbed,
) -> NDArray[np.int64]:
    """Return one sample per node: of the highest version, and of these the first."""
    if np.bincount(places[samples], minlength=1).max() <= 1:
        return samples
    boots, seqs = view.boots[samples], view.seqs[samples]
    order = samples[np.lexsort((-samples, seqs, boots, places[samples]))]
    last = np.append(places[order][1:] != places[order][:-1], True)
    winner = order[last][np.cumsum(last) - last]
    same = (view.boots[order] == view.boots[winner]) & (view.seqs[order] == view.seqs[winner])
    done.drop("duplicate", int((same & ~last).sum()))
    done.drop("late", int((~same).sum()))
    return np.sort(order[last])


def _update(
    shard: NodeShard,
    places: NDArray[np.int64],
    before: NDArray[np.void],
    samples: NDArray[np.int64],
    view: FrameView,
) -> None:
    """Replace the records of nodes by those of newer samples."""
    after = _records(view, samples)
    after["published_us"] = before["published_us"]
    quality.go_on(before, after)
    after["changed"] = (
        before["changed"]
        | (before["boot"] != after["boot"])
        | (before["totals"][:, _THROTTLED] != after["totals"][:, _THROTTLED])
        | (before["totals"][:, _ECC] != after["totals"][:, _ECC])
    )
    known = list(map(shard.labels.__getitem__, places.tolist()))
    said = [*zip(*_words(view.frame), strict=True)]
    if len(samples) < len(said):
        said = list(map(said.__getitem__, samples.tolist()))
    if said != known:
        for index, (label, was) in enumerate(zip(said, known, strict=True)):
            if label != was:
                shard.labels[places[index]] = Label(*label)
                after["changed"][index] = True
        shard.relabelled()
    shard.rows[places] = after


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
    return Label(*(words[index] for words in _words(view.frame)))


def _words(frame: Frame) -> tuple[tuple[str, ...], ...]:
    """Return a frame's words by column, in the order of `Label`."""
    return frame.nodes, frame.pools, frame.racks, frame.gpu_models, frame.billings


def _records(view: FrameView, samples: NDArray[np.int64]) -> NDArray[np.void]:
    records = np.zeros(len(samples), dtype=NUMBERS)
    records["event_us"] = view.event_us[samples]
    records["boot"] = view.boots[samples]
    records["seq"] = view.seqs[samples]
    records["gpus"] = view.gpus[samples]
    records["unpublished"] = True
    records["totals"] = view.totals[samples]
    records["present"] = view.present[samples]
    quality.start(records, view.outside[samples])
    return records
