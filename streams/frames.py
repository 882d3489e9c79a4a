"""Node samples packed by column, and unpacked to numpy.

A frame exists because Python pays per message: thousands of nodes cross Faust as a few arrays.
This module owns what a sample becomes on the way: blank codes and nulls turn into NaN, throttle
bits into one flag. It knows no topic, table or clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.messages import Frame, GpuSample
from gpuloop.schemas.messages.internal import FRAME_COLUMNS
from gpuloop.schemas.units import MAX_GPUS_PER_NODE

FEATURES: Final[tuple[str, ...]] = (
    "utilisation",
    "sm_active",
    "tensor_active",
    "memory_used",
    "temperature_celsius",
    "power_watts",
    "sm_clock_mhz",
    "throttled",
    "nvlink_bytes_per_second",
    "ecc_uncorrected",
)
"""The columns that nodes and pools are described by, in the order of every feature axis."""

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

_LEAST, _MOST = np.array([POSSIBLE[name] for name in FEATURES]).T[:, :, None]
_BITS: Final = 1 << np.arange(len(FEATURES))[:, None]

_SOURCE: Final = {name: name for name in FRAME_COLUMNS} | {"throttled": "throttle_reasons"}


@dataclass(frozen=True, slots=True)
class FrameView:
    """A data frame as sums over each sample's GPUs, in sample order.

    `totals` is float64 (samples, features), `present` the count of GPUs that had a value;
    `outside` has a bit set for each feature of which some GPU said what is not `POSSIBLE`.
    """

    frame: Frame
    totals: NDArray[np.float64]
    present: NDArray[np.int32]
    outside: NDArray[np.uint16]


def pack(fleet: str, partition: int, samples: Sequence[GpuSample]) -> Frame:
    """Return the data frame of samples of one partition, in their order."""
    gpus = tuple(len(sample.gpu_ids) for sample in samples)
    columns: dict[str, bytes] = {}
    for name in FRAME_COLUMNS:
        values = _gather(samples, _SOURCE[name], gpus)
        if values is None:
            continue
        missing = ~np.isfinite(values) | _blank(values)
        if name == "throttled":
            bits = np.where(missing, 0.0, values).astype(np.int64)
            values = ((bits & HARMFUL_THROTTLE_BITS) != 0).astype(np.float64)
        columns[name] = np.where(missing, np.nan, values).astype("<f4").tobytes()
    return Frame(
        fleet=fleet,
        partition=partition,
        tick_us=None,
        nodes=tuple(s.node for s in samples),
        pools=tuple(s.pool for s in samples),
        racks=tuple(s.rack for s in samples),
        gpu_models=tuple(s.gpu_model for s in samples),
        billings=tuple(s.billing for s in samples),
        event_time_us=tuple(s.event_time_us for s in samples),
        boots=tuple(s.boot for s in samples),
        seqs=tuple(s.seq for s in samples),
        gpus=gpus,
        columns=columns,
    )


def tick(fleet: str, partition: int, tick_us: int) -> Frame:
    """Return the frame that says: the fleet clock passed `tick_us`."""
    return Frame(fleet=fleet, partition=partition, tick_us=tick_us)


def unpack(frame: Frame) -> FrameView:
    """Return the sums over each sample's GPUs.

    Raises:
        BadInput: columns and lists do not line up.

    """
    samples = len(frame.nodes)
    for name in ("pools", "racks", "gpu_models", "billings", "event_time_us", "boots", "seqs"):
        if len(getattr(frame, name)) != samples:
            raise BadInput("inconsistent", f"{name} does not have {samples} entries")
    gpus = np.array(frame.gpus, dtype=np.int64)
    if len(gpus) != samples or np.any(gpus < 1) or np.any(gpus > MAX_GPUS_PER_NODE):
        raise BadInput("inconsistent", "a sample has no GPUs, or too many")
    if set(frame.billings) - {"on_demand", "spot"}:
        raise BadInput("inconsistent", "a sample has an unknown billing")
    width = int(gpus.sum())
    values = np.full((len(FEATURES), width), np.nan)
    for row, name in enumerate(FEATURES):
        data = frame.columns.get(name)
        if data is None:
            continue
        if len(data) != 4 * width:
            raise BadInput("inconsistent", f"column {name} does not hold {width} float32")
        values[row] = np.frombuffer(data, dtype="<f4")
    outside = np.zeros(samples, dtype=np.uint16)
    if not samples:
        nothing = np.zeros((0, len(FEATURES)))
        return FrameView(frame, nothing, nothing.astype(np.int32), outside)
    known = (values >= _LEAST) & (values <= _MOST)
    starts = np.concatenate(([0], np.cumsum(gpus)[:-1]))
    impossible = np.isfinite(values) & ~known
    if impossible.any():
        bits = np.where(impossible, _BITS, 0)
        outside = np.bitwise_or.reduce(np.bitwise_or.reduceat(bits, starts, axis=1)).astype("u2")
    totals = np.add.reduceat(np.where(known, values, 0.0), starts, axis=1)
    present = np.add.reduceat(known.astype(np.int32), starts, axis=1)
    return FrameView(
        frame, np.ascontiguousarray(totals.T), np.ascontiguousarray(present.T), outside
    )


def _gather(
    samples: Sequence[GpuSample], source: str, gpus: tuple[int, ...]
) -> NDArray[np.float64] | None:
    """Return one field of all samples end to end, NaN for null; None when no sample has it."""
    values: list[float | None] = []
    found = False
    for sample, count in zip(samples, gpus, strict=True):
        field: tuple[float | None, ...] = getattr(sample, source)
        if field:
            found = True
            values.extend(field)
        else:
            values.extend(repeat(None, count))
    return np.array(values, dtype=np.float64) if found else None


def _blank(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    int32 = (values >= INT32_BLANK) & (values <= INT32_MAX)
    return int32 | (values >= FP64_BLANK)
