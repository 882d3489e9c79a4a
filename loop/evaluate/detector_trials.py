"""Judges all that writes anomalies: by injected faults and defects, and by days without any.

World, observe stage, causes and detectors run side by side on virtual time. One subject is struck,
by the twin's own faults or by what its telemetry is made to say; only the trial knows which. What
opens on the culprit, or on what hangs on it, is right; anything else that opens is a false alarm.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from msgspec.structs import replace

from gpuloop.loop.evaluate.cause_trials import operate, received, susceptible
from gpuloop.reasoning.causes import Causes
from gpuloop.reasoning.detectors.fold import Detectors
from gpuloop.schemas.component import Context, Output, Received, Tick
from gpuloop.schemas.messages import Anomaly, GpuSample
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams.observe import Observe
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.world import World, build_world

Fault = Literal["thermal", "link", "ecc"]
Defect = Literal[
    "frozen", "contradictory", "impossible", "silent", "hung", "miscalibrated", "worn", "hot_aisle"
]
FAULTS: Final[tuple[Fault, ...]] = ("thermal", "link", "ecc")
DEFECTS: Final[tuple[Defect, ...]] = (
    "frozen", "contradictory", "impossible", "silent", "hung", "miscalibrated", "worn", "hot_aisle",
)  # fmt: skip

WARM_UP_MINUTES: Final = 240
WATCHED_MINUTES: Final = 45
DRIFT_WATCHED_MINUTES: Final = 150
CHURN_MINUTES: Final = 10
MAX_WAITS: Final = 60
MIN_LOAD: Final = 0.3
"""Mean utilisation from which a node's sensors have something to be wrong about."""
HIGH_LOAD: Final = 0.6
"""And from which little power contradicts it."""

Source = Literal["causes", "detectors"]
Alter = Callable[[GpuSample], GpuSample | None]


@dataclass(frozen=True, slots=True)
class Alarm:
    """An anomaly that opened or closed, and who said so."""

    by: Source
    anomaly: Anomaly


class Ward:
    """A fleet under observation; `alter` is what becomes of each sample on its way."""

    def __init__(self, config: TwinConfig, traces: Path | None = None) -> None:
        """Start the stages that follow the world."""
        self.world = build_world(config, traces)
        self.alter: Alter | None = None
        self.alarms: list[Alarm] = []
        self.busy: dict[str, float] = {}
        self._observe, self._causes = Observe(self.world.name), Causes(self.world.name)
        self._detectors = Detectors(self.world.name)
        self._observed = self._observe.initial()
        self._ill, self.memory = self._causes.initial(), self._detectors.initial()
        self._draws = np.random.default_rng(config.seed)

    def go(self, minutes: int) -> None:
        """Let some minutes pass, and people change the fleet now and then."""
        for _ in range(minutes):
            until = (self.world.now_us // MINUTE_US + 1) * MINUTE_US
            context = Context(now_us=until, wall_us=until, seed=self.world.config.seed)
            said: list[Output] = []
            for event in received(self.world.advance(until)):
                seen = self._sensed(event)
                if seen is not None and seen.topic in Observe.inputs:
                    self._observed, outputs = self._observe.step(self._observed, seen, context)
                    said += outputs
            self._observed, outputs = self._observe.step(
                self._observed, Tick(tick_us=until), context
            )
            for event in received([*said, *outputs]):
                self._tell(event, context)
            if until // MINUTE_US % CHURN_MINUTES == 0:
                operate(self.world, self._draws)

    def _sensed(self, event: Received) -> Received | None:
        if not isinstance(event.message, GpuSample):
            return event
        sample: GpuSample | None = event.message
        self.busy[event.message.node] = _mean(event.message.utilisation)
        if self.alter is not None:
            sample = self.alter(event.message)
        if sample is None:
            return None
        return Received(
            topic=event.topic, partition=event.partition, offset=event.offset,
            key=event.key, id=event.id, message=sample,
        )  # fmt: skip

    def _tell(self, event: Received, context: Context) -> None:
        self._ill, causes = self._causes.step(self._ill, event, context)
        self.memory, found = self._detectors.step(self.memory, event, context)
        self._hear("causes", causes)
        self._hear("detectors", found)

    def _hear(self, by: Source, outputs: Sequence[Output]) -> None:
        messages = [output.message for output in outputs]
        self.alarms += [Alarm(by, said) for said in messages if isinstance(said, Anomaly)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What opened after a strike; `delay_minutes` is None where the culprit was never named."""

    what: str
    culprit: str
    delay_minutes: int | None
    first: Alarm | None
    right: int
    wrong: tuple[Alarm, ...]


def run_trial(
    warm: Ward, what: Fault | Defect, seed: int, *, minutes: int | None = None
) -> Verdict:
    """Strike a working subject of a copy of a warm fleet, and judge what is said for some minutes.

    Raises:
        ValueError: nothing works that could be struck.

    """
    ward = deepcopy(warm)
    subjects = _subjects(ward, what)
    for _ in range(MAX_WAITS):
        if subjects:
            break
        ward.go(CHURN_MINUTES)
        subjects = _subjects(ward, what)
    if not subjects:
        raise ValueError(f"nothing to strike with {what}")
    culprit = subjects[int(np.random.default_rng(seed).integers(len(subjects)))]
    known = {alarm.anomaly.anomaly_id for alarm in ward.alarms}
    struck_us = ward.world.now_us
    hangs_on = _Related(ward.world, culprit)
    if what in FAULTS:
        ward.world.inject(_fault(what), culprit, struck_us + 10)
    else:
        ward.alter = _defect(what, culprit, struck_us)
    usual = DRIFT_WATCHED_MINUTES if what == "hot_aisle" else WATCHED_MINUTES
    for _ in range(usual if minutes is None else minutes):
        ward.go(1)
        hangs_on.look()
    opened = [
        alarm
        for alarm in ward.alarms
        if alarm.anomaly.state == "open" and alarm.anomaly.anomaly_id not in known
    ]
    named = {culprit, hangs_on.pool} if what == "silent" else {culprit}
    hits = [alarm for alarm in opened if alarm.anomaly.subject in named]
    right = [alarm for alarm in opened if alarm.anomaly.subject in hangs_on.subjects]
    delay = (hits[0].anomaly.event_time_us - struck_us) // MINUTE_US if hits else None
    return Verdict(
        what=what,
        culprit=culprit,
        delay_minutes=delay,
        first=hits[0] if hits else None,
        right=len(right),
        wrong=tuple(alarm for alarm in opened if alarm not in right),
    )


def run_quiet(config: TwinConfig, hours: int, traces: Path | None = None) -> Ward:
    """Return a fleet that nothing ailed, while jobs, scaling, prices and migrations went on."""
    ward = Ward(config, traces)
    ward.go(hours * 60)
    return ward


@dataclass
class _Related:
    """What may show a culprit's trouble: its pool, its jobs, the other nodes of those jobs."""

    world: World
    culprit: str
    subjects: set[str] = field(default_factory=set)
    pool: str = ""

    def __post_init__(self) -> None:
        node = self.world.state.nodes.get(self.culprit)
        self.pool = self.culprit if node is None else node.pool
        self.look()

    def look(self) -> None:
        """Add what hangs on the culprit now."""
        self.subjects |= {self.culprit, self.pool}
        nodes = self.world.state.nodes
        whole = self.culprit == self.pool
        mine = {n for n in nodes if whole and nodes[n].pool == self.pool} or {self.culprit}
        self.subjects |= {name for node in mine if whole for name in (node, nodes[node].rack)}
        for job in self.world.state.jobs.values():
            if mine & set(job.nodes):
                self.subjects |= {job.id, *job.nodes}


def _subjects(ward: Ward, what: Fault | Defect) -> list[str]:
    if what == "hot_aisle":
        return sorted(pool.name for pool in ward.world.config.pools)
    if what in FAULTS:
        return susceptible(ward.world, _fault(what))
    least = HIGH_LOAD if what == "contradictory" else MIN_LOAD
    return [name for name in susceptible(ward.world, "thermal") if ward.busy.get(name, 0) >= least]


def _fault(what: Fault | Defect) -> Fault:
    return next(fault for fault in FAULTS if fault == what)


# What a defect makes of samples.

_IDLE_WATTS: Final = {"h100-80gb": 70.0, "a100": 55.0, "l4": 16.0}
_HUNG_WATTS: Final = {"h100-80gb": 200.0, "a100": 125.0, "l4": 28.0}
_LOW_GAIN: Final = 0.6
_WARMING_PER_MINUTE: Final = 0.1
_WARMING_MOST: Final = 8.0


def _defect(what: Fault | Defect, culprit: str, struck_us: int) -> Alter:
    """Return what a defect makes of every sample from now on."""
    held: list[GpuSample] = []

    def alter(sample: GpuSample) -> GpuSample | None:
        if sample.node != culprit and sample.pool != culprit:
            return sample
        gpus = len(sample.gpu_ids)
        match what:
            case "frozen":
                held.append(sample)
                return replace(sample, power_watts=held[0].power_watts)
            case "contradictory":
                low = tuple(
                    round(_IDLE_WATTS[sample.gpu_model] * (1 + 0.001 * (sample.seq % 9 + i)), 1)
                    for i in range(gpus)
                )
                return replace(sample, power_watts=low)
            case "impossible":
                return replace(sample, power_watts=(9_999.0, *sample.power_watts[1:]))
            case "silent":
                return None
            case "hung" if _mean(sample.utilisation) > 0:
                watts = _HUNG_WATTS[sample.gpu_model] * (1 + 0.002 * (sample.seq % 7))
                return replace(
                    sample,
                    utilisation=(1.0,) * gpus,
                    sm_active=(0.02,) * gpus,
                    tensor_active=(0.0,) * gpus,
                    power_watts=(round(watts, 1),) * gpus,
                )
            case "miscalibrated":
                low_gain = tuple(_scaled(watts, _LOW_GAIN) for watts in sample.power_watts)
                return replace(sample, power_watts=low_gain)
            case "worn":
                return replace(
                    sample,
                    sm_active=tuple(_scaled(v, 0.6) for v in sample.sm_active),
                    tensor_active=tuple(_scaled(v, 0.4) for v in sample.tensor_active),
                    power_watts=tuple(_scaled(v, 0.85) for v in sample.power_watts),
                )
            case "hot_aisle":
                minutes = (sample.event_time_us - struck_us) / MINUTE_US
                more = min(_WARMING_PER_MINUTE * minutes, _WARMING_MOST)
                celsius = sample.temperature_celsius
                return replace(
                    sample,
                    temperature_celsius=tuple(
                        None if value is None else round(value + more, 1) for value in celsius
                    ),
                )
        return sample

    return alter


def _scaled(value: float | None, gain: float) -> float | None:
    return None if value is None else round(value * gain, 3)


def _mean(values: tuple[float | None, ...]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
