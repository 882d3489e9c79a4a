"""Blocks of nodes as rows of the live table, and the shard that rows add up to.

A row's key holds its partition, how often the shard had split, and the block's number, so that the
rows of a shard before and after a split never overwrite each other.
"""

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from gpuloop.streams.nodes import NUMBERS, Block, Label, NodeShard, fill, nodes_of


def row_key(partition: int, depth: int, number: int) -> bytes:
    """Return the table key of a block."""
    return f"{partition}/{depth}/{number}".encode()


def rows_of(shard: NodeShard, partition: int, numbers: Iterable[int]) -> dict[bytes, bytes]:
    """Return the table rows of blocks; one without nodes has an empty row, to be deleted."""
    return {
        row_key(partition, shard.depth, number): (
            msgspec.msgpack.encode(block) if (block := shard.blocks[number]).labels else b""
        )
        for number in sorted(numbers)
    }


def shard_from(rows: Mapping[bytes, bytes], partition: int) -> NodeShard:
    """Return the shard whose blocks are in `rows`; rows of other partitions are passed over.

    A crash in the middle of a split leaves rows of two depths: of a node in both the newer counts.
    """
    decoder = msgspec.msgpack.Decoder(Block)
    own = [
        (int(depth), decoder.decode(rows[key]))
        for key in sorted(rows)
        for owner, depth, _ in [key.decode().split("/")]
        if int(owner) == partition
    ]
    newest: dict[str, tuple[Label, bytes]] = {}
    for _, block in sorted(own, key=lambda item: item[0]):
        for label, numbers in nodes_of(block):
            known = newest.get(label.node)
            if known is None or _version(known[1]) <= _version(numbers):
                newest[label.node] = (label, numbers)
    depth = max((depth for depth, _ in own), default=0)
    shard = NodeShard(blocks=[Block() for _ in range(1 << depth)])
    fill(shard, [newest[node] for node in sorted(newest)])
    return shard


def _version(numbers: bytes) -> tuple[int, int]:
    (row,) = np.frombuffer(numbers, dtype=NUMBERS)
    return int(row["boot"]), int(row["seq"])
