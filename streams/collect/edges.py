"""Edges of a node's devices: an XID, a device that is lost, an uncorrectable error, a recovery.

A driver repeats itself: the same XID may come a thousand times a second, and a lost device stays
lost at every reading. Here each becomes one fault. What a fault asks for is for others to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gpuloop.schemas.messages import Fault
from gpuloop.schemas.messages.telemetry import FaultKind
from gpuloop.schemas.units import SECOND_US
from gpuloop.streams.collect.readings import GpuReading, Place

REPEAT_US: Final = 5 * SECOND_US
"""Within this the same XID of the same device says nothing new."""
RECOVERY_ACTIONS: Final = range(5)
"""Those whose meaning is settled; headers give two names to 5."""
MAX_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class XidEvent:
    """An XID as the driver raised it; events of MIG instances come on their GPU."""

    index: int
    xid: int
    recovery_action: int | None = None
    detail: str = ""


class Edges:
    """What a node's devices last were, so that a change is told once."""

    def __init__(self, place: Place, boot: int) -> None:
        self._place: Final = place
        self._boot: Final = boot
        self._seq = 0
        self._lost: set[int] = set()
        self._uncorrected: dict[str, float] = {}
        self._heard_us: dict[tuple[int, int], int] = {}
        self.repeats = 0

    @property
    def any_lost(self) -> bool:
        """Say whether a device is lost that has not come back."""
        return bool(self._lost)

    def raised(self, event: XidEvent, now_us: int) -> list[Fault]:
        """Return the fault of an XID; none while it only repeats itself."""
        key = (event.index, event.xid)
        last_us = self._heard_us.get(key)
        if last_us is not None and now_us - last_us < REPEAT_US:
            self.repeats += 1
            return []
        if len(self._heard_us) >= MAX_REMEMBERED:
            self._heard_us.clear()
        self._heard_us[key] = now_us
        action = event.recovery_action
        return [
            self._fault(
                "xid",
                now_us,
                gpu_index=event.index,
                xid=event.xid,
                recovery_action=action if action in RECOVERY_ACTIONS else None,
                detail=event.detail,
            )
        ]

    def read(self, readings: Sequence[GpuReading], now_us: int) -> list[Fault]:
        """Return what changed for the worse since the last clean readings, or that all are back."""
        lost = {reading.index: reading for reading in readings if reading.lost}
        faults = [
            self._fault("lost", now_us, gpu_index=index, detail=lost[index].id)
            for index in sorted(set(lost) - self._lost)
        ]
        back = self._lost and not lost
        self._lost = set(lost)
        for reading in readings:
            count = reading.values.get("ecc_uncorrected")
            if count is None:
                continue
            if count > self._uncorrected.get(reading.id, count):
                detail = f"{count:.0f} uncorrectable errors on {reading.id}"
                faults.append(self._fault("ecc", now_us, gpu_index=reading.index, detail=detail))
            self._uncorrected[reading.id] = count
        if back:
            faults.append(self._fault("recovered", now_us, detail="every device answers again"))
        return faults

    def _fault(
        self,
        kind: FaultKind,
        now_us: int,
        *,
        gpu_index: int | None = None,
        xid: int | None = None,
        recovery_action: int | None = None,
        detail: str = "",
    ) -> Fault:
        self._seq += 1
        return Fault(
            fleet=self._place.fleet,
            node=self._place.node,
            pool=self._place.pool,
            kind=kind,
            event_time_us=now_us,
            boot=self._boot,
            seq=self._seq,
            gpu_index=gpu_index,
            xid=xid,
            recovery_action=recovery_action,
            detail=detail,
        )
