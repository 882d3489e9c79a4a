"""What nodes say, and what the tables of the observe stage make of it."""

from typing import Any

from msgspec.structs import replace

from gpuloop.schemas.messages import GpuSample
from gpuloop.streams.nodes import NodeShard


def gpu_sample(node: str = "n1", *, seq: int = 1, at: int = 1, **said: Any) -> GpuSample:
    """Return the sample of a node with two GPUs that say nothing but what is given."""
    silent = GpuSample(
        fleet="local",
        node=node,
        pool="h100",
        rack="r1",
        gpu_model="H100",
        billing="spot",
        event_time_us=at,
        boot=1,
        seq=seq,
        gpu_ids=("a", "b"),
    )
    return replace(silent, **said)


def belief(shard: NodeShard) -> list[tuple[object, ...]]:
    """Return what a shard believes, without what differs from run to run: when it was told."""
    fields = ["event_us", "boot", "seq", "gpus", "totals", "present"]
    return [
        (label, *(row[name].tolist() for name in fields))
        for label, row in zip(shard.labels, shard.rows, strict=True)
    ]
