"""Every topic: key, partitions, retention, compaction, who writes it, who reads it.

The catalogue is what `gpuloop topics apply` creates, what AsyncAPI is generated from and what the
codec decodes by. A topic that is not here does not exist.
"""

from dataclasses import dataclass
from typing import Final, Literal

from gpuloop.schemas import messages as m
from gpuloop.schemas.messages.actions import ACTUATORS

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
FOREVER_MS: Final = -1
MAX_VALUE_BYTES: Final = 1_000_000

Encoding = Literal["json", "msgpack", "binary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One topic and its contract. `messages` is empty only for the `binary` encoding."""

    name: str
    key: str
    messages: tuple[type[m.Message], ...]
    partitions: int
    retention_ms: int
    compacted: bool = False
    compaction_lag_ms: int = 0
    encoding: Encoding = "json"
    headers_required: bool = True
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    description: str

    @property
    def config(self) -> dict[str, str]:
        """Return the broker's settings for this topic."""
        config = {
            "cleanup.policy": "compact" if self.compacted else "delete",
            "max.message.bytes": "1048576",
            "message.timestamp.type": "CreateTime",
        }
        if self.compacted:
            config["min.compaction.lag.ms"] = str(self.compaction_lag_ms)
        else:
            config["retention.ms"] = str(self.retention_ms)
        return config


WORLD: Final = ("twin", "collector")
HISTORY: Final = "sink-timescale"
ANALYSIS: Final = "sink-clickhouse"
_JOURNALED: Final = ("decider", "evaluator", "forecaster", "causes")


def _topic(
    name: str,
    key: str,
    *messages: type[m.Message],
    description: str,
    by: tuple[str, ...],
    to: tuple[str, ...],
    partitions: int = 1,
    retention_ms: int = 7 * DAY_MS,
    compacted: bool = False,
    encoding: Encoding = "json",
    headers_required: bool = True,
) -> Topic:
    return Topic(
        name=name,
        key=key,
        messages=messages,
        partitions=partitions,
        retention_ms=FOREVER_MS if compacted else retention_ms,
        compacted=compacted,
        compaction_lag_ms=7 * DAY_MS if compacted else 0,
        encoding=encoding,
        headers_required=headers_required,
        producers=by,
        consumers=to,
        description=description,
    )


SHARDS: Final = 4
"""Partitions of the fleet-sized topics; frames keep the partition number of their samples."""

_TOPICS: Final = (
    _topic(
        "telemetry.gpu", "node", m.GpuSample, partitions=SHARDS, retention_ms=DAY_MS,
        by=WORLD, to=("framer",), description="One node's GPUs at one instant.",
    ),
    _topic(
        "telemetry.jobs", "job", m.JobEvent, partitions=SHARDS,
        by=WORLD, to=("observe", "evaluator"), description="What happens to batch jobs.",
    ),
    _topic(
        "telemetry.services", "service", m.ServiceSample,
        by=WORLD, to=("observe", "evaluator", HISTORY),
        description="Load and latency of inference.",
    ),
    _topic(
        "telemetry.resources", "resource", m.ResourceSample,
        by=WORLD, to=("observe", "evaluator"),
        description="Load, capacity and cost of rented GPUs, storage, networks, databases.",
    ),
    _topic(
        "telemetry.tenants", "tenant", m.TenantEvent,
        by=WORLD, to=("observe",), description="Quotes seen, accepted, refused.",
    ),
    _topic(
        "telemetry.clock", "fleet", m.ClockAnchor, compacted=True,
        by=WORLD, to=("collector", "framer", "observe", *_JOURNALED, "auditor"),
        description="The fleet clock's anchor.",
    ),
    _topic(
        "telemetry.faults", "node", m.Fault,
        by=WORLD, to=("decider",), description="Edges: XIDs, lost nodes, reclaim notices.",
    ),
    _topic(
        "market.offers", "provider/region/gpu", m.Offer,
        by=WORLD, to=("decider", "evaluator", HISTORY), description="Prices of capacity upstream.",
    ),
    _topic(
        "state.nodes", "node", m.NodeState, compacted=True, partitions=SHARDS,
        by=("observe",), to=("causes", "console", HISTORY),
        description="The current belief about nodes.",
    ),
    _topic(
        "state.jobs", "job", m.JobState, compacted=True, partitions=SHARDS,
        by=("observe",), to=("decider", "causes"), description="The current belief about jobs.",
    ),
    _topic(
        "state.pools", "pool", m.PoolState, compacted=True,
        by=("observe",), to=("decider", "forecaster", "causes", HISTORY, ANALYSIS),
        description="The current belief about pools, once per tick.",
    ),
    _topic(
        "insight.anomalies", "subject", m.Anomaly,
        by=("causes",), to=("people", ANALYSIS),
        description="Departures from a subject's own past.",
    ),
    _topic(
        "insight.causes", "subject", m.Cause,
        by=("causes",), to=("decider", ANALYSIS), description="Why a symptom happened.",
    ),
    _topic(
        "insight.forecasts", "pool", m.Forecast,
        by=("forecaster",), to=("decider", ANALYSIS), description="Demand to come, as quantiles.",
    ),
    _topic(
        "insight.features", "pool", m.FeatureVector, retention_ms=DAY_MS,
        by=("forecaster",), to=("people", ANALYSIS),
        description="Features of pools and job classes, once per minute.",
    ),
    _topic(
        "insight.risks", "subject", m.Risk,
        by=("forecaster",), to=("people", ANALYSIS), description="What may break.",
    ),
    _topic(
        "decisions", "pool", m.Decision, retention_ms=30 * DAY_MS,
        by=("decider",), to=("evaluator", "learner", "auditor", ANALYSIS),
        description="Everything needed to judge a decision later.",
    ),
    _topic(
        "proposals", "target", m.Proposal,
        by=("decider",), to=("people", "auditor"),
        description="Commands only shown, or waiting for a person.",
    ),
    _topic(
        "approvals", "command", m.Approval, headers_required=False, retention_ms=365 * DAY_MS,
        by=("people",), to=("decider", "auditor"), description="A person's yes or no.",
    ),
    *(
        _topic(
            f"actions.{actuator}", "target", m.Command, retention_ms=30 * DAY_MS,
            by=("decider",), to=("executor", "auditor", ANALYSIS),
            description=f"Executable {actuator} commands, and nothing else.",
        )
        for actuator in ACTUATORS
    ),
    _topic(
        "actions.outcomes", "target", m.Outcome, retention_ms=30 * DAY_MS,
        by=("executor",), to=("decider", "evaluator", "auditor", ANALYSIS),
        description="What became of each command.",
    ),
    _topic(
        "rewards", "pool", m.Reward, retention_ms=30 * DAY_MS,
        by=("evaluator",), to=("learner", "auditor", ANALYSIS),
        description="Credit for each decision.",
    ),
    _topic(
        "policies", "id", m.PolicyVersion, compacted=True,
        by=("learner", "people"), to=("decider", "auditor"),
        description="Immutable policy versions; people publish signed ones again.",
    ),
    _topic(
        "policies.weights", "digest", compacted=True, encoding="binary",
        by=("learner", "people"), to=("decider",), description="Actor weights as safetensors.",
    ),
    _topic(
        "controls", "scope", m.Control, compacted=True, headers_required=False,
        by=("people", "decider", "supervisor"), to=("decider", "executor", "auditor"),
        description="Modes, stages, freezes, objectives, claims, the kill switch.",
    ),
    _topic(
        "audit", "source partition", m.AuditRecord, m.AuditCheckpoint, retention_ms=FOREVER_MS,
        by=("auditor",), to=("people", ANALYSIS), description="The hash-chained record.",
    ),
    _topic(
        "deadletters", "source topic", m.DeadLetter, retention_ms=30 * DAY_MS,
        by=("framer", "observe", *_JOURNALED, "executor", "learner", "auditor",
            HISTORY, ANALYSIS), to=("people",),
        description="Input that could not be understood, whole.",
    ),
    _topic(
        "internal.frames", "-", m.Frame, partitions=SHARDS, encoding="msgpack",
        retention_ms=6 * HOUR_MS,
        by=("framer",), to=("observe",), description="Columnar GPU samples.",
    ),
    _topic(
        "internal.partials", "pool", m.Partial, encoding="msgpack", retention_ms=6 * HOUR_MS,
        by=("observe",), to=("observe",), description="Partial pool sums.",
    ),
    _topic(
        "internal.journal", "component", m.Cut, encoding="msgpack",
        by=_JOURNALED, to=_JOURNALED, description="What each component consumed, in order.",
    ),
    _topic(
        "internal.snapshots", "component", m.Snapshot, encoding="msgpack",
        by=_JOURNALED, to=_JOURNALED, description="Component states.",
    ),
)  # fmt: skip

CATALOGUE: Final[dict[str, Topic]] = {topic.name: topic for topic in _TOPICS}

_BY_TYPE: Final = {kind.TYPE: kind for topic in _TOPICS for kind in topic.messages}


def message_type(name: str) -> type[m.Message] | None:
    """Return the message class of a `ce_type`, or None when there is none."""
    return _BY_TYPE.get(name)


def action_topic(actuator: str) -> str:
    """Return the topic of an actuator's commands."""
    return f"actions.{actuator}"
