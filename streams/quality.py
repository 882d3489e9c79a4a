"""Which sensor readings of a node are not to be believed, and why.

Three things are noticed. A reading may be impossible; such values count as missing from the start.
A reading may repeat exactly for longer than a working GPU lets it: the sensor is frozen. And
readings may contradict each other. What is doubted keeps its value, for people to look at, but its
quality is zero and it enters no mean of a pool. Everything is judged from a node's last record and
how long each reading has stood still, by arrays over nodes; this module keeps nothing itself.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.schemas.messages.state import FEATURES, Doubt
from gpuloop.schemas.units import MINUTE_US, SECOND_US

Codes = NDArray[np.uint8]

DOUBTS: Final[tuple[Doubt | None, ...]] = (None, "out_of_range", "contradictory", "frozen")
"""What a code means; of several doubts about one reading the last one is told."""
OUT_OF_RANGE, CONTRADICTORY, FROZEN = 1, 2, 3
DISTRUSTED: Final = CONTRADICTORY
"""From this code on nothing of the reading is used; below, other GPUs of the node still count."""

BUSY: Final = 0.05
STILL_US: Final = 10 * MINUTE_US
STILL_CELSIUS_US: Final = 30 * MINUTE_US
"""Temperatures come in whole degrees, so an even load can hold them for a while."""
_STILL_LIMITS_US: Final = {
    "utilisation": STILL_US,
    "sm_active": STILL_US,
    "tensor_active": STILL_US,
    "temperature_celsius": STILL_CELSIUS_US,
    "power_watts": STILL_US,
    "nvlink_bytes_per_second": STILL_US,
}
"""Readings that move while a GPU works. Memory, clocks and counters may well stand still."""

CLOCK_US: Final = 16 * SECOND_US
"""The unit of `still`; 16 bits of it go round in twelve days, then a stillness starts anew."""

HARD_AT_WORK: Final = 0.5
SM_AT_WORK: Final = 0.2
ACTIVITY_SLACK: Final = 0.05
STOPPED_MHZ: Final = 100.0
NEAR_IDLE: Final = 1.25
IDLE_WATTS: Final = {"h100": 70.0, "a100": 55.0, "l4": 16.0}
"""What a board draws at rest, by the word in its model's name; others are not judged by power."""

_WATCHED: Final = np.array([FEATURES.index(name) for name in _STILL_LIMITS_US])
_LIMITS: Final = np.array([limit // CLOCK_US for limit in _STILL_LIMITS_US.values()], np.uint16)
_SATURATES: Final = np.array([name in FEATURES[:3] for name in _STILL_LIMITS_US])
_MAY_BE_ZERO: Final = np.array(
    [name in ("temperature_celsius", "power_watts") for name in _STILL_LIMITS_US]
)
_BITS: Final = (1 << np.arange(len(FEATURES))).astype(np.uint16)

FIELDS: Final[list[tuple[Any, ...]]] = [
    ("still", "<u2", (len(_WATCHED),)),
    ("outside", "<u2"),
]
"""What a node's record carries for this module: since when each watched reading stands still, in
`CLOCK_US`, and a bit per feature of which some GPU said the impossible."""

_UTILISATION, _SM = FEATURES.index("utilisation"), FEATURES.index("sm_active")
_TENSOR, _POWER = FEATURES.index("tensor_active"), FEATURES.index("power_watts")
_CLOCK, _THROTTLED = FEATURES.index("sm_clock_mhz"), FEATURES.index("throttled")


def clock(event_us: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return times in `CLOCK_US`, as they are kept in records."""
    units: NDArray[np.uint16] = (np.asarray(event_us) // CLOCK_US & 0xFFFF).astype(np.uint16)
    return units


def start(records: NDArray[np.void], outside: NDArray[np.uint16]) -> None:
    """Fill this module's fields of records that were just made of samples."""
    records["still"] = clock(records["event_us"])[:, None]
    records["outside"] = outside


def go_on(before: NDArray[np.void], after: NDArray[np.void]) -> None:
    """Let readings that are exactly what they were go on standing still, within one boot."""
    same = (before["totals"][:, _WATCHED] == after["totals"][:, _WATCHED]) & (
        before["present"][:, _WATCHED] == after["present"][:, _WATCHED]
    )
    same &= (before["boot"] == after["boot"])[:, None]
    after["still"] = np.where(same, before["still"], after["still"])


def judge(rows: NDArray[np.void], gpu_models: Sequence[str]) -> Codes:
    """Return a code of `DOUBTS` per node and feature, shape (nodes, features)."""
    codes = np.zeros((len(rows), len(FEATURES)), dtype=np.uint8)
    if not len(rows):
        return codes
    if rows["outside"].any():
        codes[(rows["outside"][:, None] & _BITS) != 0] = OUT_OF_RANGE
    present = rows["present"]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = rows["totals"] / present  # NaN where nothing is present: compares as false
    hard = means[:, _UTILISATION] >= HARD_AT_WORK
    if hard.any():
        codes[hard & (means[:, _CLOCK] < STOPPED_MHZ), _CLOCK] = CONTRADICTORY
        weak = _weak(means, hard, gpu_models)
        codes[weak, _POWER] = CONTRADICTORY
    above = means[:, _TENSOR] > means[:, _SM] + ACTIVITY_SLACK
    above &= present[:, _TENSOR] == present[:, _SM]
    codes[above, _TENSOR] = codes[above, _SM] = CONTRADICTORY
    stood = clock(rows["event_us"])[:, None] - rows["still"]
    long = stood >= _LIMITS
    if long.any():
        busy = np.fmax(means[:, _UTILISATION], means[:, _SM]) > BUSY
        watched = means[:, _WATCHED]
        moves = np.where(_SATURATES, watched < 1.0, True) & ((watched > 0.0) | _MAY_BE_ZERO)
        frozen = long & busy[:, None] & moves & (present[:, _WATCHED] > 0)
        node, which = np.nonzero(frozen)
        codes[node, _WATCHED[which]] = FROZEN
    return codes


def _weak(
    means: NDArray[np.float64], hard: NDArray[np.bool_], gpu_models: Sequence[str]
) -> NDArray[np.bool_]:
    """Return which nodes draw hardly more than at rest while two other sensors say they work.

    A throttled GPU may work at little power, so those are left out.
    """
    found = hard & (means[:, _SM] >= SM_AT_WORK) & ~(means[:, _THROTTLED] > 0.0)
    found &= means[:, _POWER] < NEAR_IDLE * max(IDLE_WATTS.values())
    for place in np.flatnonzero(found).tolist():
        idle = idle_watts(gpu_models[place])
        found[place] = idle is not None and means[place, _POWER] < NEAR_IDLE * idle
    return found


def idle_watts(gpu_model: str) -> float | None:
    """Return what a board of this model draws at rest, None for one that is not known."""
    words = re.split(r"[^a-z0-9]+", gpu_model.lower())
    return next((watts for word, watts in IDLE_WATTS.items() if word in words), None)


def trusted(rows: NDArray[np.void], codes: Codes) -> NDArray[np.void]:
    """Return the records without the readings that are not to be used."""
    distrusted = codes >= DISTRUSTED
    if not distrusted.any():
        return rows
    kept = rows.copy()
    kept["totals"][distrusted] = 0.0
    kept["present"][distrusted] = 0
    return kept


def doubts(codes: Codes) -> dict[str, Doubt]:
    """Return what is doubted of one node, by feature."""
    return {
        FEATURES[place]: doubt
        for place in np.flatnonzero(codes).tolist()
        if (doubt := DOUBTS[codes[place]]) is not None
    }
