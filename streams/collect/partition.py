"""A GPU that is partitioned (MIG): what of it belongs to which of its instances.

Instances stand for themselves in a sample. What they share with their GPU (heat, clocks) is
repeated, what adds up (power) is divided by compute slices, and counters stay with the first of
them, so that sums over a node stay true. Some values are an instance's own and nobody else's.
"""

from collections.abc import Mapping, Sequence
from typing import Final

SHARED: Final = frozenset(
    {
        "temperature_celsius",
        "sm_clock_mhz",
        "throttle_reasons",
        "memory_clock_mhz",
        "memory_temperature_celsius",
        "recovery_action",
        "row_remap_pending",
        "row_remap_failed",
        "memory_unrepairable",
        "fabric_state",
    }
)
DIVIDED: Final = frozenset({"power_watts", "power_limit_watts"})
OWN: Final = frozenset(
    {
        "utilisation",
        "memory_copy_utilisation",
        "memory_used",
        "memory_total_bytes",
        "sm_active",
        "tensor_active",
        "sm_occupancy",
        "dram_active",
        "gr_engine_active",
    }
)


def partitioned(
    whole: Mapping[str, float], own: Sequence[Mapping[str, float]], slices: Sequence[int]
) -> list[dict[str, float]]:
    """Return each instance's values, of what its GPU and the instance itself said."""
    return [
        {
            name: value * share / sum(slices) if name in DIVIDED else value
            for name, value in whole.items()
            if name not in OWN and (place == 0 or name in SHARED or name in DIVIDED)
        }
        | {name: value for name, value in mine.items() if name in OWN}
        for place, (mine, share) in enumerate(zip(own, slices, strict=True))
    ]
