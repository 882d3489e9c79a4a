"""The GPUs of this machine through NVML: what they say now, and the XIDs they raise.

A value that a device does not support is missing; a device that is lost has no values at all and is
told as lost. MIG instances stand for themselves.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ctypes import byref, c_void_p, cast
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeVar

import pynvml as nvml

from gpuloop.loop.collect.machine import DriverMissing, NoEvents
from gpuloop.loop.collect.nvml_fields import DETAIL, OFTEN, Asked, number
from gpuloop.loop.collect.nvml_profile import Profile
from gpuloop.streams.collect.edges import XidEvent
from gpuloop.streams.collect.partition import partitioned
from gpuloop.streams.collect.readings import GpuReading

P = ParamSpec("P")
T = TypeVar("T")
Values = dict[str, float]

log: Final = logging.getLogger(__name__)

_LOST: Final = frozenset({nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED})
_NO_DRIVER: Final = frozenset(
    {nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED}
)


class DeviceLost(Exception):
    """A device fell off the bus or waits for a reset; nothing of it can be read."""


@dataclass(slots=True)
class Device:
    """A GPU that was there when NVML was opened."""

    index: int
    id: str
    model: str
    handle: Any
    profiles: dict[str, Profile] = field(default_factory=dict)
    """Profiling of the whole GPU, or of each of its instances."""
    unsupported: set[str] = field(default_factory=set)
    """What this device said once that it does not have; not asked for again."""
    before: tuple[int, Values] = (0, {})
    """Traffic counters at the last reading, in bytes, and when that was."""


class Nvml:
    """The devices of this machine; not to be shared between threads."""

    def __init__(self, monotonic_us: Callable[[], int]) -> None:
        self._monotonic_us: Final = monotonic_us
        self._devices: list[Device] = []
        self._known: dict[str, Device] = {}
        self._events: Any = None
        self._listened = 0
        self._initialised = False

    def open(self) -> None:
        """Find the devices and listen to their XIDs; opening again finds those that came back.

        Raises:
            DriverMissing: there is no driver, or it does not answer.

        """
        self.close()
        try:
            nvml.nvmlInit()
            self._initialised = True
            self._devices = list(self._found())
            self._events = self._listening()
        except nvml.NVMLError as error:
            raise DriverMissing(explained(error)) from None
        self._known |= {device.id: device for device in self._devices}
        if not self._known:
            raise DriverMissing("the NVIDIA driver answers, and knows no GPU on this machine")

    def close(self) -> None:
        """Let go of devices and driver."""
        with suppress(nvml.NVMLError):
            for device in self._devices:
                for profile in device.profiles.values():
                    profile.close()
            if self._events is not None:
                nvml.nvmlEventSetFree(self._events)
        if self._initialised:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()
        self._devices, self._events, self._initialised = [], None, False

    def read(self, *, detail: bool) -> list[GpuReading]:
        """Return what every device says now, those lost since the first opening included."""
        readings: list[GpuReading] = []
        present = {device.id: device for device in self._devices}
        for known in sorted(self._known.values(), key=lambda one: (one.index, one.id)):
            device = present.get(known.id)
            try:
                if device is None:
                    raise DeviceLost
                readings += self._readings(device, detail=detail)
            except DeviceLost:
                readings.append(
                    GpuReading(index=known.index, id=known.id, model=known.model, lost=True)
                )
        return readings

    def wait(self, timeout_us: int) -> XidEvent | None:
        """Return the next XID, or None when none came within `timeout_us`.

        Raises:
            NoEvents: the driver cannot wait for events now.

        """
        if self._events is None or not self._listened:
            raise NoEvents
        try:
            event = nvml.nvmlEventSetWait_v2(self._events, timeout_us // 1000)
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_TIMEOUT:
                return None
            raise NoEvents from None
        if not event.eventType & nvml.nvmlEventTypeXidCriticalError:
            return None
        index, action = self._index_of(event.device), None
        with suppress(DeviceLost):  # As after XID 79.
            action = _or_none(_recovery_action, event.device)
        instance = event.gpuInstanceId
        whole = instance in (0, 0xFFFF_FFFF)
        return XidEvent(
            index=index,
            xid=int(event.eventData),
            recovery_action=action,
            detail="" if whole else f"GPU instance {instance}",
        )

    def _index_of(self, handle: Any) -> int:
        """Return the index of an event's device, which may no longer answer for itself."""
        try:
            return int(nvml.nvmlDeviceGetIndex(handle))
        except nvml.NVMLError:
            address = cast(handle, c_void_p).value
            same = (d for d in self._devices if cast(d.handle, c_void_p).value == address)
            return next((device.index for device in same), 0)

    def _found(self) -> Iterator[Device]:
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                id_ = nvml.nvmlDeviceGetUUID(handle)
                yield Device(index, id_, nvml.nvmlDeviceGetName(handle), handle)
            except nvml.NVMLError as error:
                log.warning("a GPU cannot be opened", extra={"index": index, "why": str(error)})

    def _listening(self) -> Any:
        events = nvml.nvmlEventSetCreate()
        kinds = nvml.nvmlEventTypeXidCriticalError
        self._listened = 0
        for device in self._devices:
            with suppress(nvml.NVMLError):  # Some have no events; they are read all the same.
                nvml.nvmlDeviceRegisterEvents(device.handle, kinds, events)
                self._listened += 1
        return events

    def _readings(self, device: Device, *, detail: bool) -> list[GpuReading]:
        values = _fields(device.handle, OFTEN) | _calls(device, detail=detail)
        if detail:
            values |= _fields(device.handle, DETAIL)
        values |= self._traffic(device, values)
        instances = _instances(device)
        if not instances:
            values |= _memory(device.handle, detail=detail)
            values |= _profiled(device, device.id, device.handle, None)
            return [GpuReading(index=device.index, id=device.id, model=device.model, values=values)]
        return _partitioned(device, instances, values, detail=detail)

    def _traffic(self, device: Device, values: Values) -> Values:
        """Return bytes per second since the last reading, and take the counters out of `values`."""
        now_us = self._monotonic_us()
        counted = {
            name: values.pop(f"{name}_sent") + values.pop(f"{name}_received")
            for name in ("nvlink_bytes", "pcie_bytes")
            if f"{name}_sent" in values and f"{name}_received" in values
        }
        then_us, before = device.before
        device.before = (now_us, counted)
        elapsed_us = now_us - then_us
        return {
            f"{name}_per_second": (total - before[name]) * 1e6 / elapsed_us
            for name, total in counted.items()
            if name in before and total >= before[name] and elapsed_us > 0
        }


def explained(error: Exception) -> str:
    """Return in one line why NVML cannot be used."""
    if getattr(error, "value", None) in _NO_DRIVER:
        return (
            "no NVIDIA driver on this machine: libnvidia-ml.so.1 cannot be used"
            f" ({error}); run the collector on a GPU node, or scrape one with --sources FILE"
        )
    return f"the NVIDIA driver refuses: {error}"


def _calls(device: Device, *, detail: bool) -> Values:
    """Return what has a function of its own in NVML."""
    handle = device.handle
    asked: dict[str, Callable[[], float]] = {
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(
            handle, nvml.NVML_TEMPERATURE_GPU
        ),
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
    }
    if detail:
        asked |= {
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "fabric_state": lambda: _fabric_state(handle),
        }
    values = {}
    for name, ask in asked.items():
        value = None if name in device.unsupported else _supported(device, name, ask)
        if value is not None:
            values[name] = value
    if "utilisation" not in device.unsupported:
        rates = _supported(
            device, "utilisation", lambda: nvml.nvmlDeviceGetUtilizationRates(handle)
        )
        if rates is not None:
            values["utilisation"] = rates.gpu / 100
            if detail:
                values["memory_copy_utilisation"] = rates.memory / 100
    return values


def _fields(handle: Any, asked: Sequence[Asked]) -> Values:
    """Return what NVML answers by field number, many at once."""
    found = _or_none(nvml.nvmlDeviceGetFieldValues, handle, [one.id for one in asked])
    if found is None:
        return {}
    values: Values = {}
    for one, answer in zip(asked, found, strict=True):
        if answer.nvmlReturn in _LOST:
            raise DeviceLost
        value = number(answer) if answer.nvmlReturn == nvml.NVML_SUCCESS else None
        if value is not None and one.name not in values:
            values[one.name] = value * one.factor
    return values


def _memory(handle: Any, *, detail: bool) -> Values:
    memory = _or_none(nvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None or memory.total <= 0:
        return {}
    values: Values = {"memory_used": memory.used / memory.total}
    return values | {"memory_total_bytes": memory.total} if detail else values


def _profiled(device: Device, key: str, handle: Any, instance: int | None) -> Values:
    """Return what profiling counted since the last reading, at the first nothing yet.

    NVML has it for Hopper and later.
    """
    if "profile" in device.unsupported:
        return {}
    if key not in device.profiles:
        profile = _supported(device, "profile", lambda: Profile(handle, instance))
        if profile is None:
            device.unsupported.add("profile")
        else:
            device.profiles[key] = profile
        return {}
    return _or_none(device.profiles[key].read) or {}


def _instances(device: Device) -> list[Any]:
    """Return the handles of a GPU's MIG instances; none where it is not partitioned."""
    if "mig" in device.unsupported:
        return []
    mode = _supported(device, "mig", lambda: nvml.nvmlDeviceGetMigMode(device.handle)[0])
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return []
    most = _or_none(nvml.nvmlDeviceGetMaxMigDeviceCount, device.handle) or 0
    found = (
        _or_none(nvml.nvmlDeviceGetMigDeviceHandleByIndex, device.handle, place)
        for place in range(most)
    )
    return [handle for handle in found if handle is not None]


def _partitioned(
    device: Device, instances: Sequence[Any], values: Values, *, detail: bool
) -> list[GpuReading]:
    own, ids, shares = [], [], []
    for handle in instances:
        number_of_it = _or_none(nvml.nvmlDeviceGetGpuInstanceId, handle)
        id_ = _or_none(nvml.nvmlDeviceGetUUID, handle)
        if id_ is None:
            continue  # It is being taken apart.
        mine = _memory(handle, detail=detail)
        if number_of_it is not None:
            mine |= _profiled(device, id_, device.handle, number_of_it)
        own.append(mine)
        ids.append(id_)
        shares.append(_slices(handle))
    return [
        GpuReading(index=device.index, id=id_, model=device.model, values=mine)
        for id_, mine in zip(ids, partitioned(values, own, shares), strict=True)
    ]


def _slices(instance: Any) -> int:
    attributes = _or_none(nvml.nvmlDeviceGetAttributes, instance)
    return max(int(attributes.computeInstanceSliceCount), 1) if attributes is not None else 1


def _fabric_state(handle: Any) -> float:
    info = nvml.c_nvmlGpuFabricInfo_t()
    nvml.nvmlDeviceGetGpuFabricInfo(handle, byref(info))
    return float(info.state)


def _recovery_action(handle: Any) -> int | None:
    (answer,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    value = number(answer) if answer.nvmlReturn == nvml.NVML_SUCCESS else None
    return None if value is None else int(value)


def _supported(device: Device, name: str, ask: Callable[[], T]) -> T | None:
    """Return an answer, or None; what a device does not have is not asked for again."""
    try:
        return ask()
    except nvml.NVMLError as error:
        if error.value in _LOST:
            raise DeviceLost from None
        if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            device.unsupported.add(name)
        return None


def _or_none(ask: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
    """Return an answer, or None where the driver has none now."""
    try:
        return ask(*arguments, **named)
    except nvml.NVMLError as error:
        if error.value in _LOST:
            raise DeviceLost from None
        return None
