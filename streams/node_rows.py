"""Blocks of nodes as rows of the live table, and the shard that rows add up to.

A row's key holds its partition, how often the shard had split, and the block's number, so that the
rows of a shard before and after a split never overwrite each other.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import numpy as np

from gpuloop.schemas.component import State
from gpuloop.streams.nodes import NUMBERS, Label, NodeShard

_NOBODY: Final = (np.zeros(0, np.int64), msgspec.Raw())


class Block(State):
    """Up to 64 nodes by name: `labels` and, in the same order, `NUMBERS` records."""

    labels: list[Label]
    numbers: bytes


def row_key(partition: int, depth: int, number: int) -> bytes:
    """Return the table key of a block."""
    return f"{partition}/{depth}/{number}".encode()


def rows_of(shard: NodeShard, partition: int, numbers: Iterable[int]) -> dict[bytes, bytes]:
    """Return the table rows of blocks; one without nodes has an empty row, to be deleted."""
    rows, found = shard.rows, {}
    for number in sorted(numbers):
        places, labels = shard.members.get(number, _NOBODY)
        written = msgspec.msgpack.encode({"labels": labels, "numbers": rows[places].tobytes()})
        found[row_key(partition, shard.depth, number)] = written if len(places) else b""
    return found


def shard_from(rows: Mapping[bytes, bytes], partition: int) -> NodeShard:
    """Return the shard whose blocks are in `rows`; rows of other partitions are passed over.

    A crash in the middle of a split leaves rows of two depths: of a node in both the newer counts.
    A row of another version, whose records are of another size, is passed over: its nodes say
    within seconds what they are, and a worker that cannot start would say nothing of any.
    """
    decoder = msgspec.msgpack.Decoder(Block)
    own = [
        (int(depth), decoder.decode(rows[key]))
        for key in sorted(rows)
        for owner, depth, _ in [key.decode().split("/")]
        if int(owner) == partition
    ]
    newest: dict[str, tuple[Label, np.void]] = {}
    for _, block in sorted(own, key=lambda item: item[0]):
        if len(block.numbers) != len(block.labels) * NUMBERS.itemsize:
            continue
        for label, record in zip(
            block.labels, np.frombuffer(block.numbers, dtype=NUMBERS), strict=True
        ):
            known = newest.get(label.node)
            if known is None or _version(known[1]) <= _version(record):
                newest[label.node] = (label, record)
    shard = NodeShard()
    nodes = [newest[node] for node in sorted(newest)]
    records = np.array([record for _, record in nodes], dtype=NUMBERS)
    shard.hold([label for label, _ in nodes], records, max((depth for depth, _ in own), default=0))
    return shard


def _version(record: np.void) -> tuple[int, int]:
    return int(record["boot"]), int(record["seq"])
