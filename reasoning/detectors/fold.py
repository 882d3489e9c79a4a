"""The detectors component: every minute of every pool is judged once, by several detectors.

Sensors: what the observe stage doubts of a node. Peers and combinations: how steady nodes behave
beside their pool. Drift: where the means of a pool's laws go. Coverage: nodes that are rented and
not heard. What is ill does not teach what is normal, unless most of a pool is.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Final

import numpy as np

from gpuloop.reasoning.anomalies import anomaly_event_id
from gpuloop.reasoning.detectors import behaviour, drift, episodes, forest, peers
from gpuloop.reasoning.detectors.behaviour import METRICS, Behaviour, Floats, Laws, NodeMemory
from gpuloop.reasoning.detectors.drift import Mean
from gpuloop.reasoning.detectors.episodes import Episode, Finding, Rule
from gpuloop.reasoning.detectors.forest import Forest
from gpuloop.reasoning.detectors.peers import Peers
from gpuloop.reasoning.series import NEVER, minute_of
from gpuloop.schemas.component import Context, Event, Output, Received, State
from gpuloop.schemas.horizon import SOURCE_AHEAD_US, STATE_AHEAD_US, refuse_ahead
from gpuloop.schemas.messages import Anomaly, NodeState, PoolState
from gpuloop.schemas.messages.insight import AnomalyKind
from gpuloop.schemas.units import MINUTE_US, TimeUs

SENSOR: Final = Rule(
    kind="sensor", detector="quality", enter=1.0, leave=0.5, minutes=1, within=1, quiet_minutes=5
)
PEER: Final = Rule(
    kind="peer", detector="median/MAD", enter=5.0, leave=3.0, minutes=3, within=4, quiet_minutes=10
)
JOINT: Final = Rule(
    kind="joint",
    detector="half-space trees",
    enter=0.7,
    leave=0.6,
    minutes=3,
    within=4,
    quiet_minutes=10,
)
DRIFT: Final = Rule(
    kind="drift", detector="ADWIN", enter=1.0, leave=0.5, minutes=1, within=1, quiet_minutes=30
)
COVERAGE: Final = Rule(
    kind="level", detector="coverage", enter=1.0, leave=0.5, minutes=3, within=3, quiet_minutes=5
)
DRIFTS: Final = {"power_excess": 0.12, "heat_excess": 2.5}
"""Means that are watched, and a change of them that matters."""
DRIFT_NODES: Final = 5

MAX_NODES: Final = 1024
MAX_POOLS: Final = 64
FORGET_MINUTES: Final = 120
LATE_MINUTES: Final = 2
SILENT_MINUTES: Final = 3
UNHEARD_MINUTES: Final = 15
"""While nobody of a pool is heard it is the way that is slow, not the nodes; for this long."""
MAX_NAMED: Final = 5
MAX_DOUBTS: Final = 32


class PoolMemory(State):
    """What is usual in a pool, and the last minute judged."""

    laws: Laws
    peers: Peers
    forest: Forest
    means: dict[str, Mean]
    judged: int = NEVER
    unheard: int = 0
    """For how many judgements nobody was heard."""

    @classmethod
    def empty(cls) -> "PoolMemory":
        """Return the memory of a pool that was never seen."""
        return cls(
            laws=Laws.unknown(),
            peers=Peers.empty(),
            forest=Forest.empty(),
            means={name: Mean() for name in DRIFTS},
        )


class DetectorsState(State):
    """The newest minute of every node, what is usual of every pool, and what is wrong."""

    nodes: dict[str, NodeMemory] = {}
    pools: dict[str, PoolMemory] = {}
    episodes: dict[str, Episode] = {}


class Detectors:
    """Folds `state.nodes` and `state.pools` into `insight.anomalies`."""

    name: ClassVar[str] = "detectors"
    inputs: ClassVar[tuple[str, ...]] = ("state.nodes", "state.pools")
    state_version: ClassVar[int] = 1

    def __init__(self, fleet: str) -> None:
        self.fleet = fleet
        self.state_type = DetectorsState
        self.tick_every_us: TimeUs = 0

    def initial(self) -> DetectorsState:
        """Return a memory of nothing."""
        return DetectorsState()

    def step(
        self, state: DetectorsState, event: Event, ctx: Context
    ) -> tuple[DetectorsState, Sequence[Output]]:
        """Remember a node; judge a pool's last minute when the pool speaks.

        Raises:
            BadInput: a state from the future, after which all others would be old.

        """
        if not isinstance(event, Received):
            return state, ()
        match event.message:
            case NodeState() as node:
                refuse_ahead(node.event_time_us, ctx.now_us, SOURCE_AHEAD_US)
                _remember(state, node)
            case PoolState() as pool:
                refuse_ahead(pool.tick_us, ctx.now_us, STATE_AHEAD_US)
                return state, [_output(anomaly) for anomaly in self._judge(state, pool)]
            case _:
                pass
        return state, ()

    def _judge(self, state: DetectorsState, pool: PoolState) -> list[Anomaly]:
        minute = pool.tick_us // MINUTE_US - 1  # The last one that is over.
        memory = state.pools.get(pool.pool)
        if memory is None:
            if len(state.pools) >= MAX_POOLS:
                del state.pools[min(state.pools, key=lambda n: (state.pools[n].judged, n))]
            memory = state.pools[pool.pool] = PoolMemory.empty()
        if minute <= memory.judged:
            return []
        memory.judged = minute
        fresh = _fresh(state, pool.pool, minute)
        said = [
            *self._follow(state, SENSOR, _sensors(state, fresh), minute),
            *self._follow(state, COVERAGE, [_coverage(state, memory, pool, minute)], minute),
        ]
        steady = {name: node for name, node in fresh.items() if behaviour.is_steady(node)}
        if steady:
            said += self._behave(state, memory, pool.pool, steady, minute)
        return [*said, *episodes.forget_silent(state.episodes, pool.pool, minute)]

    def _behave(
        self,
        state: DetectorsState,
        memory: PoolMemory,
        pool: str,
        steady: dict[str, NodeMemory],
        minute: int,
    ) -> list[Anomaly]:
        """Judge steady nodes beside their pool, then learn from those that are well."""
        said: list[Anomaly] = []
        found = behaviour.describe(steady, memory.laws) if memory.laws.known else None
        if found is not None:
            scores, usual = peers.judge(memory.peers, found.metrics)
            said += self._follow(state, PEER, _peers(state, found, pool, scores, usual), minute)
        well = _well(state, sorted(steady))
        if found is not None:
            rare = forest.judge_and_learn(memory.forest, found.metrics, well)
            joint = _joint(state, found, pool, rare)
            said += self._follow(state, JOINT, joint, minute)
            peers.learn(memory.peers, found.metrics[well])
            said += self._follow(state, DRIFT, _drift(memory, pool, found), minute)
        sensed = np.array([steady[name].sensed for name in sorted(steady)])[well]
        memory.laws.power.learn(sensed[:, 0], sensed[:, 3])
        memory.laws.heat.learn(sensed[:, 3], sensed[:, 4])
        return said

    def _follow(
        self, state: DetectorsState, rule: Rule, findings: Iterable[Finding], minute: int
    ) -> list[Anomaly]:
        said = (
            episodes.follow(state.episodes, rule, finding, minute, self.fleet)
            for finding in findings
        )
        return [anomaly for anomaly in said if anomaly is not None]


def _remember(state: DetectorsState, node: NodeState) -> None:
    minute = minute_of(node.event_time_us)
    known = state.nodes.get(node.node)
    if known is not None and minute <= known.minute:
        return
    if known is None and len(state.nodes) >= MAX_NODES:
        oldest = min(state.nodes, key=lambda name: (state.nodes[name].minute, name))
        if minute - state.nodes[oldest].minute < SILENT_MINUTES:
            return  # In a fleet of more, each would drive out the next and none be known for long.
        del state.nodes[oldest]
    state.nodes[node.node] = behaviour.remember(node, minute, known)


def _fresh(state: DetectorsState, pool: str, minute: int) -> dict[str, NodeMemory]:
    """Return the pool's nodes that said something since they were judged, and forget old ones."""
    mine = {name: node for name, node in state.nodes.items() if node.pool == pool}
    for name in [name for name, node in mine.items() if minute - node.minute > FORGET_MINUTES]:
        del state.nodes[name], mine[name]
    fresh = {
        name: mine[name]
        for name in sorted(mine)
        if not mine[name].judged and minute - mine[name].minute <= LATE_MINUTES
    }
    for node in fresh.values():
        node.judged = True
    return fresh


def _well(state: DetectorsState, names: list[str]) -> list[bool]:
    """Return which nodes may teach what is normal: those that nothing is suspected of."""
    suspected = {episode.subject for episode in state.episodes.values()}
    well = [name not in suspected for name in names]
    return well if 2 * sum(well) >= len(well) else [True] * len(well)


def _sensors(state: DetectorsState, fresh: dict[str, NodeMemory]) -> Iterator[Finding]:
    known: dict[str, set[str]] = {}
    for episode in state.episodes.values():
        if episode.kind == "sensor":
            known.setdefault(episode.subject, set()).add(episode.metric)
    for name, node in fresh.items():
        for metric in sorted(node.doubts.keys() | known.get(name, set()))[:MAX_DOUBTS]:
            doubt = node.doubts.get(metric)
            yield Finding(
                subject=name,
                pool=node.pool,
                metric=metric,
                score=float(doubt is not None),
                value=float(doubt is not None),
                expected=0.0,
                evidence=f"{metric} is {doubt}",
            )


def _coverage(state: DetectorsState, memory: PoolMemory, pool: PoolState, minute: int) -> Finding:
    ready = sum(tranche.nodes_ready for tranche in pool.tranches)
    missing = float(ready - pool.nodes_heard)
    memory.unheard = memory.unheard + 1 if ready and not pool.nodes_heard else 0
    if 0 < memory.unheard < UNHEARD_MINUTES:
        missing = (COVERAGE.enter + COVERAGE.leave) / 2  # Neither opens nor closes anything.
    silent = sorted(
        name
        for name, node in state.nodes.items()
        if node.pool == pool.pool and minute - node.minute >= SILENT_MINUTES
    )
    return Finding(
        subject=pool.pool,
        pool=pool.pool,
        metric="nodes_heard",
        score=missing,
        value=float(pool.nodes_heard),
        expected=float(ready),
        evidence="silent: " + ", ".join(silent[:MAX_NAMED]),
    )


def _peers(
    state: DetectorsState, found: Behaviour, pool: str, scores: Floats, usual: Floats
) -> Iterator[Finding]:
    """Yield how far each node is from its peers.

    Of one trouble one metric tells: the first that departs, since later ones are measured against
    earlier ones and depart with them.
    """
    if not np.isfinite(usual).all():
        return
    told = _told(state, "peer")
    for row, name in enumerate(found.nodes):
        away = np.abs(scores[row])
        first = told.get(name, METRICS[int(np.argmax(away >= PEER.enter))])
        for column, metric in enumerate(METRICS):
            value = float(found.metrics[row, column])
            yield Finding(
                subject=name,
                pool=pool,
                metric=metric,
                score=float(away[column]) if metric == first else 0.0,
                value=value,
                expected=float(usual[column]),
                evidence=f"{metric} is {value:.3g}, in the pool {usual[column]:.3g}",
            )


def _told(state: DetectorsState, kind: AnomalyKind) -> dict[str, str]:
    """Return the subjects with an open anomaly of a kind, and its metric."""
    return {
        episode.subject: episode.metric
        for episode in state.episodes.values()
        if episode.kind == kind and episode.said is not None
    }


def _joint(
    state: DetectorsState, found: Behaviour, pool: str, rare: list[float]
) -> Iterator[Finding]:
    """Yield how rare each node's combination is; what one metric explains is not said again."""
    explained = _told(state, "peer")
    usual = float(np.median(rare))
    for row, name in enumerate(found.nodes):
        metrics = zip(METRICS, found.metrics[row], strict=True)
        yield Finding(
            subject=name,
            pool=pool,
            metric="behaviour",
            score=0.0 if name in explained else rare[row],
            value=rare[row],
            expected=usual,
            evidence=", ".join(f"{metric} {value:.3g}" for metric, value in metrics),
        )


def _drift(memory: PoolMemory, pool: str, found: Behaviour) -> Iterator[Finding]:
    if len(found.nodes) < DRIFT_NODES:
        return
    for metric, matters in DRIFTS.items():
        mean = memory.means[metric]
        value = float(np.median(found.metrics[:, METRICS.index(metric)])) / matters
        moved = drift.follow(mean, value)
        yield Finding(
            subject=pool,
            pool=pool,
            metric=metric,
            score=abs(moved),
            value=(mean.reference + moved) * matters,
            expected=mean.reference * matters,
            evidence=f"mean of {metric} moved by {moved * matters:.3g}",
        )


def _output(anomaly: Anomaly) -> Output:
    return Output(
        topic="insight.anomalies",
        key=anomaly.subject,
        message=anomaly,
        event_id=anomaly_event_id(anomaly),
        time_us=anomaly.event_time_us,
    )
