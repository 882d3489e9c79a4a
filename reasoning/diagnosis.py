"""From evidence to suspects: the fast tier's answer, the deep tier's question, and its answer read.

Fast: among what could have caused a symptom, whoever departs without a departed parent, before
the symptom and along with it, leads. Deep: the few that survive are handed over with their data,
and what comes back is summed by subject, because a hot node is one culprit, not three sensors.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from gpuloop.reasoning.analysis import Analysis, Attribution, Edge, pack
from gpuloop.reasoning.anomalies import CLOSE_SCORE, onset
from gpuloop.reasoning.evidence import Evidence, Reading
from gpuloop.reasoning.physics import CHANNELS
from gpuloop.reasoning.series import Array
from gpuloop.reasoning.topology import PROGRESS, Column, Link
from gpuloop.schemas.identity import sha256_of
from gpuloop.schemas.messages.insight import Suspect

MAX_SUSPECTS: Final = 8
MAX_COLUMNS: Final = 10
MIN_NORMAL_ROWS: Final = 8
RECENT_MINUTES: Final = 5
LAG_TOLERANCE: Final = 2
CORRELATED_MINUTES: Final = 45
SCORE_CAP: Final = 30.0
WITH_PARENT: Final = 0.3
MIN_SHARE: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Clue:
    """A departed vertex above a symptom. `began` is how many minutes ago it departed."""

    column: Column
    score: float
    began: int
    weight: float


def find_suspects(evidence: Evidence, symptom: Column) -> tuple[Suspect, ...]:
    """Return the subjects that best fit, best first, with their share of the evidence."""
    best: dict[str, Clue] = {}
    for clue in _clues(evidence, symptom):
        held = best.get(clue.column.subject)
        if held is None or clue.weight > held.weight:
            best[clue.column.subject] = clue
    total = sum(clue.weight for clue in best.values())
    ranked = sorted(best.values(), key=lambda clue: (-clue.weight, clue.column))[:MAX_SUSPECTS]
    return tuple(
        Suspect(
            subject=clue.column.subject,
            metric=clue.column.metric,
            score=round(clue.weight / total, 4),
        )
        for clue in ranked
    )


def _clues(evidence: Evidence, symptom: Column) -> list[Clue]:
    """Return what departed above the symptom, and the symptom itself when it is a sensor."""
    links = evidence.topology.causes(symptom)
    above = dict.fromkeys(link.cause for link in links)
    columns = [*above, *([] if symptom.metric == PROGRESS else [symptom])]
    scores = {column: _recent(evidence.readings.get(column)) for column in columns}
    departed = {column for column in columns if scores[column] >= CLOSE_SCORE}
    guilty_parent = {link.effect for link in links if link.cause in departed}
    target = evidence.readings[symptom]
    symptom_began = _began(target)
    clues = []
    for column in columns:
        if column not in departed:
            continue
        reading = evidence.readings[column]
        began = _began(reading)
        in_time = 1.0 if began >= symptom_began - LAG_TOLERANCE else 0.5
        weight = min(scores[column], SCORE_CAP) / SCORE_CAP
        weight *= 0.4 + 0.3 * in_time + 0.3 * _moves_with(reading, target)
        if column in guilty_parent:
            weight *= WITH_PARENT
        clues.append(Clue(column=column, score=scores[column], began=began, weight=weight))
    return clues


def _recent(reading: Reading | None) -> float:
    """Return the worst recent badness, 0 where nothing is known."""
    if reading is None:
        return 0.0
    return float(np.fmax.reduce(reading.badness[-RECENT_MINUTES:], initial=0.0))


def _began(reading: Reading) -> int:
    """Return how many minutes before the window's end the departure began."""
    newest = reading.newest()
    behind = len(reading.away) - 1 - newest
    return behind + onset(reading.badness[: newest + 1])


def _moves_with(one: Reading, other: Reading) -> float:
    """Return how far two departures go bad together lately, 0 to 1; a half when unknown."""
    if one is other:
        return 1.0
    a, b = one.badness[-CORRELATED_MINUTES:], other.badness[-CORRELATED_MINUTES:]
    both = ~(np.isnan(a) | np.isnan(b))
    if np.count_nonzero(both) < MIN_NORMAL_ROWS:
        return 0.5
    a, b = a[both] - a[both].mean(), b[both] - b[both].mean()
    width = float(np.sqrt((a @ a) * (b @ b)))
    return max(float(a @ b) / width, 0.0) if width > 0 else 0.0


def build_analysis(evidence: Evidence, symptom: Column, anomaly_id: str) -> Analysis | None:
    """Return the deep tier's question, or None where the data cannot answer one.

    Columns are departures from what physics expects; an ancestor that is unknown in a minute
    counts as being as expected. Normal minutes end before any of the columns departed.
    """
    target = evidence.readings[symptom]
    links = evidence.topology.causes(symptom)
    chosen = _survivors(evidence, symptom, links)
    kept = {*chosen, symptom}
    edges = tuple(
        Edge(str(link.cause), str(link.effect), link.slope)
        for link in links
        if link.cause in kept and link.effect in kept
    )
    columns = (*chosen, symptom)
    rows = np.stack([evidence.readings[column].away for column in columns], axis=1)
    table = rows.astype(np.float64)
    known = ~np.isnan(target.away)
    end = len(known) - 1 - max(_began(evidence.readings[column]) for column in columns)
    end -= LAG_TOLERANCE
    normal = np.flatnonzero(known[:end])
    anomalous = np.flatnonzero(known & (target.badness >= CLOSE_SCORE))[-RECENT_MINUTES:]
    if len(normal) < MIN_NORMAL_ROWS or not len(anomalous) or not edges:
        return None
    table[np.isnan(table)] = 0.0
    return Analysis(
        target=str(symptom),
        columns=tuple(str(column) for column in columns),
        edges=edges,
        scale=tuple(evidence.readings[column].scale for column in columns),
        normal=pack(table[normal]),
        anomalous=pack(table[anomalous]),
        seed=int(sha256_of("analysis", anomaly_id)[:8], 16),
    )


def _survivors(evidence: Evidence, symptom: Column, links: tuple[Link, ...]) -> list[Column]:
    """Return at most `MAX_COLUMNS` ancestors, the most departed first, each with its way down."""
    scores = {
        link.cause: _recent(evidence.readings[link.cause])
        for link in links
        if link.cause in evidence.readings
    }
    kept: dict[Column, None] = {}
    for column in sorted(scores, key=lambda column: (-scores[column], column)):
        path = [c for c in _way_down(column, symptom, scores, links) if c not in kept]
        if len(kept) + len(path) <= MAX_COLUMNS:
            kept.update(dict.fromkeys(path))
    return list(kept)


def _way_down(
    column: Column, symptom: Column, scores: dict[Column, float], links: tuple[Link, ...]
) -> list[Column]:
    """Return a column and what leads from it to the symptom, by the most departed effects."""
    path = [column]
    while True:
        effects = [link.effect for link in links if link.cause == path[-1]]
        if symptom in effects:
            return path
        path.append(max(effects, key=lambda effect: (scores[effect], effect)))


def read_attribution(attribution: Attribution, fast: tuple[Suspect, ...]) -> tuple[Suspect, ...]:
    """Return suspects by the share of the departure that their own disturbances explain.

    What the symptom's own noise takes is nobody's, unless the symptom is a sensor of a suspect.
    Shares below `MIN_SHARE` are noise.
    """
    shares: dict[str, float] = {}
    loudest: dict[str, tuple[float, str]] = {}
    for name, value in attribution.shares:
        metric, _, subject = name.partition("@")
        if metric == PROGRESS or attribution.departure == 0:
            continue
        share = value / attribution.departure
        shares[subject] = shares.get(subject, 0.0) + share
        loudest[subject] = max(loudest.get(subject, (share, metric)), (share, metric))
    seen = {suspect.subject: suspect.metric for suspect in fast}
    guilty = [subject for subject, share in shares.items() if share >= MIN_SHARE]
    ranked = sorted(guilty, key=lambda subject: (-shares[subject], subject))
    whole = max(sum(shares[subject] for subject in guilty), 1.0)  # Priors may explain too much.
    return tuple(
        Suspect(
            subject=subject,
            metric=seen.get(subject, loudest[subject][1]),
            score=round(shares[subject] / whole, 4),
        )
        for subject in ranked[:MAX_SUSPECTS]
    )


def describe(evidence: Evidence, column: Column) -> str:
    """Return what departed, how far and since when, in words."""
    name = name_of(column.metric)
    reading = evidence.readings.get(column)
    if reading is None or reading.newest() < 0:
        return name
    hour, minute = divmod(evidence.minute - _began(reading), 60)
    since = f"{hour % 24:02d}:{minute:02d}"
    return f"{name} {_change(column.metric, _worst(reading))} since {since}"


def describe_all(evidence: Evidence, symptom: Column) -> dict[str, str]:
    """Return `describe` of a symptom and of all that may have caused it, by column name."""
    columns = {symptom, *(link.cause for link in evidence.topology.causes(symptom))}
    return {str(column): describe(evidence, column) for column in sorted(columns)}


_NAMES: Final = {
    "temperature_celsius": "temperature",
    "throttled": "throttling",
    "nvlink_bytes_per_second": "NVLink traffic",
    "ecc_uncorrected": "uncorrected memory errors",
    "nodes_ready": "capacity",
    "quote": "price",
    "progress": "progress",
    "migration": "migration",
}


def name_of(metric: str) -> str:
    """Return a metric in words."""
    return _NAMES.get(metric, metric)


def _worst(reading: Reading) -> float:
    recent: Array = reading.away[-RECENT_MINUTES:]
    known = recent[~np.isnan(recent)]
    return float(known[np.argmax(known * reading.bad)]) if len(known) else 0.0


def _change(metric: str, away: float) -> str:
    units = {channel.metric: channel.unit for channel in CHANNELS}
    match units.get(metric, "%"):
        case "C":
            return f"{away:+.0f} C"
        case "errors":
            return f"{away:+.0f}"
        case _:
            return f"{100 * away:+.0f} %"
