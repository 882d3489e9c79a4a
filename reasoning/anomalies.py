"""When a departure from normal becomes an anomaly, and when it is over.

Opening takes a clear score in most of the last few minutes, closing takes quiet for longer: a
subject flaps at most every few minutes and is reported once however long it stays ill.
"""

from typing import Final

import numpy as np

from gpuloop.reasoning.series import Array
from gpuloop.schemas.component import State
from gpuloop.schemas.identity import derived_event_id, sha256_of
from gpuloop.schemas.messages import Anomaly
from gpuloop.schemas.units import MINUTE_US

DETECTOR: Final = "robust z-score"
OPEN_SCORE: Final = 6.0
CLOSE_SCORE: Final = 3.0
OPEN_MINUTES: Final = 2
RECENT_MINUTES: Final = 3
QUIET_MINUTES: Final = 5
SILENT_MINUTES: Final = 30
MAX_OPEN: Final = 512
ONSET_MINUTES: Final = 15


class OpenAnomaly(State):
    """An anomaly that is going on. `onset` and `heard` are minutes since 1970.

    `explained` says that it was traced as a symptom, `told` in how many causes it led.
    """

    subject: str
    pool: str
    metric: str
    onset: int
    heard: int
    value: float
    expected: float
    score: float
    quiet: int = 0
    explained: bool = False
    told: int = 0

    @property
    def key(self) -> str:
        """Return what is open at most once."""
        return anomaly_key(self.subject, self.metric)

    def anomaly_id(self, fleet: str) -> str:
        """Return the id of this episode."""
        return sha256_of("anomaly", fleet, self.subject, self.metric, str(self.onset))

    def message(self, fleet: str, minute: int, *, is_open: bool) -> Anomaly:
        """Return what to say about it after `minute`."""
        return Anomaly(
            fleet=fleet,
            anomaly_id=self.anomaly_id(fleet),
            subject=self.subject,
            pool=self.pool,
            metric=self.metric,
            event_time_us=(minute + 1) * MINUTE_US,
            value=round(self.value, 4),
            expected=round(self.expected, 4),
            score=round(self.score, 2),
            state="open" if is_open else "closed",
            detector=DETECTOR,
            threshold=OPEN_SCORE,
            since_us=max(self.onset, 0) * MINUTE_US,
            evidence=f"{self.metric} is {self.value:.3g}, expected {self.expected:.3g}",
        )


def anomaly_key(subject: str, metric: str) -> str:
    """Return the key of a subject's metric; neither may hold the separator."""
    return f"{subject}|{metric}"


def anomaly_event_id(anomaly: Anomaly) -> str:
    """Return the `ce_id` of an anomaly message."""
    return derived_event_id("insight.anomalies", [anomaly.anomaly_id, anomaly.state])


def opens(scores: Array, *, at_once: bool) -> bool:
    """Return whether the newest minutes of a badness score make an anomaly.

    A count of errors needs one minute (`at_once`); a level needs to hold.
    """
    recent = scores[-RECENT_MINUTES:]
    return int(np.count_nonzero(recent >= OPEN_SCORE)) >= (1 if at_once else OPEN_MINUTES)


def onset(scores: Array) -> int:
    """Return how many minutes ago the present run of bad minutes began, blanks allowed."""
    ago = 0
    for back, score in enumerate(scores[::-1][:ONSET_MINUTES]):
        if score >= CLOSE_SCORE:
            ago = back
        elif not np.isnan(score) and back >= RECENT_MINUTES:
            break
    return ago


def still_open(anomaly: OpenAnomaly, scores: Array, minute: int) -> bool:
    """Fold the badness up to `minute` into an open anomaly and return whether it goes on.

    Only minutes after the last one folded count, so late reports neither count twice nor get lost.
    """
    fresh = scores[max(len(scores) - (minute - anomaly.heard), 0) :]
    for score in fresh[~np.isnan(fresh)]:
        anomaly.quiet = anomaly.quiet + 1 if score < CLOSE_SCORE else 0
    known = np.flatnonzero(~np.isnan(fresh))
    if len(known):
        anomaly.heard = minute - (len(fresh) - 1 - int(known[-1]))
    return anomaly.quiet < QUIET_MINUTES and minute - anomaly.heard < SILENT_MINUTES
