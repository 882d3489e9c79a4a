"""What the tables of the observe stage say, without what differs from run to run."""

from gpuloop.streams.nodes import NodeShard


def belief(shard: NodeShard) -> list[tuple[object, ...]]:
    """Return what a shard believes, without when it was last told."""
    fields = ["event_us", "boot", "seq", "gpus", "totals", "present"]
    return [
        (label, *(row[name].tolist() for name in fields))
        for label, row in zip(shard.labels, shard.rows, strict=True)
    ]
