"""Whether a mean has moved for good: ADWIN, from river, and how far it moved.

ADWIN (Bifet and Gavalda, 2007) keeps as long a window as shows no change of its mean and drops the
older part when it does. That says when, not whether it matters: a change counts from a size on,
against a reference that stays where it was while nothing had changed. This module alone knows
river's window, whose bytes are part of the state.
"""

from typing import Final

from river.drift.adwin import AdaptiveWindowing

from gpuloop.schemas.component import State

CONFIDENCE: Final = 0.002
SETTLE_MINUTES: Final = 180
"""Minutes from which the mean is taken for the reference."""
NEW_NORMAL_MINUTES: Final = 24 * 60
"""A change that lasts for this long is the reference from then on."""


class Mean(State):
    """A mean that may drift: river's window, the reference, and since when it has moved."""

    window: bytes = b""
    minutes: int = 0
    reference: float = 0.0
    moved: int = 0


def follow(mean: Mean, value: float) -> float:
    """Take a minute's value in; return by how much the mean has moved, 0 while it has not."""
    window = _window(mean.window)
    cut = window.update(value)
    mean.window = window.__getstate__()
    mean.minutes += 1
    level = float(window.get_total() / window.get_width())
    if mean.minutes <= SETTLE_MINUTES:
        mean.reference = level
        return 0.0
    if mean.moved or cut:
        mean.moved += 1
    if mean.moved > NEW_NORMAL_MINUTES:
        mean.reference, mean.moved = level, 0
    return level - mean.reference if mean.moved else 0.0


def _window(saved: bytes) -> AdaptiveWindowing:
    window = AdaptiveWindowing(
        delta=CONFIDENCE, clock=1, max_buckets=5, min_window_length=5, grace_period=10
    )
    if saved:
        window.__setstate__(saved)
    return window
