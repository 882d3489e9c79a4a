"""The causes component: notices that something departed from normal and says what caused it.

It sees `state.*` only, no fault event: what it names was inferred. Each minute of each pool is
judged once: anomalies open and close, and every open symptom that has suspects gets one cause
from the fast tier. `analysis_request` turns such a cause into the question for the deep tier and
`causal_cause` turns the answer into the message; both are pure, and the answer itself, bound by
wall time, is written by the process around this fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from msgspec.structs import replace

from gpuloop.reasoning.analysis import Analysis, Attribution
from gpuloop.reasoning.anomalies import (
    MAX_OPEN,
    OpenAnomaly,
    anomaly_event_id,
    anomaly_key,
    onset,
    opens,
    still_open,
)
from gpuloop.reasoning.diagnosis import (
    build_analysis,
    describe,
    describe_all,
    find_suspects,
    name_of,
    read_attribution,
)
from gpuloop.reasoning.evidence import Evidence
from gpuloop.reasoning.topology import CAPACITY, MIGRATION, PRICE, PROGRESS, Column
from gpuloop.reasoning.tracks import (
    JobTrack,
    NodeTrack,
    PoolTrack,
    forget_ended,
    track_job,
    track_node,
    track_pool,
)
from gpuloop.schemas.component import Context, Event, Output, Received, State
from gpuloop.schemas.horizon import SOURCE_AHEAD_US, STATE_AHEAD_US, refuse_ahead
from gpuloop.schemas.identity import derived_event_id, sha256_of
from gpuloop.schemas.messages import Anomaly, Cause, JobState, NodeState, PoolState
from gpuloop.schemas.messages.insight import Suspect
from gpuloop.schemas.units import MINUTE_US

FAST_METHOD: Final = "traversal+lag+correlation"
CAUSAL_METHOD: Final = "dowhy.gcm.attribute_anomalies"
ACTIONS: Final = frozenset({MIGRATION, CAPACITY, PRICE})
EXPLAIN_MINUTES: Final = 15
"""A symptom without suspects is asked about again for this long."""
STALE_MINUTES: Final = 10
MAX_TOLD: Final = 4
CLEAN_MARGIN: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A fast cause, what the deep tier is asked about it, and each vertex's departure in words."""

    fast: Cause
    analysis: Analysis
    words: dict[str, str]


class CausesState(State):
    """Tracks of the fleet, and what is wrong with it at present."""

    nodes: dict[str, NodeTrack] = {}
    jobs: dict[str, JobTrack] = {}
    pools: dict[str, PoolTrack] = {}
    open: dict[str, OpenAnomaly] = {}


class Causes:
    """Folds `state.*` into `insight.anomalies` and the fast tier of `insight.causes`."""

    name: ClassVar[str] = "causes"
    inputs: ClassVar[tuple[str, ...]] = ("state.nodes", "state.jobs", "state.pools")
    state_version: ClassVar[int] = 1

    def __init__(self, fleet: str) -> None:
        self.fleet = fleet
        self.state_type = CausesState
        self.tick_every_us = 0

    def initial(self) -> CausesState:
        """Return a memory of nothing."""
        return CausesState()

    def step(
        self, state: CausesState, event: Event, ctx: Context
    ) -> tuple[CausesState, Sequence[Output]]:
        """Remember a node or job; judge a pool's last minute when the pool speaks.

        Raises:
            BadInput: a state from the future, after which all others would be old.

        """
        if not isinstance(event, Received):
            return state, ()
        match event.message:
            case NodeState() as node:
                refuse_ahead(node.event_time_us, ctx.now_us, SOURCE_AHEAD_US)
                track_node(state.nodes, node)
            case JobState() as job:
                refuse_ahead(job.event_time_us, ctx.now_us, SOURCE_AHEAD_US)
                track_job(state.jobs, state.nodes, job)
            case PoolState() as pool:
                refuse_ahead(pool.tick_us, ctx.now_us, STATE_AHEAD_US)
                minute = track_pool(state.pools, pool)
                if minute is not None:
                    forget_ended(state.jobs, state.nodes, minute)
                    return state, self._judge(state, pool.pool, minute)
            case _:
                pass
        return state, ()

    def _judge(self, state: CausesState, pool: str, minute: int) -> list[Output]:
        """Close what is over, open what is new, explain what is open."""
        evidence = gather(state, pool, minute)
        said = [*self._close(state, evidence), *self._open(state, evidence)]
        outputs = [
            Output(
                topic="insight.anomalies",
                key=anomaly.subject,
                message=anomaly,
                event_id=anomaly_event_id(anomaly),
                time_us=anomaly.event_time_us,
            )
            for anomaly in said
        ]
        return outputs + [written(cause) for cause in self._explain(state, evidence)]

    def _close(self, state: CausesState, evidence: Evidence) -> list[Anomaly]:
        closed = []
        for key, anomaly in sorted(state.open.items()):
            if anomaly.pool != evidence.pool:
                continue
            reading = evidence.readings.get(Column(anomaly.subject, anomaly.metric))
            scores = np.full(1, np.nan, np.float32) if reading is None else reading.badness
            if not still_open(anomaly, scores, evidence.minute):
                del state.open[key]
                closed.append(anomaly.message(self.fleet, evidence.minute, is_open=False))
        return closed

    def _open(self, state: CausesState, evidence: Evidence) -> list[Anomaly]:
        opened = []
        for column, reading in evidence.readings.items():
            key = anomaly_key(column.subject, column.metric)
            if column.metric in ACTIONS or key in state.open or len(state.open) >= MAX_OPEN:
                continue
            newest = reading.newest()
            behind = len(reading.away) - 1 - newest
            if newest < 0 or behind > STALE_MINUTES:
                continue
            scores = reading.badness[: newest + 1]
            if not opens(scores, at_once=column.metric == "ecc_uncorrected"):
                continue
            minute = evidence.minute - behind
            anomaly = OpenAnomaly(
                subject=column.subject,
                pool=evidence.pool,
                metric=column.metric,
                onset=minute - onset(scores),
                heard=minute,
                value=float(reading.value[newest]),
                expected=float(reading.expected[newest]),
                score=float(scores[newest]) * reading.bad,
            )
            state.open[key] = anomaly
            opened.append(anomaly.message(self.fleet, evidence.minute, is_open=True))
        return opened

    def _explain(self, state: CausesState, evidence: Evidence) -> list[Cause]:
        """Return a cause for each open symptom that has suspects and is news.

        A rack is never a symptom: it is what its nodes' symptoms are traced to.
        """
        causes = []
        racks = set(evidence.topology.rack_of.values())
        order = sorted(state.open.values(), key=lambda a: (a.metric == PROGRESS, a.onset, a.key))
        for anomaly in order:
            if anomaly.pool != evidence.pool or anomaly.explained or anomaly.subject in racks:
                continue
            if evidence.minute - anomaly.onset > EXPLAIN_MINUTES:
                continue
            suspects = find_suspects(evidence, Column(anomaly.subject, anomaly.metric))
            if not suspects:
                continue
            anomaly.explained = True
            if _is_news(state, anomaly, suspects[0].subject):
                causes.append(self._fast_cause(anomaly, suspects, evidence))
        return causes

    def _fast_cause(
        self, anomaly: OpenAnomaly, suspects: tuple[Suspect, ...], evidence: Evidence
    ) -> Cause:
        anomaly_id, leader = anomaly.anomaly_id(self.fleet), suspects[0]
        words = describe(evidence, Column(leader.subject, leader.metric))
        return Cause(
            fleet=self.fleet,
            cause_id=sha256_of("cause", anomaly_id, "fast"),
            anomaly_id=anomaly_id,
            symptom=anomaly.subject,
            pool=anomaly.pool,
            symptom_metric=anomaly.metric,
            event_time_us=(evidence.minute + 1) * MINUTE_US,
            suspects=suspects,
            tier="fast",
            method=FAST_METHOD,
            elapsed_us=0,
            timed_out=False,
            summary=_summary(leader, words, anomaly.subject, anomaly.metric, verb="best fits"),
        )


def _is_news(state: CausesState, symptom: OpenAnomaly, culprit: str) -> bool:
    """Return whether a symptom adds to what was said of its culprit, and count it if so.

    A sensor adds nothing once its culprit was named; the first few slow jobs tell what it costs.
    """
    open_on_it = [a for a in state.open.values() if a.subject in (culprit, symptom.subject)]
    told = max((anomaly.told for anomaly in open_on_it), default=0)
    if told >= (MAX_TOLD if symptom.metric == PROGRESS else 1):
        return False
    for anomaly in open_on_it:
        anomaly.told = told + 1
    return True


def gather(state: CausesState, pool: str, minute: int) -> Evidence:
    """Return the evidence about a pool at a minute."""
    ill: dict[str, int] = {}
    for anomaly in state.open.values():
        begin = anomaly.onset - CLEAN_MARGIN
        ill[anomaly.subject] = min(ill.get(anomaly.subject, begin), begin)
    for name, node in state.nodes.items():
        if node.rack in ill:
            ill[name] = min(ill.get(name, ill[node.rack]), ill[node.rack])
    return Evidence(
        pool=pool, minute=minute, nodes=state.nodes, jobs=state.jobs, pools=state.pools, ill=ill
    )


def analysis_request(state: CausesState, cause: Cause) -> Question | None:
    """Return what to ask the deep tier about a fast cause, None where data are too few.

    `state` is the one that the cut which gave the cause ended in.
    """
    evidence = gather(state, cause.pool, cause.event_time_us // MINUTE_US - 1)
    symptom = Column(cause.symptom, cause.symptom_metric)
    analysis = build_analysis(evidence, symptom, cause.anomaly_id)
    if analysis is None:
        return None
    return Question(fast=cause, analysis=analysis, words=describe_all(evidence, symptom))


def causal_cause(question: Question, attribution: Attribution | None, elapsed_us: int) -> Output:
    """Return the deep tier's cause; without an attribution the fast one, marked as timed out."""
    fast = question.fast
    suspects = () if attribution is None else read_attribution(attribution, fast.suspects)
    cause = replace(
        fast,
        cause_id=sha256_of("cause", fast.anomaly_id, "causal"),
        tier="causal",
        elapsed_us=elapsed_us,
        timed_out=attribution is None,
    )
    if suspects:
        leader = suspects[0]
        words = question.words.get(str(Column(leader.subject, leader.metric)), leader.metric)
        summary = _summary(leader, words, fast.symptom, fast.symptom_metric, verb="explains")
        cause = replace(cause, suspects=suspects, method=CAUSAL_METHOD, summary=summary)
    return written(cause)


def _summary(leader: Suspect, words: str, symptom: str, metric: str, *, verb: str) -> str:
    """Return one line: who departed, how far, since when, and how much of what that is behind."""
    if leader.subject == symptom:
        return f"{symptom}: {words}"
    share = round(100 * min(max(leader.score, 0.0), 1.0))
    effect = f"{name_of(metric)} of {symptom}"
    return f"{leader.subject}: {words} {verb} {share} % of the change in {effect}"


def written(cause: Cause) -> Output:
    """Return a cause as the record it is written as."""
    return Output(
        topic="insight.causes",
        key=cause.symptom,
        message=cause,
        event_id=derived_event_id("insight.causes", [cause.cause_id]),
        time_us=cause.event_time_us,
    )
