"""Scrapes of DCGM exporters to samples of nodes.

Owns what a scrape means: which series belong to which device or MIG instance, when it was taken,
whether it is the last one over again, and which XIDs are new in it. An exporter's XID gauge never
clears, so only a change of it is news, and nothing that was there at the first scrape.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gpuloop.schemas.messages import Fault, GpuSample
from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.streams.collect.dcgm_names import BY_NAME, PREFIX, XID_COUNT
from gpuloop.streams.collect.edges import Edges, XidEvent
from gpuloop.streams.collect.exposition import Exposition, Line, parse
from gpuloop.streams.collect.partition import OWN, partitioned
from gpuloop.streams.collect.readings import (
    GpuReading,
    Place,
    Refusal,
    Stamp,
    clean,
    is_blank,
    sample_of,
)

MIB: Final = 1024 * 1024
MAX_NAME: Final = 200
MAX_ID: Final = 150
_PROFILE: Final = re.compile(r"([1-9])g\.")
_SMALL: Final = re.compile(r"[0-9]{1,4}")


@dataclass(slots=True)
class _Part:
    """What one series' labels name: a device, or one instance of it."""

    slices: int = 1
    values: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Gpu:
    index: int
    uuid: str
    model: str
    parts: dict[str, _Part] = field(default_factory=lambda: defaultdict(_Part))
    xid_counts: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeScrape:
    """One node in a scrape."""

    readings: list[GpuReading]
    last_xids: dict[int, int]
    xid_counts: dict[tuple[int, int], float]
    time_ms: int | None
    blanks: int


@dataclass(slots=True)
class Told:
    """What a scrape of one node says, and what of it could not be believed."""

    sample: GpuSample | None = None
    faults: list[Fault] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    repeated: bool = False


def read(text: str, *, node: str = "") -> tuple[dict[str, NodeScrape], int]:
    """Return a scrape by node, and how many of its lines were none.

    Without `node` the label `Hostname` tells whose a series is; one without either is a bad line.
    """
    exposition: Exposition = parse(text, prefix=PREFIX)
    by_node: dict[str, list[Line]] = defaultdict(list)
    bad = exposition.bad
    for line in exposition.lines:
        owner = node or line.labels.get("Hostname", "")
        if 0 < len(owner) <= MAX_NAME and _SMALL.fullmatch(line.labels.get("gpu", "")):
            by_node[owner].append(line)
        else:
            bad += 1
    return {owner: _scraped(lines) for owner, lines in by_node.items()}, bad


class Node:
    """A node seen through its exporter."""

    def __init__(self, fleet: str, boot: int) -> None:
        self._fleet: Final = fleet
        self._boot: Final = boot
        self._seq = 0
        self._edges: Edges | None = None
        self._last: NodeScrape | None = None

    def hear(
        self, name: str, scrape: NodeScrape, now_us: int, *, pool: str, rack: str, billing: Billing
    ) -> Told:
        """Return what a scrape adds to the last one."""
        before, self._last = self._last, scrape
        told = Told(refused=["blank"] * scrape.blanks)
        place = Place(fleet=self._fleet, node=name, pool=pool, rack=rack, billing=billing)
        if self._edges is None:
            self._edges = Edges(place, self._boot)
        time_us = now_us if scrape.time_ms is None else scrape.time_ms * 1000
        for event in _new_xids(before, scrape):
            told.faults += self._edges.raised(event, time_us)
        told.repeated = before is not None and (
            (before.time_ms, before.readings) == (scrape.time_ms, scrape.readings)
        )
        if told.repeated or not scrape.readings:
            return told
        readings, refused = clean(scrape.readings)
        told.refused += refused
        told.faults += self._edges.read(readings, time_us)
        self._seq += 1
        stamp = Stamp(time_us=time_us, boot=self._boot, seq=self._seq)
        told.sample = sample_of(readings, place, stamp, detail=True)
        return told


def _scraped(lines: Sequence[Line]) -> NodeScrape:
    gpus: dict[int, _Gpu] = {}
    blanks = 0
    for line in lines:
        labels, index = line.labels, int(line.labels["gpu"])
        gpu = gpus.setdefault(
            index,
            _Gpu(
                index,
                labels.get("UUID", "")[:MAX_ID] or f"gpu{index}",
                labels.get("modelName", "")[:MAX_NAME] or "unknown",
            ),
        )
        if line.name == XID_COUNT and _SMALL.fullmatch(labels.get("xid", "")):
            xid = int(labels["xid"])
            gpu.xid_counts[xid] = max(line.value, gpu.xid_counts.get(xid, 0))
        known = BY_NAME.get(line.name)
        if known is None:
            continue
        if not math.isfinite(line.value) or is_blank(known.name, line.value):
            blanks += 1
            continue
        part = gpu.parts[labels.get("GPU_I_ID", "")[: MAX_NAME - MAX_ID - 1]]
        sliced = _PROFILE.match(labels.get("GPU_I_PROFILE", ""))
        part.slices = int(sliced[1]) if sliced else part.slices
        part.values[known.name] = line.value * known.factor
    ordered = [gpus[index] for index in sorted(gpus)]
    return NodeScrape(
        readings=[reading for gpu in ordered for reading in _readings(gpu)],
        last_xids={gpu.index: xid for gpu in ordered for xid in _last_xid(gpu)},
        xid_counts={
            (gpu.index, xid): count for gpu in ordered for xid, count in gpu.xid_counts.items()
        },
        time_ms=max((line.time_ms for line in lines if line.time_ms is not None), default=None),
        blanks=blanks,
    )


def _last_xid(gpu: _Gpu) -> Iterator[int]:
    for part in gpu.parts.values():
        if "last_xid" in part.values:
            yield int(part.values["last_xid"])


def _readings(gpu: _Gpu) -> Iterator[GpuReading]:
    parts = {name: _derived(part.values) for name, part in gpu.parts.items()}
    instances = sorted(name for name in parts if name)
    if not instances:
        for values in parts.values():
            yield GpuReading(index=gpu.index, id=gpu.uuid, model=gpu.model, values=values)
        return
    # An exporter repeats what is the whole GPU's under each instance: it is taken once.
    whole: dict[str, float] = {}
    for name in ("", *instances):
        for key, value in parts.get(name, {}).items():
            if key not in OWN:
                whole.setdefault(key, value)
    own = [parts[name] for name in instances]
    slices = [gpu.parts[name].slices for name in instances]
    for name, values in zip(instances, partitioned(whole, own, slices), strict=True):
        id_ = f"{gpu.uuid}/{name}"
        yield GpuReading(index=gpu.index, id=id_, model=gpu.model, values=values)


def _derived(raw: Mapping[str, float]) -> dict[str, float]:
    """Return a part's values under our names: shares of memory, traffic of both directions."""
    values = dict(raw)
    used, free = values.pop("memory_used_mib", None), values.pop("memory_free_mib", None)
    reserved = values.pop("memory_reserved_mib", 0)
    total = values.pop("memory_total_mib", None)
    if total is None and used is not None and free is not None:
        total = used + free + reserved
    if total:
        values["memory_total_bytes"] = total * MIB
        if used is not None:
            values["memory_used"] = used / total
    for name in ("pcie", "nvlink"):
        sent, received = values.pop(f"{name}_sent", None), values.pop(f"{name}_received", None)
        if sent is not None and received is not None:
            values[f"{name}_bytes_per_second"] = sent + received
    values.pop("last_xid", None)
    return values


def _new_xids(before: NodeScrape | None, now: NodeScrape) -> Iterator[XidEvent]:
    if before is None:
        return
    actions = {one.index: one.values.get("recovery_action") for one in now.readings}
    if now.xid_counts or before.xid_counts:
        found = [
            key
            for key, count in now.xid_counts.items()
            if key[1] and count > before.xid_counts.get(key, 0)
        ]
    else:
        found = [
            (index, xid)
            for index, xid in now.last_xids.items()
            if xid > 0 and xid != before.last_xids.get(index, xid)
        ]
    for index, xid in sorted(found):
        action = actions.get(index)
        yield XidEvent(
            index=index, xid=xid, recovery_action=None if action is None else int(action)
        )
