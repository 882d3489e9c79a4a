"""What was decided, done and earned, for analysis: the tables of the ClickHouse sink.

A row is named by the id of its event. What people filter and sum by are columns; what they only
read is text. Audit records are here without the values they repeat, for the chain is on its topic.
"""

import json
from typing import Any, Final

import msgspec

from gpuloop.schemas.messages import (
    Anomaly,
    AuditCheckpoint,
    AuditRecord,
    Cause,
    Command,
    Decision,
    FeatureVector,
    Forecast,
    Outcome,
    Reward,
    Risk,
)
from gpuloop.schemas.messages.actions import ACTUATORS, DesiredState
from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.streams.sinks.history import POOL_STATES
from gpuloop.streams.sinks.tables import (
    Catalogue,
    Column,
    Source,
    Table,
    Value,
    event_id,
    field,
    fields,
    moment,
)
from gpuloop.streams.sinks.tables import time_of as _time


def _table(
    name: str, message: type[Any], topics: tuple[str, ...], *columns: Column, about: str
) -> Table:
    key = tuple(c.name for c in columns if c.name in ("fleet", "pool", "time", "event_id"))
    return Table(name=name, message=message, topics=topics, key=key, columns=columns, about=about)


def _json(state: DesiredState | None) -> Value:
    return None if state is None else msgspec.json.encode(state).decode()


def _floats(name: str) -> Column:
    return Column(name, "floats", lambda source: list(getattr(source.message, name)))


def _texts(name: str) -> Column:
    return Column(name, "texts", lambda source: list(getattr(source.message, name)))


def _stages(source: Source) -> Value:
    return [one.stage for one in source.message.adjustments]


DECISIONS: Final = _table(
    "decisions", Decision, ("decisions",),
    _time("tick_us"),
    *fields("word", "fleet", "pool", "level"),
    event_id(),
    *fields("text", "decision_id"),
    *fields("int", "epoch"),
    *fields("word", "feature_version", "policy_id", "arm"),
    *fields("float", "alpha", "assignment_probability", "log_probability"),
    _texts("dimensions"),
    *map(_floats, ("rule_action", "policy_action", "joint_action", "executed_action")),
    _floats("observation"),
    Column("adjusted_by", "texts", _stages),
    Column("commands", "int", lambda source: len(source.message.command_ids)),
    _texts("command_ids"),
    _texts("stale_inputs"),
    Column("modes", "text", lambda s: json.dumps(s.message.modes, sort_keys=True)),
    *fields("text", "forecast_id", "summary", "why_not"),
    about="Everything that was decided, and what the guards changed.",
)  # fmt: skip

COMMANDS: Final = _table(
    "commands", Command, tuple(f"actions.{actuator}" for actuator in ACTUATORS),
    _time("issued_at_us"),
    *fields("word", "fleet", "pool", "actuator", "mode"),
    event_id(),
    *fields("text", "command_id", "decision_id", "target"),
    Column("before", "text", lambda source: _json(source.message.before), True),
    Column("desired", "text", lambda source: _json(source.message.to)),
    *fields("int", "generation", "epoch", "expires_at_us", "gpus", "usd_micros_per_hour"),
    *fields("text", "summary", "reason"),
    about="Executable commands.",
)  # fmt: skip

OUTCOMES: Final = _table(
    "outcomes", Outcome, ("actions.outcomes",),
    _time("event_time_us"),
    *fields("word", "fleet", "pool", "actuator", "status"),
    event_id(),
    field("why", "word", at="reason"),
    *fields("text", "command_id", "decision_id", "target", "detail"),
    *fields("int", "generation", "epoch"),
    Column("observed", "text", lambda source: _json(source.message.observed), True),
    about="What became of each command.",
)  # fmt: skip


def _component(name: str) -> Column:
    return Column(
        f"{name}_usd_micros", "int", lambda source: source.message.components.get(name), True
    )


REWARDS: Final = _table(
    "rewards", Reward, ("rewards",),
    _time("start_us"),
    *fields("word", "fleet", "pool"),
    event_id(),
    *fields("text", "decision_id"),
    *fields("int", "end_us", "total_usd_micros"),
    *map(_component, COMPONENTS),
    *fields("int", "overlap"),
    *fields("bool", "censored"),
    *fields("word", "definition"),
    about="The money that flowed in the window after each decision.",
)  # fmt: skip

AUDIT: Final = _table(
    "audit_records", AuditRecord, ("audit",),
    Column("time", "time", lambda source: moment(source.message.timestamp_ms * 1000)),
    *fields("word", "fleet"),
    event_id(),
    field("source_topic", "word", at="topic"),
    field("source_partition", "int", at="partition"),
    field("source_offset", "int", at="offset"),
    *fields("int", "missing_before"),
    *fields("text", "hash", "previous_hash"),
    Column("value_bytes", "int", lambda source: _decoded_length(source.message.value)),
    about="The hash chain over everything that is decided or done, without the values.",
)  # fmt: skip


def _decoded_length(text: str) -> int | None:
    """Return how many bytes base64 stands for; None for one that was too long to keep."""
    if text.startswith("sha256:"):
        return None
    return 0 if text == "-" else len(text) * 3 // 4 - text.count("=", -2)


CHECKPOINTS: Final = _table(
    "audit_checkpoints", AuditCheckpoint, ("audit",),
    _time("wall_us"),
    *fields("word", "fleet"),
    event_id(),
    *fields("int", "number"),
    Column("chains", "int", lambda source: len(source.message.heads)),
    *fields("text", "hash", "previous_hash", "public_key"),
    about="Signed heads of all chains, by wall time.",
)  # fmt: skip

ANOMALIES: Final = _table(
    "anomalies", Anomaly, ("insight.anomalies",),
    _time("event_time_us"),
    *fields("word", "fleet", "pool", "metric", "state"),
    event_id(),
    *fields("text", "anomaly_id", "subject"),
    *fields("float", "value", "expected", "score", "threshold"),
    *fields("word", "kind", "detector"),
    field("since_us", "int", nullable=True),
    *fields("text", "evidence"),
    about="Departures of a subject from its own past.",
)  # fmt: skip

CAUSES: Final = _table(
    "causes", Cause, ("insight.causes",),
    _time("event_time_us"),
    *fields("word", "fleet", "pool", "symptom_metric", "tier", "method"),
    event_id(),
    *fields("text", "cause_id", "anomaly_id", "symptom"),
    Column("suspects", "texts", lambda s: [one.subject for one in s.message.suspects]),
    Column("suspect_metrics", "texts", lambda s: [one.metric for one in s.message.suspects]),
    Column("suspect_scores", "floats", lambda s: [one.score for one in s.message.suspects]),
    *fields("int", "elapsed_us"),
    *fields("bool", "timed_out"),
    *fields("text", "summary"),
    about="Why a symptom happened, suspects best first.",
)  # fmt: skip


def _quantile(name: str) -> Column:
    return Column(name, "floats", lambda s: [getattr(one, name) for one in s.message.horizons])


FORECASTS: Final = _table(
    "forecasts", Forecast, ("insight.forecasts",),
    _time("tick_us"),
    *fields("word", "fleet", "pool", "metric", "model", "rival"),
    event_id(),
    *fields("text", "forecast_id"),
    *fields("float", "skill"),
    *fields("int", "samples"),
    Column("horizon_seconds", "floats", lambda s: [q.horizon_us / 1e6 for q in s.message.horizons]),
    *map(_quantile, ("p10", "p50", "p90")),
    about="Demand to come, as quantiles at each horizon.",
)  # fmt: skip

FEATURE_VECTORS: Final = _table(
    "feature_vectors", FeatureVector, ("insight.features",),
    _time("tick_us"),
    *fields("word", "fleet", "pool", "job_class", "definitions"),
    event_id(),
    Column("values", "measures", lambda source: list(source.message.values)),
    Column("ages_us", "ints", lambda source: list(source.message.ages_us)),
    _floats("quality"),
    about="Features of pools and job classes, in the order of their definitions.",
)  # fmt: skip

RISKS: Final = _table(
    "risks", Risk, ("insight.risks",),
    _time("tick_us"),
    *fields("word", "fleet", "pool"),
    event_id(),
    *fields("text", "subject"),
    *fields("int", "horizon_us"),
    *fields("float", "probability", "base_rate"),
    about="What may break, beside the base rate.",
)  # fmt: skip

ANALYSIS: Final = Catalogue(
    (
        POOL_STATES, DECISIONS, COMMANDS, OUTCOMES, REWARDS, AUDIT, CHECKPOINTS,
        ANOMALIES, CAUSES, FORECASTS, FEATURE_VECTORS, RISKS,
    )
)  # fmt: skip
