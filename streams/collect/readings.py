"""Readings of GPUs to a sample of their node.

Owns which values can be believed: blank codes, numbers outside what a field can hold and arrays
that nobody filled become missing, never zero. It knows neither NVML nor DCGM, only the names of
fields in `GpuSample` and `GpuDetail`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import msgspec

from gpuloop.schemas.messages.telemetry import (
    GPU_ARRAYS,
    Billing,
    Celsius,
    Counters,
    GpuDetail,
    GpuSample,
    Ratios,
)
from gpuloop.schemas.units import INT64_MAX, MAX_GPUS_PER_NODE

DETAIL_ARRAYS: Final = GpuDetail.__struct_fields__
_TYPES: Final = {
    entry.name: entry.type
    for kind in (GpuSample, GpuDetail)
    for entry in msgspec.structs.fields(kind)
    if entry.name in GPU_ARRAYS or entry.name in DETAIL_ARRAYS
}
RATIOS: Final = frozenset(name for name, kind in _TYPES.items() if kind == Ratios)
CELSIUS: Final = frozenset(name for name, kind in _TYPES.items() if kind == Celsius)
COUNTERS: Final = frozenset(name for name, kind in _TYPES.items() if kind == Counters)
WIDE: Final = frozenset(
    name for name in COUNTERS if name.endswith(("_ns", "_bytes", "_millijoules"))
)
"""Counters that pass the narrower blank codes as they grow."""

INT32_BLANK: Final = 0x7FFF_FFF0
INT32_MAX: Final = 0x7FFF_FFFF
UINT32_BLANK: Final = 0xFFFF_FFFF
FP64_BLANK: Final = 140_737_488_355_328.0
INT64_BLANK: Final = 0x7FFF_FFFF_FFFF_FFF0
"""First codes of DCGM's "no value" ranges, and NVML's all ones."""

ROUNDING: Final = 0.01
"""How far above 1 a ratio may read by the rounding of its source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """What one device, or one MIG instance, said: values by field name of the sample or detail.

    `index` is the device's own (an instance has that of its GPU). A `lost` device has no values.
    """

    index: int
    id: str
    model: str
    values: Mapping[str, float] = field(default_factory=dict)
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a node stands in its fleet; a source cannot know that, so people say it."""

    fleet: str
    node: str
    pool: str
    rack: str
    billing: Billing


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """When a node was read and in which run and turn of its collector."""

    time_us: int
    boot: int
    seq: int


Refusal = Literal["blank", "out of range", "too many GPUs"]


def clean(readings: Sequence[GpuReading]) -> tuple[list[GpuReading], list[Refusal]]:
    """Return readings with nothing but values that can be believed, and what was left out."""
    refused: list[Refusal] = ["too many GPUs" for _ in readings[MAX_GPUS_PER_NODE:]]
    cleaned = []
    for reading in readings[:MAX_GPUS_PER_NODE]:
        values = {}
        for name, value in reading.values.items():
            if is_blank(name, value):
                refused.append("blank")
            elif (held := believable(name, value)) is None:
                refused.append("out of range")
            else:
                values[name] = held
        cleaned.append(replace(reading, values=values))
    return cleaned, refused


def sample_of(
    readings: Sequence[GpuReading], place: Place, stamp: Stamp, *, detail: bool
) -> GpuSample:
    """Return the sample of a node with at least one device, of clean readings."""
    sample = GpuSample(
        fleet=place.fleet,
        node=place.node,
        pool=place.pool,
        rack=place.rack,
        gpu_model=readings[0].model,
        billing=place.billing,
        event_time_us=stamp.time_us,
        boot=stamp.boot,
        seq=stamp.seq,
        gpu_ids=tuple(reading.id for reading in readings),
    )
    told = _arrays(DETAIL_ARRAYS, readings) if detail else {}
    return msgspec.structs.replace(
        sample,
        detail=msgspec.structs.replace(GpuDetail(), **told) if told else None,
        **_arrays(GPU_ARRAYS, readings),
    )


def _arrays(
    names: Iterable[str], readings: Sequence[GpuReading]
) -> dict[str, tuple[float | None, ...]]:
    columns = {name: tuple(one.values.get(name) for one in readings) for name in names}
    return {
        name: column
        for name, column in columns.items()
        if any(value is not None for value in column)
    }


def is_blank(name: str, value: float) -> bool:
    """Say whether a number is one of the codes by which a source says that it has none."""
    if math.isnan(value) or value >= INT64_BLANK:
        return True
    if name in WIDE:
        return False
    return INT32_BLANK <= value <= INT32_MAX or value == UINT32_BLANK or value >= FP64_BLANK


def believable(name: str, value: float) -> float | None:
    """Return a value as its field holds it; None where the field cannot hold it."""
    if not math.isfinite(value):
        return None
    if name in COUNTERS:
        return int(value) if 0 <= value <= INT64_MAX else None
    if name in CELSIUS:
        return float(value) if -50 <= value <= 200 else None
    if value < 0 or (name in RATIOS and value > 1 + ROUNDING):
        return None
    return min(float(value), 1.0) if name in RATIOS else float(value)
