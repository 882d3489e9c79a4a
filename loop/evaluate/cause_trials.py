"""Judges the causes component in the twin: faults it is not told of, and days without any.

A trial runs world, observe stage and causes side by side on virtual time, strikes one working
subject, and collects what the component says; only the trial knows the culprit. The deep tier is
passed in, so that the caller decides whether it runs in this process or under a deadline.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from gpuloop.loop.shells.partition import partition_of
from gpuloop.reasoning.analysis import Analysis, Attribution
from gpuloop.reasoning.causes import Causes, CausesState, analysis_request, causal_cause
from gpuloop.reasoning.topology import PROGRESS
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.component import Context, Output, Received, Tick
from gpuloop.schemas.fleet import Refused
from gpuloop.schemas.messages import Anomaly, Cause
from gpuloop.schemas.messages.actions import (
    Actuator,
    DesiredState,
    MigrateTo,
    PriceTo,
    ScaleTo,
)
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams.observe import Observe
from gpuloop.twin.config import FaultClass, TwinConfig
from gpuloop.twin.world import World, build_world

TrialFault = Literal["thermal", "link", "rack_link", "ecc"]
Deep = Callable[[Analysis], Attribution | None]

WARM_UP_MINUTES: Final = 75
WATCHED_MINUTES: Final = 20
WIDE_GPUS: Final = 8
MIN_RACK_NODES: Final = 3
MAX_WAITS: Final = 100
CHURN_MINUTES: Final = 10
SCALING_SHARE: Final = 0.3
PRICING_SHARE: Final = 0.1
MIGRATION_SHARE: Final = 0.7


class Patient:
    """A fleet under observation: what its causes component has said so far."""

    def __init__(self, world: World, deep: Deep | None) -> None:
        """Start the stages that follow the world."""
        self.world, self.deep = world, deep
        self.anomalies: list[Anomaly] = []
        self.fast: list[Cause] = []
        self.causal: list[Cause] = []
        self.steps = 0
        self._observe, self._causes = Observe(world.name), Causes(world.name)
        self._observed = self._observe.initial()
        self.memory: CausesState = self._causes.initial()

    def go(self, minutes: int) -> None:
        """Let some minutes pass."""
        for _ in range(minutes):
            until = (self.world.now_us // MINUTE_US + 1) * MINUTE_US
            context = Context(now_us=until, wall_us=until, seed=self.world.config.seed)
            said: list[Output] = []
            for event in received(self.world.advance(until)):
                if event.topic in Observe.inputs:
                    self._observed, outputs = self._observe.step(self._observed, event, context)
                    said += outputs
            self._observed, outputs = self._observe.step(
                self._observed, Tick(tick_us=until), context
            )
            self._tell([*said, *outputs], context)

    def _tell(self, states: list[Output], context: Context) -> None:
        for event in received(states):
            self.steps += 1
            self.memory, outputs = self._causes.step(self.memory, event, context)
            for output in outputs:
                match output.message:
                    case Anomaly() as anomaly:
                        self.anomalies.append(anomaly)
                    case Cause() as cause:
                        self.fast.append(cause)
                        self._ask(cause)
                    case _:
                        pass

    def _ask(self, cause: Cause) -> None:
        question = analysis_request(self.memory, cause) if self.deep is not None else None
        if question is None or self.deep is None:
            return
        answer = causal_cause(question, self.deep(question.analysis), 0).message
        if isinstance(answer, Cause):
            self.causal.append(answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One fault and what was said about it."""

    fault: TrialFault
    culprit: str
    struck_us: int
    fast: tuple[Cause, ...]
    causal: tuple[Cause, ...]

    def rank(self, causes: Iterable[Cause]) -> int:
        """Return the culprit's place (from 1) in the first of some causes, 0 if it has none."""
        first = next(iter(causes), None)
        names = [suspect.subject for suspect in first.suspects] if first is not None else []
        return names.index(self.culprit) + 1 if self.culprit in names else 0

    @property
    def of_work(self) -> tuple[Cause, ...]:
        """Return the deep tier's causes of a slow job or pool, where the culprit is not given."""
        return tuple(cause for cause in self.causal if cause.symptom_metric == PROGRESS)


def quiet_config(seed: int) -> TwinConfig:
    """Return the default fleet without faults of its own, sampled once a minute."""
    return TwinConfig(seed=seed, fault_rate_factor=0.0, gpu_sample_every_us=MINUTE_US)


def run_trial(
    fault: TrialFault, config: TwinConfig, deep: Deep | None, traces: Path | None = None
) -> Trial:
    """Strike a working subject of a warmed-up fleet and watch it for a while.

    Raises:
        ValueError: nothing runs that the fault could slow.

    """
    patient = Patient(build_world(config, traces), deep)
    patient.go(WARM_UP_MINUTES + config.seed % 10)
    for _ in range(MAX_WAITS):
        subjects = susceptible(patient.world, fault)
        if subjects:
            break
        patient.go(CHURN_MINUTES)
    else:
        raise ValueError(f"no work that a {fault} fault slows, seed {config.seed}")
    culprit = subjects[int(np.random.default_rng(config.seed).integers(len(subjects)))]
    struck_us = patient.world.now_us + 10
    kind: FaultClass = "link" if fault == "rack_link" else fault
    patient.world.inject(kind, culprit, struck_us)
    patient.go(WATCHED_MINUTES)
    return Trial(
        fault=fault,
        culprit=culprit,
        struck_us=struck_us,
        fast=tuple(c for c in patient.fast if c.event_time_us > struck_us),
        causal=tuple(c for c in patient.causal if c.event_time_us > struck_us),
    )


def run_quiet(config: TwinConfig, hours: int, traces: Path | None = None) -> Patient:
    """Return a fleet that nothing ailed: jobs come and go, and operators keep changing it."""
    patient = Patient(build_world(config, traces), None)
    draws = np.random.default_rng(config.seed)
    for _ in range(hours * 60 // CHURN_MINUTES):
        patient.go(CHURN_MINUTES)
        operate(patient.world, draws)
    return patient


def operate(world: World, draws: np.random.Generator) -> None:
    """Scale, price and migrate a little, at random; what the fleet refuses is left."""
    for pool in world.config.pools:
        state = world.state.pools[pool.name]
        size = ScaleTo(
            on_demand_nodes=max(0, state.on_demand_nodes + int(draws.integers(-2, 3)))
            * ("on_demand" in pool.billings),
            spot_nodes=max(0, state.spot_nodes + int(draws.integers(-2, 3)))
            * ("spot" in pool.billings),
        )
        price = PriceTo(usd_micros_per_gpu_hour=int(state.reference * draws.uniform(0.8, 1.3)))
        if draws.random() < SCALING_SHARE:
            _try(world, "scaling", pool.name, size)
        if draws.random() < PRICING_SHARE:
            _try(world, "pricing", pool.name, price)
    running = sorted(job.id for job in world.state.jobs.values() if job.running)
    if running and draws.random() < MIGRATION_SHARE:
        job = running[int(draws.integers(len(running)))]
        _try(world, "migration", job, MigrateTo(pool=world.state.jobs[job].pool))


def _try(world: World, actuator: Actuator, target: str, to: DesiredState) -> None:
    with suppress(Refused):
        world.apply(actuator, target, to, world.now_us)


def susceptible(world: World, fault: TrialFault) -> list[str]:
    """Return the nodes, or for `rack_link` the racks, with work that such a fault slows."""
    nodes, over_links = world.state.nodes, fault in ("link", "rack_link")
    working: set[str] = set()
    for job in world.state.jobs.values():
        if job.running and (job.gpus >= WIDE_GPUS or not over_links):
            working.update(job.nodes)
    if over_links:
        working = {name for name in working if _has_links(world, name)}
    if fault != "rack_link":
        return sorted(working)
    racks = [nodes[name].rack for name in working]
    return sorted({rack for rack in racks if racks.count(rack) >= MIN_RACK_NODES})


def _has_links(world: World, node: str) -> bool:
    pool = world.config.pool(world.state.nodes[node].pool)
    return pool is not None and pool.gpu_model != "l4"


def received(outputs: Iterable[Output]) -> Iterable[Received]:
    """Return outputs as a reader of their topics meets them."""
    for output in outputs:
        yield Received(
            topic=output.topic,
            partition=partition_of(output.key.encode(), CATALOGUE[output.topic].partitions),
            offset=0,
            key=output.key,
            id=output.event_id,
            message=output.message,
            payload=output.payload,
        )
