"""Which of NVML's numbered fields become which of ours, and in which unit.

Several fields may fill one of ours, newest first: an older driver answers the older number.
"""

from typing import Any, Final, NamedTuple

import pynvml as nvml

KIB: Final = 1024.0


class Asked(NamedTuple):
    """A field of NVML, the field of ours that it fills, and what it is multiplied by."""

    id: int
    name: str
    factor: float = 1


OFTEN: Final = (
    Asked(nvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL, "ecc_corrected"),
    Asked(nvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL, "ecc_uncorrected"),
    Asked(nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, "nvlink_bytes_sent", KIB),
    Asked(nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, "nvlink_bytes_received", KIB),
    Asked(nvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, "pcie_bytes_sent"),
    Asked(nvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, "pcie_bytes_received"),
)
"""For every sample. Traffic is counted, not sampled: the rate is that between two samples."""

DETAIL: Final = (
    Asked(nvml.NVML_FI_DEV_MEMORY_TEMP, "memory_temperature_celsius"),
    Asked(nvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, "energy_millijoules"),
    Asked(nvml.NVML_FI_DEV_PERF_POLICY_POWER, "power_violation_ns"),
    Asked(nvml.NVML_FI_DEV_PERF_POLICY_THERMAL, "thermal_violation_ns"),
    Asked(nvml.NVML_FI_DEV_PERF_POLICY_SYNC_BOOST, "sync_boost_violation_ns"),
    Asked(nvml.NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT, "board_limit_violation_ns"),
    Asked(nvml.NVML_FI_DEV_PERF_POLICY_RELIABILITY, "reliability_violation_ns"),
    Asked(nvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN, "software_thermal_ns"),
    Asked(nvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN, "hardware_thermal_ns"),
    Asked(nvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN, "power_brake_ns"),
    Asked(nvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER, "pcie_replays"),
    Asked(nvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL, "nvlink_flit_errors"),
    Asked(nvml.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL, "nvlink_data_errors"),
    Asked(nvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL, "nvlink_replays"),
    Asked(nvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL, "nvlink_recoveries"),
    Asked(nvml.NVML_FI_DEV_ECC_SBE_AGG_TOTAL, "ecc_corrected_lifetime"),
    Asked(nvml.NVML_FI_DEV_ECC_DBE_AGG_TOTAL, "ecc_uncorrected_lifetime"),
    Asked(nvml.NVML_FI_DEV_RETIRED_SBE, "pages_retired_corrected"),
    Asked(nvml.NVML_FI_DEV_RETIRED_DBE, "pages_retired_uncorrected"),
    Asked(nvml.NVML_FI_DEV_RETIRED_PENDING, "pages_pending"),
    Asked(nvml.NVML_FI_DEV_REMAPPED_COR, "rows_remapped_corrected"),
    Asked(nvml.NVML_FI_DEV_REMAPPED_UNC, "rows_remapped_uncorrected"),
    Asked(nvml.NVML_FI_DEV_REMAPPED_PENDING, "row_remap_pending"),
    Asked(nvml.NVML_FI_DEV_REMAPPED_FAILURE, "row_remap_failed"),
    Asked(nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, "recovery_action"),
)
"""With every detail."""

_MEMBERS: Final = {
    nvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    nvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    nvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}


def number(answer: Any) -> float | None:
    """Return the number in an `nvmlFieldValue_t`; None for a type of a later NVML."""
    member = _MEMBERS.get(answer.valueType)
    return None if member is None else getattr(answer.value, member)
