"""Samples of a fleet: as a backlog, or paced as a fleet would send them.

Usage as a process: load.py SERVERS PREFIX NODES SECONDS [frames]
"""

import sys
import time
from collections.abc import Iterator
from typing import Final

import confluent_kafka as ck
import msgspec
import numpy as np

from gpuloop.loop.shells import clock
from gpuloop.loop.shells.partition import partition_of
from gpuloop.schemas.catalogue import SHARDS
from gpuloop.schemas.codec import encode
from gpuloop.schemas.identity import source_event_id
from gpuloop.schemas.messages import GpuSample
from gpuloop.streams import frames

FLEET: Final = "bench"
GPUS: Final = 8
VARIANTS: Final = 64
STEPS: Final = 50
"""A second is sent in as many parts."""
PRODUCER: Final = {
    "compression.type": "lz4",
    "linger.ms": 5,
    "partitioner": "murmur2_random",
    "queue.buffering.max.messages": 500_000,
}


def sample(number: int, seq: int, at_us: int, values: np.ndarray) -> GpuSample:
    """Return a node's sample: a working DGX A100 that says all it can."""
    ratios = [tuple(row) for row in values[:4].tolist()]
    return GpuSample(
        fleet=FLEET,
        node=f"a100-n{number:05d}",
        pool=f"pool-{number % 3}",
        rack=f"rack-{number // 16:04d}",
        gpu_model="NVIDIA A100-SXM4-80GB",
        billing="on_demand",
        event_time_us=at_us,
        boot=1,
        seq=seq,
        gpu_ids=tuple(f"GPU-{number:08x}-0000-0000-0000-{gpu:012x}" for gpu in range(GPUS)),
        utilisation=ratios[0],
        sm_active=ratios[1],
        tensor_active=tuple((values[1] * values[2]).round(3).tolist()),
        memory_used=ratios[3],
        temperature_celsius=tuple((35 + 40 * values[4]).round().tolist()),
        power_watts=tuple((80 + 320 * values[5]).round(1).tolist()),
        sm_clock_mhz=(1410.0,) * GPUS,
        throttle_reasons=(4,) * GPUS,
        nvlink_bytes_per_second=tuple((3e11 * values[6]).round().tolist()),
        pcie_bytes_per_second=tuple((2e10 * values[7]).round().tolist()),
        ecc_corrected=(0,) * GPUS,
        ecc_uncorrected=(0,) * GPUS,
    )


class Fleet:
    """Records of a fleet's samples, put together from prepared text."""

    def __init__(self, nodes: int) -> None:
        rng = np.random.default_rng(7)
        values = rng.random((VARIANTS, 8, GPUS)).round(3)
        self.nodes: Final = nodes
        self._parts: list[tuple[bytes, bytes, bytes, tuple[tuple[str, bytes], ...]]] = []
        mark, seq = 777_777_777_777_777, 555_555_555
        for number in range(nodes):
            one = sample(number, seq, mark, values[number % VARIANTS])
            record = encode(
                "telemetry.gpu", one.node, one, event_id="?", source="bench", time_us=mark
            )
            before, _, after = record.value.partition(str(mark).encode())
            between, _, rest = after.partition(str(seq).encode())
            self._parts.append((before, between, rest, record.headers))
            self._key = record.key
        self._names = [part[0].split(b'"node":"')[1].split(b'"')[0] for part in self._parts]

    def record(
        self, number: int, seq: int, at_us: int
    ) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
        """Return key, value and headers of a node's sample."""
        before, between, rest, headers = self._parts[number]
        name = self._names[number]
        event_id = source_event_id(FLEET, name.decode(), 1, seq).encode()
        changed = [(k, event_id) if k == "ce_id" else (k, v) for k, v in headers]
        value = b"%b%d%b%d%b" % (before, at_us, between, seq, rest)
        return name, value, changed


def fill(servers: str, topic: str, nodes: int, records: int) -> int:
    """Write a backlog, a round of all nodes after the other; return the bytes of its values."""
    fleet, producer, size = Fleet(nodes), ck.Producer({"bootstrap.servers": servers} | PRODUCER), 0
    begin_us = clock.wall_us() - records // nodes * 1_000_000
    for n in range(records):
        round_, number = divmod(n, nodes)
        key, value, headers = fleet.record(number, round_ + 1, begin_us + round_ * 1_000_000)
        size += len(value)
        while True:
            try:
                producer.produce(topic, key=key, value=value, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        if n % 1000 == 0:
            producer.poll(0)
    producer.flush()
    return size


def _beats(seconds: int) -> Iterator[tuple[int, int]]:
    """Yield (second, step) when it is due."""
    begin = time.monotonic()
    for n in range(seconds * STEPS):
        wait = begin + n / STEPS - time.monotonic()
        if wait > 0:
            time.sleep(wait)  # The load is a matter of time: there is no event to wait for.
        yield divmod(n, STEPS)


def pace(servers: str, prefix: str, nodes: int, seconds: int) -> None:
    """Send a sample of every node each second, evenly."""
    fleet, producer = Fleet(nodes), ck.Producer({"bootstrap.servers": servers} | PRODUCER)
    for _, step in _beats(seconds):
        now_us = clock.wall_us()
        for number in range(step, nodes, STEPS):
            key, value, headers = fleet.record(number, now_us // 1_000_000, now_us)
            producer.produce(f"{prefix}telemetry.gpu", key=key, value=value, headers=headers)
        producer.poll(0)
    producer.flush()


def framed(servers: str, prefix: str, nodes: int, records: int, size: int) -> int:
    """Write a backlog of frames, as a scraper of many nodes would; return the bytes of values."""
    rng = np.random.default_rng(7)
    values = rng.random((VARIANTS, 8, GPUS)).round(3)
    producer = ck.Producer({"bootstrap.servers": servers} | PRODUCER)
    numbers: list[list[int]] = [[] for _ in range(SHARDS)]
    for number in range(nodes):
        numbers[partition_of(f"a100-n{number:05d}".encode(), SHARDS)].append(number)
    begin_us, total = clock.wall_us() - records // nodes * 1_000_000, 0
    for round_ in range(records // nodes):
        at_us = begin_us + round_ * 1_000_000
        for partition, mine in enumerate(numbers):
            for first in range(0, len(mine), size):
                chunk = mine[first : first + size]
                samples = [sample(n, round_ + 1, at_us, values[n % VARIANTS]) for n in chunk]
                frame = frames.pack(FLEET, partition, samples)
                total += _send(producer, f"{prefix}internal.frames", frame, at_us)
            beat = frames.tick(FLEET, partition, at_us)
            total += _send(producer, f"{prefix}internal.frames", beat, at_us)
    producer.flush()
    return total


def _send(producer: ck.Producer, topic: str, frame: msgspec.Struct, at_us: int) -> int:
    record = encode(
        "internal.frames",
        str(frame.partition),
        frame,
        event_id=f"{frame.partition}/{at_us}/{frame.seqs[:1]}{frame.nodes[:1]}",
        source="bench",
        time_us=at_us,
        partition=frame.partition,
    )
    producer.produce(
        topic,
        key=record.key,
        value=record.value,
        headers=list(record.headers),
        partition=frame.partition,
    )
    producer.poll(0)
    return len(record.value)


if __name__ == "__main__":
    pace(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
