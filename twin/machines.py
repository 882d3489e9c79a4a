"""Heat, clocks and speed of a node's GPUs, in closed form between changes of load.

Each GPU is one thermal mass: T moves to its equilibrium ambient + R x power with time constant tau,
and a failing cooler multiplies both R and tau. At the limit the driver lowers the clock until the
temperature stays there. Dynamic power goes with the square of the clock and with useful activity.
"""

from math import exp, log, sqrt
from typing import Final, NamedTuple

IDLE_BIT: Final = 0x1
POWER_CAP_BIT: Final = 0x4
SW_THERMAL_BIT: Final = 0x20
HW_THERMAL_BIT: Final = 0x40
"""NVML clock event reasons."""

MIN_CLOCK: Final = 0.25
FULL_LOAD_RISE_CELSIUS: Final = 40.0
INLET_CELSIUS: Final = 25.0
TAU_SECONDS: Final = 75.0
ECC_SPEED: Final = 0.55
"""Share of full speed left to a job that keeps retrying on failing memory (assumption)."""


class GpuModel(NamedTuple):
    """Published limits of a GPU and assumed overhead of its node.

    Power and clocks are NVIDIA's figures for the SXM (H100, A100 40 GB) and PCIe (L4) boards; idle
    power of an A100 agrees with the first decile of Kalos (63 W). `speed` is relative to an A100.
    """

    idle_watts: float
    limit_watts: float
    clock_mhz: float
    idle_clock_mhz: float
    throttle_celsius: float
    nvlink_bytes_per_second: float
    pcie_bytes_per_second: float
    node_watts: float
    speed: float


GPU_MODELS: Final[dict[str, GpuModel]] = {
    "h100-80gb": GpuModel(70, 700, 1980, 345, 87, 450e9, 55e9, 1500, 2.2),
    "a100": GpuModel(55, 400, 1410, 210, 85, 300e9, 25e9, 1000, 1.0),
    "l4": GpuModel(16, 72, 2040, 210, 85, 0, 25e9, 350, 0.3),
}


def resistance(model: GpuModel) -> float:
    """Return degrees per watt of a healthy cooler."""
    return FULL_LOAD_RISE_CELSIUS / model.limit_watts


def gpu_watts(model: GpuModel, activity: float, clock: float, rate: float) -> float:
    """Return the power of a GPU at an activity (0 to 1), clock share and share of full speed."""
    useful = clock * clock if clock < 1.0 else rate
    return model.idle_watts + (model.limit_watts - model.idle_watts) * activity * useful


def throttled_clock(model: GpuModel, ambient: float, cooling: float, activity: float) -> float:
    """Return the clock share at which a GPU with this cooler stays at its temperature limit."""
    allowed = (model.throttle_celsius - ambient) / (resistance(model) * cooling)
    full = (model.limit_watts - model.idle_watts) * activity
    if model.idle_watts + full <= allowed:
        return 1.0
    return max(sqrt(max(allowed - model.idle_watts, 0.0) / full), MIN_CLOCK)


def equilibrium(model: GpuModel, ambient: float, cooling: float, watts: float) -> float:
    """Return the temperature a GPU moves to."""
    return ambient + resistance(model) * cooling * watts


def decay(seconds: float, cooling: float) -> float:
    """Return the share of a temperature difference left after some seconds."""
    return exp(-seconds / (TAU_SECONDS * cooling))


def seconds_until(limit: float, start: float, end: float, cooling: float) -> float | None:
    """Return when a temperature moving from `start` to `end` reaches `limit`, or None."""
    if start >= limit:
        return 0.0
    if end <= limit:
        return None
    return TAU_SECONDS * cooling * log((end - start) / (end - limit))


def link_speed(comm: float, link: float) -> float:
    """Return the share of full speed when the interconnect is at share `link` of its own."""
    return 1.0 / (1.0 - comm + comm / link)


def activity(utilisation: float) -> float:
    """Return the share of dynamic power at a utilisation: a busy GPU rarely draws its limit."""
    return 0.15 + 0.75 * utilisation if utilisation > 0 else 0.0
