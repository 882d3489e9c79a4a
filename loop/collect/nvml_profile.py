"""What NVML counts inside a GPU of Hopper or later (GPM), between one reading and the next."""

from ctypes import c_uint
from typing import Any, Final

import pynvml as nvml

_PERCENT: Final = {
    nvml.NVML_GPM_METRIC_GRAPHICS_UTIL: "gr_engine_active",
    nvml.NVML_GPM_METRIC_SM_UTIL: "sm_active",
    nvml.NVML_GPM_METRIC_SM_OCCUPANCY: "sm_occupancy",
    nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: "tensor_active",
    nvml.NVML_GPM_METRIC_DRAM_BW_UTIL: "dram_active",
}


class Profile:
    """Two samples of a GPU or of one of its MIG instances, taken in turn."""

    def __init__(self, handle: Any, instance: int | None) -> None:
        """Take the first sample; raises NVMLError where a GPU has no such counters."""
        if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        self._handle: Final = handle
        self._instance: Final = instance
        self._older: Any = nvml.nvmlGpmSampleAlloc()
        self._newer: Any = nvml.nvmlGpmSampleAlloc()
        self._sample(self._older)

    def read(self) -> dict[str, float]:
        """Return how busy each part was since the last reading, as ratios."""
        self._sample(self._newer)
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = len(_PERCENT)
        asked.sample1, asked.sample2 = self._older, self._newer
        for place, metric in enumerate(_PERCENT):
            asked.metrics[place].metricId = metric
        nvml.nvmlGpmMetricsGet(asked)
        self._older, self._newer = self._newer, self._older
        return {
            name: answer.value / 100
            for name, answer in zip(_PERCENT.values(), asked.metrics, strict=False)
            if answer.nvmlReturn == nvml.NVML_SUCCESS
        }

    def close(self) -> None:
        """Give the samples back to the driver."""
        nvml.nvmlGpmSampleFree(self._older)
        nvml.nvmlGpmSampleFree(self._newer)

    def _sample(self, into: Any) -> None:
        if self._instance is None:
            nvml.nvmlGpmSampleGet(self._handle, into)
        else:
            nvml.nvmlGpmMigSampleGet(self._handle, c_uint(self._instance), into)
