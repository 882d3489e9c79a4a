"""Node samples packed by column, and unpacked to numpy.

A frame exists because Python pays per message: thousands of nodes cross Faust as a few arrays.
This module owns what a sample becomes on the way: blank codes and nulls turn into NaN, throttle
bits into one flag. It knows no topic, table or clock.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import attrgetter
from struct import Struct
from struct import error as StructError
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.messages import Frame, GpuSample
from gpuloop.schemas.messages.internal import FRAME_COLUMNS
from gpuloop.schemas.messages.state import FEATURES
from gpuloop.schemas.messages.telemetry import GPU_ARRAYS
from gpuloop.schemas.units import MAX_GPUS_PER_NODE

_RATIO: Final = (0.0, 1.001)
POSSIBLE: Final = {
    "utilisation": _RATIO,
    "sm_active": _RATIO,
    "tensor_active": _RATIO,
    "memory_used": _RATIO,
    "temperature_celsius": (1.0, 125.0),
    "power_watts": (0.0, 2_500.0),
    "sm_clock_mhz": (0.0, 5_000.0),
    "throttled": _RATIO,
    "nvlink_bytes_per_second": (0.0, 4e12),
    "ecc_uncorrected": (0.0, float(1 << 31)),
}
"""What a working sensor of any GPU can say; whatever is outside counts as missing."""

HARMFUL_THROTTLE_BITS: Final = 0x8 | 0x20 | 0x40 | 0x80
"""NVML clock event reasons that cost work: hardware slowdown, thermal, power brake. Idle, clock
settings and the power cap are how a healthy GPU behaves."""

INT32_BLANK: Final = 0x7FFF_FFF0
INT32_MAX: Final = 0x7FFF_FFFF
FP64_BLANK: Final = 140_737_488_355_328.0
"""First codes of DCGM's "no value" ranges; the int64 range lies above `FP64_BLANK` as well."""

_LEAST, _MOST = np.array([POSSIBLE[name] for name in FEATURES], np.float32).T[:, :, None]
_BITS: Final = 1 << np.arange(len(FEATURES))[:, None]

SAMPLE_BYTES: Final = 48
"""Estimated bytes of a sample in a frame beside its names and values."""

_NAN: Final = float("nan")
_HEAD: Final = (
    "node", "pool", "rack", "gpu_model", "billing", "event_time_us", "boot", "seq",
)  # fmt: skip
_HEAD_OF: Final = attrgetter(*_HEAD)
_ARRAYS_OF: Final = attrgetter(*GPU_ARRAYS)
_BESIDE_NODES: Final = (
    "pools", "racks", "gpu_models", "billings", "event_time_us", "boots", "seqs", "gpus",
)  # fmt: skip
LABELS: Final = 5
"""How many of a sample's first fields are words."""


@dataclass(frozen=True, slots=True)
class FrameView:
    """A data frame as sums over each sample's GPUs, in sample order.

    `totals` is float64 (samples, features), `present` the count of GPUs that had a value;
    `outside` has a bit set for each feature of which some GPU said what is not `POSSIBLE`.
    """

    frame: Frame
    event_us: NDArray[np.int64]
    boots: NDArray[np.int64]
    seqs: NDArray[np.int64]
    gpus: NDArray[np.int64]
    totals: NDArray[np.float64]
    present: NDArray[np.int32]
    outside: NDArray[np.uint16]


class FrameBuilder:
    """Collects samples of one partition, each reduced to numbers as it comes.

    A decoded sample is a hundred small objects: to keep thousands of them until a frame is full
    costs more than to decode them, so each is packed at once and let go.
    """

    def __init__(self, fleet: str, partition: int) -> None:
        self._fleet: Final = fleet
        self._partition: Final = partition
        self._heads: Final[list[tuple[Any, ...]]] = []
        self._gpus: Final[list[int]] = []
        self._values: Final[list[bytes]] = []
        self.size = 0
        """Estimated bytes of the frame."""

    def add(self, sample: GpuSample) -> None:
        """Take one more sample."""
        gpus, head = len(sample.gpu_ids), _HEAD_OF(sample)
        values: list[float | None] = []
        for array in _ARRAYS_OF(sample):
            values += array or (_NAN,) * gpus
        self._heads.append(head)
        self._gpus.append(gpus)
        self._values.append(_packed(values))
        self.size += SAMPLE_BYTES + len("".join(head[:LABELS]).encode()) + 4 * len(values)

    def build(self) -> Frame:
        """Return the data frame of what was added, in that order."""
        heads = zip(*self._heads, strict=True) if self._heads else ((),) * len(_HEAD)
        nodes, pools, racks, gpu_models, billings, event_time_us, boots, seqs = heads
        return Frame(
            fleet=self._fleet,
            partition=self._partition,
            tick_us=None,
            nodes=nodes,
            pools=pools,
            racks=racks,
            gpu_models=gpu_models,
            billings=billings,
            event_time_us=event_time_us,
            boots=boots,
            seqs=seqs,
            gpus=tuple(self._gpus),
            columns=self._columns(),
        )

    def _columns(self) -> dict[str, bytes]:
        """Return the bytes of each column in which some sample has a value."""
        values = np.frombuffer(bytearray().join(self._values))
        _clear_blanks(values)
        runs: list[NDArray[np.float64]] = []
        width, at = len(FRAME_COLUMNS), 0
        for gpus, same in groupby(self._gpus):
            size = sum(1 for _ in same) * width * gpus
            runs.append(values[at : at + size].reshape(-1, width, gpus))
            at += size
        said = np.zeros(width, dtype=np.bool_)
        for run in runs:
            said |= ~np.isnan(run).all(axis=(0, 2))
            _flag_throttled(run[:, FRAME_COLUMNS.index("throttled")])
        return {
            name: b"".join([run[:, column].astype("<f4").tobytes() for run in runs])
            for column, name in enumerate(FRAME_COLUMNS)
            if said[column]
        }


def pack(fleet: str, partition: int, samples: Iterable[GpuSample]) -> Frame:
    """Return the data frame of samples of one partition, in their order."""
    builder = FrameBuilder(fleet, partition)
    for sample in samples:
        builder.add(sample)
    return builder.build()


def tick(fleet: str, partition: int, tick_us: int) -> Frame:
    """Return the frame that says: the fleet clock passed `tick_us`."""
    return Frame(fleet=fleet, partition=partition, tick_us=tick_us)


def unpack(frame: Frame) -> FrameView:
    """Return the sums over each sample's GPUs.

    Raises:
        BadInput: columns and lists do not line up.

    """
    samples = len(frame.nodes)
    for name in _BESIDE_NODES:
        if len(getattr(frame, name)) != samples:
            raise BadInput("inconsistent", f"{name} does not have {samples} entries")
    event_us, boots, seqs, gpus = (
        np.fromiter(numbers, np.int64, samples)
        for numbers in (frame.event_time_us, frame.boots, frame.seqs, frame.gpus)
    )
    if np.any(gpus < 1) or np.any(gpus > MAX_GPUS_PER_NODE):
        raise BadInput("inconsistent", "a sample has no GPUs, or too many")
    if set(frame.billings) - {"on_demand", "spot"}:
        raise BadInput("inconsistent", "a sample has an unknown billing")
    totals, present, outside = _sums(_values(frame, int(gpus.sum())), gpus)
    return FrameView(frame, event_us, boots, seqs, gpus, totals, present, outside)


def _values(frame: Frame, width: int) -> NDArray[np.float32]:
    """Return the values by feature and GPU, NaN where a feature has no column."""
    values = np.full((len(FEATURES), width), np.nan, dtype=np.float32)
    for row, name in enumerate(FEATURES):
        data = frame.columns.get(name)
        if data is None:
            continue
        if len(data) != 4 * width:
            raise BadInput("inconsistent", f"column {name} does not hold {width} float32")
        values[row] = np.frombuffer(data, dtype="<f4")
    return values


def _sums(
    values: NDArray[np.float32], gpus: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.uint16]]:
    """Return `totals`, `present` and `outside` of a view."""
    samples, outside = len(gpus), np.zeros(len(gpus), dtype=np.uint16)
    if not samples:
        return np.zeros((0, len(FEATURES))), np.zeros((0, len(FEATURES)), np.int32), outside
    known = (values >= _LEAST) & (values <= _MOST)
    starts = np.cumsum(gpus) - gpus
    if known.all():  # As of most frames: nothing is to be left out or told apart.
        present = np.repeat(gpus.astype(np.int32)[:, None], len(FEATURES), axis=1)
    else:
        impossible = np.isfinite(values) & ~known
        if impossible.any():
            bits = np.bitwise_or.reduceat(np.where(impossible, _BITS, 0), starts, axis=1)
            outside = np.bitwise_or.reduce(bits).astype(np.uint16)
        values = np.where(known, values, np.float32(0.0))
        present = np.ascontiguousarray(np.add.reduceat(known.astype(np.int32), starts, axis=1).T)
    totals = np.add.reduceat(values.astype(np.float64), starts, axis=1)
    return np.ascontiguousarray(totals.T), present, outside


@cache
def _packer(values: int) -> Callable[..., bytes]:
    return Struct(f"={values}d").pack


def _packed(values: Sequence[float | None]) -> bytes:
    """Return values as float64, NaN for null."""
    pack_values = _packer(len(values))
    try:
        return pack_values(*values)
    except StructError:
        return pack_values(*[_NAN if value is None else value for value in values])


def _clear_blanks(values: NDArray[np.float64]) -> None:
    """Turn codes that stand for "no value" into NaN; few values are large enough to be one."""
    large = np.nonzero(values >= INT32_BLANK)
    found = values[large]
    found[(found <= INT32_MAX) | (found >= FP64_BLANK)] = _NAN
    values[large] = found


def _flag_throttled(reasons: NDArray[np.float64]) -> None:
    """Turn bits into 1 where one of them costs work and 0 where none does."""
    known = np.isfinite(reasons)
    bits = reasons[known].astype(np.int64)
    reasons[known] = (bits & HARMFUL_THROTTLE_BITS) != 0
