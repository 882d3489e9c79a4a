"""The past of a subject's series, as much of it as windows and lags need, in bounded memory.

The last hour is kept by the minute, which also tells a late value from a second one. Longer spans
are kept as panes of ten minutes, half an hour and four hours, each as count, mean, squared
deviations, least and greatest: enough to merge. All of it lives in byte arrays that are changed in
place and saved as they are. A value that is late by less than an hour still enters its panes: what
was told before stays told, what is told afterwards knows it.
"""

from functools import cache
from typing import Final, Literal

import numpy as np
from msgspec import field
from numpy.typing import NDArray

from gpuloop.schemas.component import State
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams.features.definitions import LAGS, WINDOWS, Window

Floats = NDArray[np.float64]
Taken = Literal["taken", "duplicate", "late"]

LATE_MINUTES: Final = 60
RING_MINUTES: Final = 64
NEVER: Final = -1
PANES: Final = tuple(
    (window.pane_us // MINUTE_US, window.span_us // window.pane_us + 2)
    for window in WINDOWS
    if window.pane_us > MINUTE_US
)
"""Minutes of a pane and number of panes kept, by tier: one more for the lag, one to begin."""
MOST: Final = 1e18
"""The largest number that is taken for one; what is beyond would drown all others for a week."""
_NOISE: Final = 1e-9
"""Deviations below this part of the mean are rounding: the series stood still."""


@cache
def _minute_type(width: int) -> np.dtype[np.void]:
    return np.dtype([("minute", "<i8"), ("value", "<f4", (width,)), ("quality", "<f4", (width,))])


@cache
def _pane_type(width: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("pane", "<i8"),
            ("n", "<i4", (width,)),
            ("quality", "<f8", (width,)),
            ("mean", "<f8", (width,)),
            ("m2", "<f8", (width,)),
            ("low", "<f4", (width,)),
            ("high", "<f4", (width,)),
        ]
    )


class Windows(State):
    """The past of `width` series. `newest` is the last minute that was told."""

    width: int
    newest: int = NEVER
    minutes: bytearray = bytearray()
    tiers: list[bytearray] = field(default_factory=list)

    @classmethod
    def empty(cls, width: int) -> "Windows":
        """Return a past in which nothing happened."""
        minutes = np.zeros(RING_MINUTES, dtype=_minute_type(width))
        minutes["minute"] = NEVER
        tiers = []
        for _, count in PANES:
            panes = np.zeros(count, dtype=_pane_type(width))
            panes["pane"] = NEVER
            tiers.append(bytearray(panes.tobytes()))
        return cls(width=width, minutes=bytearray(minutes.tobytes()), tiers=tiers)

    def ring(self) -> NDArray[np.void]:
        """Return the minutes as a writable view."""
        return np.frombuffer(self.minutes, dtype=_minute_type(self.width))

    def panes(self, tier: int) -> NDArray[np.void]:
        """Return the panes of a tier as a writable view."""
        return np.frombuffer(self.tiers[tier], dtype=_pane_type(self.width))


def put(past: Windows, minute: int, values: Floats, quality: Floats) -> Taken:
    """Take one minute's values in, NaN where there is none; a minute counts once."""
    if past.newest != NEVER and minute <= past.newest - LATE_MINUTES:
        return "late"
    row = past.ring()[minute % RING_MINUTES]
    if row["minute"] == minute:
        return "duplicate"
    kept = np.where(np.abs(values) <= MOST, values, np.nan)
    values = kept.astype(np.float32).astype(np.float64)  # What is kept is what is counted.
    row["minute"], row["value"], row["quality"] = minute, values, quality
    known = np.isfinite(values)
    for tier, (size, count) in enumerate(PANES):
        pane = past.panes(tier)[minute // size % count]
        if pane["pane"] != minute // size:
            pane["pane"] = minute // size
            for name in ("n", "quality", "mean", "m2"):
                pane[name] = 0
            pane["low"], pane["high"] = np.inf, -np.inf
        _add(pane, np.where(known, values, 0.0), np.where(known, quality, 0.0), known)
    past.newest = max(past.newest, minute)
    return "taken"


def _add(pane: np.void, values: Floats, quality: Floats, known: NDArray[np.bool_]) -> None:
    """Add a value to count, mean and squared deviations (Welford, 1962)."""
    pane["n"] += known
    pane["quality"] += quality
    away = np.where(known, values - pane["mean"], 0.0)
    pane["mean"] += away / np.maximum(pane["n"], 1)
    pane["m2"] += away * np.where(known, values - pane["mean"], 0.0)
    pane["low"] = np.where(known, np.minimum(pane["low"], values), pane["low"])
    pane["high"] = np.where(known, np.maximum(pane["high"], values), pane["high"])


def rolling(past: Windows, minute: int) -> tuple[Floats, Floats]:
    """Return the statistics and the quality of each window that ends with `minute`.

    Shapes are (window, statistic, series) in the order of `WINDOWS` and `STATISTICS`, and (window,
    series); statistics are NaN where nothing is known. Quality is the share of the window's minutes
    that had a value, each weighted by the quality of that.
    """
    told = np.full((len(WINDOWS), 4, past.width), np.nan)
    quality = np.zeros((len(WINDOWS), past.width))
    tier = 0
    for index, window in enumerate(WINDOWS):
        if window.pane_us == MINUTE_US:
            told[index], quality[index] = _of_minutes(past, minute, window.span_us // MINUTE_US)
        else:
            told[index], quality[index] = _of_panes(past, minute, tier)
            tier += 1
    return told, quality


def _of_minutes(past: Windows, minute: int, span: int) -> tuple[Floats, Floats]:
    ring = past.ring()
    rows = ring[(ring["minute"] > minute - span) & (ring["minute"] <= minute)]
    values = rows["value"].astype(np.float64)
    known = np.isfinite(values)
    n = known.sum(axis=0)
    least = np.maximum(n, 1)
    mean = np.where(known, values, 0.0).sum(axis=0) / least
    m2 = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
    low = np.where(known, values, np.inf).min(axis=0, initial=np.inf)
    high = np.where(known, values, -np.inf).max(axis=0, initial=-np.inf)
    quality = np.where(known, rows["quality"], 0.0).sum(axis=0, dtype=np.float64) / span
    return _statistics(n, mean, m2, low, high), quality


def _of_panes(past: Windows, minute: int, tier: int) -> tuple[Floats, Floats]:
    """Merge panes (Chan, Golub and LeVeque, 1979)."""
    size, kept = PANES[tier]
    panes = past.panes(tier)
    last = minute // size
    first = last - (kept - 2) + 1
    rows = panes[(panes["pane"] >= first) & (panes["pane"] <= last)]
    counts = rows["n"].astype(np.float64)
    n = counts.sum(axis=0)
    mean = (counts * rows["mean"]).sum(axis=0) / np.maximum(n, 1)
    m2 = (rows["m2"] + counts * (rows["mean"] - mean) ** 2).sum(axis=0)
    low = rows["low"].min(axis=0, initial=np.inf).astype(np.float64)
    high = rows["high"].max(axis=0, initial=-np.inf).astype(np.float64)
    quality = rows["quality"].sum(axis=0) / (minute + 1 - first * size)
    return _statistics(n, mean, m2, low, high), quality


def _statistics(n: Floats, mean: Floats, m2: Floats, low: Floats, high: Floats) -> Floats:
    std = np.sqrt(m2 / np.maximum(n, 1))
    std = np.where(std <= _NOISE * np.abs(mean), 0.0, std)
    return np.where(n > 0, np.stack([mean, std, low, high]), np.nan)


def lagged(past: Windows, minute: int) -> tuple[Floats, Floats]:
    """Return the values of each lag before `minute` and their quality, (lag, series) both."""
    told = np.full((len(LAGS), past.width), np.nan)
    quality = np.zeros((len(LAGS), past.width))
    for index, lag in enumerate(LAGS):
        at = minute - lag.span_us // MINUTE_US
        if lag.pane_us == MINUTE_US:
            row = past.ring()[at % RING_MINUTES]
            if row["minute"] == at:
                told[index] = row["value"]
                quality[index] = np.where(np.isfinite(row["value"]), row["quality"], 0.0)
            continue
        size, count = PANES[_tier(lag)]
        pane = past.panes(_tier(lag))[at // size % count]
        if pane["pane"] == at // size:
            told[index] = np.where(pane["n"] > 0, pane["mean"], np.nan)
            quality[index] = pane["quality"] / size
    return told, quality


def _tier(window: Window) -> int:
    return [size for size, _ in PANES].index(window.pane_us // MINUTE_US)
