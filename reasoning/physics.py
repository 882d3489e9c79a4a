"""What a node's sensors should read under its load, and how far they are from that.

A hot GPU that works hard is well; a hot GPU that idles is not. Each channel is therefore compared
with what its physical parents and the node's own past explain: temperature with recent power (one
law per pool, one offset per node), link traffic with activity since the present jobs came, harmful
throttling and memory errors with their absence. Clocks are not compared: a node's mean clock moves
with every GPU that falls idle, and the throttle bits say what a low clock would. Minutes after a
node fell ill are kept out of its baseline.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.reasoning.series import WINDOW_MINUTES, Array, median, spread

METRICS: Final = (
    "sm_active",
    "temperature_celsius",
    "power_watts",
    "throttled",
    "nvlink_bytes_per_second",
    "ecc_uncorrected",
)
UNITS: Final = np.array([1.0, 1.0, 1.0, 1.0, 1e9, 1.0], dtype=np.float32)
"""What one stored unit is worth, so that every metric fits a float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A sensor that shows an illness: which way is bad, and how much it moves when well."""

    metric: str
    bad: float
    floor: float
    unit: str


CHANNELS: Final = (
    Channel(metric="temperature_celsius", bad=+1.0, floor=1.0, unit="C"),
    Channel(metric="throttled", bad=+1.0, floor=0.02, unit="%"),
    Channel(metric="nvlink_bytes_per_second", bad=-1.0, floor=0.05, unit="%"),
    Channel(metric="ecc_uncorrected", bad=+1.0, floor=0.1, unit="errors"),
)

GUARD_MINUTES: Final = 3
SETTLING_MINUTES: Final = 2
MIN_BASELINE: Final = 5
BUSY: Final = 0.005
_HEAT_MEMORY_MINUTES: Final = (0.7, 1.5, 3.0, 6.0, 10.0)
_HEAT_LAGS: Final = 20
_TRIM: Final = 4.0

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The nodes of a pool over the window: `x` is (node, minute, metric), NaN where unknown.

    `settled[n]` is the window index at which the node's present jobs came, `clean[n]` the one at
    which it fell ill (the window's length when it is well).
    """

    nodes: tuple[str, ...]
    gpus: Array
    x: Array
    settled: NDArray[np.int64]
    clean: NDArray[np.int64]

    def metric(self, name: str) -> Array:
        """Return one metric as (node, minute)."""
        series: Array = self.x[:, :, METRICS.index(name)]
        return series

    def baseline(self) -> Mask:
        """Return the minutes that may teach what is normal."""
        index = np.arange(self.x.shape[1])
        past = index < self.x.shape[1] - GUARD_MINUTES
        mask: Mask = past[None, :] & (index[None, :] < self.clean[:, None])
        return mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """A channel against what was expected: `away` is in degrees, errors or parts of normal."""

    value: Array
    expected: Array
    away: Array
    scale: Array

    def z(self) -> Array:
        """Return robust z-scores."""
        scores: Array = self.away / self.scale[:, None]
        return scores


def deviations(panel: Panel) -> tuple[Deviation, ...]:
    """Return one deviation per channel, in the order of `CHANNELS`."""
    heat, throttle, link, ecc = CHANNELS
    base = panel.baseline()
    load = panel.metric("sm_active")
    busy = load > BUSY
    settled = np.arange(WINDOW_MINUTES)[None, :] >= panel.settled[:, None] + SETTLING_MINUTES
    traffic = panel.metric("nvlink_bytes_per_second")
    with np.errstate(divide="ignore", invalid="ignore"):
        intensity = np.where(busy & settled & (traffic > 0), traffic / load, np.nan)
    return (
        _heat(panel, base, heat.floor),
        _above_zero(panel.metric("throttled"), throttle.floor),
        _relative(intensity.astype(np.float32), base, link.floor),
        _errors(panel, ecc.floor),
    )


def _relative(value: Array, base: Mask, floor: float) -> Deviation:
    """Compare with the median of the baseline, as a part of it."""
    known = np.where(base, value, np.nan).astype(np.float32)
    normal = median(known)
    normal[np.count_nonzero(~np.isnan(known), axis=1) < MIN_BASELINE] = np.nan
    expected = np.broadcast_to(normal[:, None], value.shape)
    away = (value / expected - 1.0).astype(np.float32)
    return Deviation(value=value, expected=expected, away=away, scale=_scale(away, base, floor))


def _errors(panel: Panel, floor: float) -> Deviation:
    """Count new errors per minute; a counter that falls was reset."""
    counts = panel.metric("ecc_uncorrected") * panel.gpus[:, None]
    new = np.full_like(counts, np.nan)
    new[:, 1:] = np.round(np.maximum(counts[:, 1:] - _filled(counts)[:, :-1], 0.0))
    return _above_zero(new, floor)


def _above_zero(value: Array, floor: float) -> Deviation:
    """Compare with what a healthy node shows, which is nothing."""
    scale = np.full(len(value), floor, dtype=np.float32)
    return Deviation(value=value, expected=np.zeros_like(value), away=value, scale=scale)


def _heat(panel: Panel, base: Mask, floor: float) -> Deviation:
    """Expect a temperature from recent power: one law per pool, one offset per node.

    While loads are steady nothing tells how fast a cooler reacts, and nobody saw the power between
    two samples; what either could explain after a change of load is not taken for a departure.
    """
    value, power = panel.metric("temperature_celsius"), _filled(panel.metric("power_watts"))
    memories = _memories(power)
    known = base & ~np.isnan(value) & ~np.isnan(power)
    rest, gain = np.full_like(value, np.nan), 0.0
    for _ in range(2):
        if np.count_nonzero(known) < MIN_BASELINE:
            break
        rest, gain = _best_law(value, memories, known)
        offset = median(np.where(known, rest, np.nan).astype(np.float32))
        offset[np.count_nonzero(known, axis=1) < MIN_BASELINE] = np.nan
        rest = rest - offset[:, None]
        width = max(float(spread(rest[known], axis=0)), floor)
        known &= np.abs(rest) < _TRIM * width
    slack = max(gain, 0.0) * (memories.max(axis=0) - memories.min(axis=0))
    away: Array = np.sign(rest) * np.maximum(np.abs(rest) - slack, np.float32(0.0))
    return Deviation(value=value, expected=value - away, away=away, scale=_scale(away, base, floor))


def _best_law(value: Array, memories: Array, known: Mask) -> tuple[Array, float]:
    """Return what the best memory leaves unexplained, and its degrees per watt."""
    truth = value[known]
    laws = []
    for memory in memories:
        x = memory[known]
        from_mean = x - x.mean()
        gain = float(from_mean @ (truth - truth.mean()) / max(float(from_mean @ from_mean), 1.0))
        rest = (value - truth.mean()) - np.float32(gain) * (memory - x.mean())
        laws.append((float(np.abs(rest[known]).sum()), gain, rest))
    _, gain, rest = min(laws, key=lambda law: law[0])
    return rest, gain


def _memories(power: Array) -> Array:
    """Return power as coolers of several speeds remember it, (memory, node, minute), in watts."""
    lags = np.arange(_HEAT_LAGS)
    early = np.repeat(power[:, :1], _HEAT_LAGS - 1, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.concatenate([early, power], axis=1), _HEAT_LAGS, axis=1
    )
    kernels = [np.exp(-lags / memory)[::-1] for memory in _HEAT_MEMORY_MINUTES]
    smooth = [windows @ (kernel / kernel.sum()).astype(np.float32) for kernel in kernels]
    late = [windows[:, :, _HEAT_LAGS - 1 - back] for back in range(3)]
    return np.stack([*late, *smooth])


def _filled(series: Array) -> Array:
    """Carry the last known value forward, and the first one backward."""
    index = np.where(np.isnan(series), 0, np.arange(series.shape[1])[None, :])
    carried = np.take_along_axis(series, np.maximum.accumulate(index, axis=1), axis=1)
    first = np.argmax(~np.isnan(series), axis=1)
    start = np.take_along_axis(series, first[:, None], axis=1)
    filled: Array = np.where(np.isnan(carried), start, carried)
    return filled


def _scale(away: Array, base: Mask, floor: float) -> Array:
    """Return each node's spread when well, not below the pool's middle one nor the floor."""
    own = spread(np.where(base, away, np.nan).astype(np.float32))
    peers = median(own, axis=0)
    scale: Array = np.fmax(np.fmax(own, peers), np.float32(floor)).astype(np.float32)
    return scale
