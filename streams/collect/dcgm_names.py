"""What the DCGM exporter calls a field, before and after DCGM 4.6 renamed them, and its unit.

The number is DCGM's field id, which never changes. A field that a target's counters leave out is
missing. Memory comes in MiB and in three parts, traffic in two directions: `dcgm` adds them up.
"""

from typing import Final, NamedTuple

PREFIX: Final = "DCGM_"


class Field(NamedTuple):
    """A field of ours and what the exporter's number is multiplied by."""

    name: str
    factor: float = 1


_FIELDS: Final[tuple[tuple[int, Field, tuple[str, ...]], ...]] = (
    (100, Field("sm_clock_mhz"), ("DEV_SM_CLOCK",)),
    (101, Field("memory_clock_mhz"), ("DEV_MEM_CLOCK",)),
    (112, Field("throttle_reasons"), ("DEV_CLOCK_THROTTLE_REASONS", "DEV_CLOCKS_EVENT_REASONS")),
    (
        140,
        Field("memory_temperature_celsius"),
        ("DEV_MEMORY_TEMP", "DEV_MEMORY_TEMP_CELSIUS"),
    ),
    (150, Field("temperature_celsius"), ("DEV_GPU_TEMP", "DEV_GPU_TEMP_CELSIUS")),
    (155, Field("power_watts"), ("DEV_POWER_USAGE", "DEV_BOARD_POWER_WATTS")),
    (156, Field("energy_millijoules"), ("DEV_TOTAL_ENERGY_CONSUMPTION",)),
    (
        164,
        Field("power_limit_watts"),
        ("DEV_ENFORCED_POWER_LIMIT", "DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS"),
    ),
    (202, Field("pcie_replays"), ("DEV_PCIE_REPLAY_COUNTER", "DEV_PCIE_REPLAY_TOTAL")),
    # Both names say percent, the newer one against its own last word.
    (203, Field("utilisation", 0.01), ("DEV_GPU_UTIL", "DEV_GPU_UTIL_RATIO")),
    (204, Field("memory_copy_utilisation", 0.01), ("DEV_MEM_COPY_UTIL",)),
    (230, Field("last_xid"), ("DEV_XID_ERRORS", "DEV_XID_ERROR")),
    (240, Field("power_violation_ns"), ("DEV_POWER_VIOLATION",)),
    (241, Field("thermal_violation_ns"), ("DEV_THERMAL_VIOLATION",)),
    (242, Field("sync_boost_violation_ns"), ("DEV_SYNC_BOOST_VIOLATION",)),
    (243, Field("board_limit_violation_ns"), ("DEV_BOARD_LIMIT_VIOLATION",)),
    (245, Field("reliability_violation_ns"), ("DEV_RELIABILITY_VIOLATION",)),
    (250, Field("memory_total_mib"), ("DEV_FB_TOTAL",)),
    (251, Field("memory_free_mib"), ("DEV_FB_FREE",)),
    (252, Field("memory_used_mib"), ("DEV_FB_USED",)),
    (253, Field("memory_reserved_mib"), ("DEV_FB_RESERVED",)),
    (310, Field("ecc_corrected"), ("DEV_ECC_SBE_VOL_TOTAL",)),
    (311, Field("ecc_uncorrected"), ("DEV_ECC_DBE_VOL_TOTAL",)),
    (312, Field("ecc_corrected_lifetime"), ("DEV_ECC_SBE_AGG_TOTAL",)),
    (313, Field("ecc_uncorrected_lifetime"), ("DEV_ECC_DBE_AGG_TOTAL",)),
    (390, Field("pages_retired_corrected"), ("DEV_RETIRED_SBE", "DEV_PAGE_RETIRED_SBE_TOTAL")),
    (391, Field("pages_retired_uncorrected"), ("DEV_RETIRED_DBE", "DEV_PAGE_RETIRED_DBE_TOTAL")),
    (392, Field("pages_pending"), ("DEV_RETIRED_PENDING", "DEV_PAGE_RETIRED_PENDING")),
    (
        393,
        Field("rows_remapped_uncorrected"),
        ("DEV_UNCORRECTABLE_REMAPPED_ROWS", "DEV_ROW_REMAP_UNCORRECTABLE_TOTAL"),
    ),
    (
        394,
        Field("rows_remapped_corrected"),
        ("DEV_CORRECTABLE_REMAPPED_ROWS", "DEV_ROW_REMAP_CORRECTABLE_TOTAL"),
    ),
    (395, Field("row_remap_failed"), ("DEV_ROW_REMAP_FAILURE", "DEV_ROW_REMAP_FAILED")),
    (396, Field("row_remap_pending"), ("DEV_ROW_REMAP_PENDING",)),
    (
        409,
        Field("nvlink_flit_errors"),
        ("DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "DEV_NVLINK_CRC_FLIT_ERROR_TOTAL"),
    ),
    (
        419,
        Field("nvlink_data_errors"),
        ("DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", "DEV_NVLINK_CRC_DATA_ERROR_TOTAL"),
    ),
    (
        429,
        Field("nvlink_replays"),
        ("DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", "DEV_NVLINK_REPLAY_ERROR_TOTAL"),
    ),
    (
        439,
        Field("nvlink_recoveries"),
        ("DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "DEV_NVLINK_RECOVERY_ERROR_TOTAL"),
    ),
    (1001, Field("gr_engine_active"), ("PROF_GR_ENGINE_ACTIVE", "PROF_GR_ENGINE_UTIL_RATIO")),
    (1002, Field("sm_active"), ("PROF_SM_ACTIVE", "PROF_SM_UTIL_RATIO")),
    (1003, Field("sm_occupancy"), ("PROF_SM_OCCUPANCY", "PROF_SM_OCCUPANCY_RATIO")),
    (1004, Field("tensor_active"), ("PROF_PIPE_TENSOR_ACTIVE", "PROF_TENSOR_UTIL_RATIO")),
    (1005, Field("dram_active"), ("PROF_DRAM_ACTIVE", "PROF_DRAM_UTIL_RATIO")),
    (1009, Field("pcie_sent"), ("PROF_PCIE_TX_BYTES",)),
    (1010, Field("pcie_received"), ("PROF_PCIE_RX_BYTES",)),
    (1011, Field("nvlink_sent"), ("PROF_NVLINK_TX_BYTES",)),
    (1012, Field("nvlink_received"), ("PROF_NVLINK_RX_BYTES",)),
    (1422, Field("software_thermal_ns"), ("DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN_NS",)),
    (1423, Field("hardware_thermal_ns"), ("DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS",)),
    (1424, Field("power_brake_ns"), ("DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS",)),
    (
        1507,
        Field("memory_unrepairable"),
        ("DEV_MEMORY_UNREPAIRABLE_FLAG", "DEV_MEMORY_UNREPAIRABLE"),
    ),
    (1523, Field("recovery_action"), ("DEV_GET_GPU_RECOVERY_ACTION", "DEV_GPU_RECOVERY_ACTION")),
)

BY_NAME: Final = {f"DCGM_FI_{name}": field for _, field, names in _FIELDS for name in names}
"""Field by either name of the exporter."""

XID_COUNT: Final = "DCGM_EXP_XID_ERRORS_COUNT"
"""The exporter's own count of each XID in a sliding window; says more than the last XID does."""
