"""Per-minute series in a bounded ring, and the robust statistics read from them.

A ring lives in a component's state as bytes: float16 holds any sensor to one part in two
thousand, which is below its noise, in half the room. Missing minutes are NaN.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.component import State
from gpuloop.schemas.units import MINUTE_US

Array = NDArray[np.float32]

WINDOW_MINUTES: Final = 120
NEVER: Final = -1
MOST: Final = 65_504.0
"""The largest number that a cell can hold."""

MAD_TO_SIGMA: Final = 1.4826


def minute_of(time_us: int) -> int:
    """Return the minute since 1970 that a time falls into; a minute owns the moment it ends."""
    return (time_us - 1) // MINUTE_US


class Ring(State):
    """The last `WINDOW_MINUTES` minutes of some series, minute m in row m % WINDOW_MINUTES."""

    values: bytearray
    newest: int = NEVER

    @classmethod
    def empty(cls, width: int) -> "Ring":
        """Return a ring of `width` series with nothing in it."""
        blank = np.full((WINDOW_MINUTES, width), np.nan, dtype="<f2")
        return cls(values=bytearray(blank.tobytes()))

    def put(self, first: int, last: int, row: NDArray[np.floating]) -> None:
        """Set minutes `first` to `last` to one row; what is older than the window is dropped.

        A number that a cell cannot hold is as good as none: no sensor means it, and an infinite
        one would spread to all that is computed from the series.
        """
        held = np.where(np.abs(row) <= MOST, row, np.nan)
        cells = self._cells(len(row))
        if last > self.newest:
            gap = min(last - self.newest, WINDOW_MINUTES)
            cells[np.arange(last - gap + 1, last + 1) % WINDOW_MINUTES] = np.nan
            self.newest = last
        first = max(first, self.newest - WINDOW_MINUTES + 1)
        if first <= last:
            cells[np.arange(first, last + 1) % WINDOW_MINUTES] = held

    def until(self, minute: int, width: int) -> Array:
        """Return the window that ends with `minute`, oldest first, shape (window, width)."""
        out = np.full((WINDOW_MINUTES, width), np.nan, dtype=np.float32)
        ahead = self.newest - minute
        if self.newest == NEVER or abs(ahead) >= WINDOW_MINUTES:
            return out
        cells = np.roll(self._cells(width), -(self.newest + 1) % WINDOW_MINUTES, axis=0)
        if ahead >= 0:
            out[ahead:] = cells[: WINDOW_MINUTES - ahead]
        else:
            out[:ahead] = cells[-ahead:]
        return out

    def _cells(self, width: int) -> NDArray[np.float16]:
        return np.frombuffer(self.values, dtype="<f2").reshape(WINDOW_MINUTES, width)


def median(values: Array, axis: int = -1) -> Array:
    """Return the median over an axis, ignoring NaN; NaN where nothing is left."""
    ordered = np.sort(values, axis=axis)  # NaN last
    present = np.count_nonzero(~np.isnan(ordered), axis=axis, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(present - 1, 0) // 2, axis)
    high = np.take_along_axis(ordered, np.where(present > 0, present // 2, 0), axis)
    middle: Array = np.squeeze((low + high) / 2, axis=axis)
    return middle


def spread(values: Array, axis: int = -1) -> Array:
    """Return the standard deviation that the median absolute deviation implies."""
    away = np.abs(values - np.expand_dims(median(values, axis), axis))
    scale: Array = np.float32(MAD_TO_SIGMA) * median(away, axis)
    return scale
