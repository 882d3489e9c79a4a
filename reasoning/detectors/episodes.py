"""Scores become anomalies: entered by a threshold held for minutes, left by a lower one.

A subject has one open episode of a kind and metric however often its score comes, and one that
returns within the quiet minutes was never over, so nothing is said twice. What is remembered is
bounded, and forgotten when nothing more is heard.
"""

from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from gpuloop.schemas.component import State
from gpuloop.schemas.identity import sha256_of
from gpuloop.schemas.messages import Anomaly
from gpuloop.schemas.messages.insight import AnomalyKind
from gpuloop.schemas.units import MINUTE_US

MAX_EPISODES: Final = 1024
SILENT_MINUTES: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When scores of a detector are an anomaly: `minutes` of the last `within` reach `enter`.

    It is over after `quiet_minutes` below `leave`.
    """

    kind: AnomalyKind
    detector: str
    enter: float
    leave: float
    minutes: int
    within: int
    quiet_minutes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A detector's score of one metric of a subject at one minute, and what it rests on."""

    subject: str
    pool: str
    metric: str
    score: float
    value: float
    expected: float
    evidence: str


class Episode(State):
    """Scores of one subject that are, or may become, an anomaly. Minutes are since 1970."""

    subject: str
    pool: str
    metric: str
    kind: AnomalyKind
    since: int
    heard: int
    recent: list[bool] = []
    quiet: int = 0
    said: Anomaly | None = None
    """What was said when it opened."""


Episodes = dict[str, Episode]


def follow(
    episodes: Episodes, rule: Rule, finding: Finding, minute: int, fleet: str
) -> Anomaly | None:
    """Take a score in; return the anomaly that opens or closes with it, if any does."""
    key = f"{rule.kind}|{finding.subject}|{finding.metric}"
    episode = episodes.get(key)
    if episode is None:
        if finding.score < rule.enter or len(episodes) >= MAX_EPISODES:
            return None
        episode = episodes[key] = Episode(
            subject=finding.subject,
            pool=finding.pool,
            metric=finding.metric,
            kind=rule.kind,
            since=minute,
            heard=minute,
        )
    episode.heard = minute
    episode.quiet = episode.quiet + 1 if finding.score < rule.leave else 0
    episode.recent = [*episode.recent, finding.score >= rule.enter][-rule.within :]
    if episode.said is not None:
        if episode.quiet < rule.quiet_minutes:
            return None
        del episodes[key]
        return _closed(episode.said, minute)
    if sum(episode.recent) >= rule.minutes:
        episode.said = _opened(episode, rule, finding, minute, fleet)
        return episode.said
    if not any(episode.recent):
        del episodes[key]
    return None


def is_open(episodes: Episodes, subject: str) -> bool:
    """Return whether anything is wrong with a subject."""
    return any(e.said is not None and e.subject == subject for e in episodes.values())


def forget_silent(episodes: Episodes, pool: str, minute: int) -> list[Anomaly]:
    """Close what was not heard of for long: the subject is gone, or its sensor is."""
    closed = []
    for key, episode in sorted(episodes.items()):
        if episode.pool == pool and minute - episode.heard > SILENT_MINUTES:
            del episodes[key]
            if episode.said is not None:
                closed.append(_closed(episode.said, minute))
    return closed


def _opened(episode: Episode, rule: Rule, finding: Finding, minute: int, fleet: str) -> Anomaly:
    names = (rule.kind, finding.subject, finding.metric, str(episode.since))
    return Anomaly(
        fleet=fleet,
        anomaly_id=sha256_of("anomaly", fleet, *names),
        subject=finding.subject,
        pool=finding.pool,
        metric=finding.metric,
        event_time_us=(minute + 1) * MINUTE_US,
        value=round(finding.value, 4),
        expected=round(finding.expected, 4),
        score=round(finding.score, 2),
        state="open",
        kind=rule.kind,
        detector=rule.detector,
        threshold=rule.enter,
        since_us=episode.since * MINUTE_US,
        evidence=finding.evidence,
    )


def _closed(said: Anomaly, minute: int) -> Anomaly:
    return replace(said, state="closed", event_time_us=(minute + 1) * MINUTE_US)
