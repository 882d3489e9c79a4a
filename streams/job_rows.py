"""Blocks of jobs as rows of the live table, and the shard that rows add up to.

Rows outlive the version that wrote them: what arrived was once counted by pool alone, and a row
that says so is read as one class, since a worker that could not read it would never start.
"""

from collections.abc import Mapping

import msgspec

from gpuloop.schemas.component import State
from gpuloop.streams.job_sums import Jobs
from gpuloop.streams.jobs import OTHER_CLASSES, JobBlock, JobRow, JobShard, shard_of


class FormerBlock(State):
    """A row as it was before arrivals were counted by class."""

    jobs: dict[str, JobRow] = {}
    arrived: dict[str, Jobs] = {}
    newest_us: int = 0


def row_key(partition: int, number: int) -> bytes:
    """Return the table key of a block."""
    return f"{partition}/{number}".encode()


def row_of(shard: JobShard, number: int) -> bytes:
    """Return the table row of a block."""
    return msgspec.msgpack.encode(shard.blocks[number])


def shard_from(rows: Mapping[bytes, bytes], partition: int) -> JobShard:
    """Return the shard whose blocks are in `rows`; rows of other partitions are passed over."""
    found: dict[int, JobBlock] = {}
    for key in rows:
        owner, number = key.decode().split("/")
        if int(owner) == partition:
            found[int(number)] = _block(rows[key])
    return shard_of(found)


def _block(row: bytes) -> JobBlock:
    try:
        return msgspec.msgpack.decode(row, type=JobBlock)
    except msgspec.ValidationError:
        former = msgspec.msgpack.decode(row, type=FormerBlock)
    arrived = {pool: {OTHER_CLASSES: sums} for pool, sums in former.arrived.items()}
    return JobBlock(jobs=former.jobs, arrived=arrived, newest_us=former.newest_us)
