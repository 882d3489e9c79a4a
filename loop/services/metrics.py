"""Every metric of every process, by name, in one registry of our own.

A process shows those it touches; labels stay few and bounded (component, topic, reason).
"""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY: Final = CollectorRegistry()


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(f"gpuloop_{name}", meaning, labels, registry=REGISTRY)


RECORDS = _counter("records_total", "Records consumed.", "component", "topic")
OUTPUTS = _counter("outputs_total", "Records written and acknowledged.", "component", "topic")
DEAD_LETTERS = _counter("dead_letters_total", "Records refused.", "component", "reason")
DROPPED = _counter(
    "dropped_total", "Telemetry that changed nothing: duplicate, late, full.", "component", "reason"
)
CUTS = _counter("cuts_total", "Cuts executed.", "component")
TICKS_SKIPPED = _counter("ticks_skipped_total", "Ticks dropped after a jump.", "component")
SNAPSHOTS = _counter("snapshots_total", "Snapshots written.", "component")
REPLAY_MISMATCHES = _counter(
    "replay_mismatches_total", "Re-executed cuts whose outputs differ.", "component"
)
INPUTS_EXPIRED = _counter(
    "inputs_expired_total", "Partitions whose next records had expired at a start.", "component"
)
AUDIT_MISSED = _counter(
    "audit_missed_total",
    "Records that expired before they were audited; `audit verify` names them.",
)
COLLECT_FAILURES = _counter(
    "collect_failures_total",
    "Readings of devices, exporters and servers that failed, and values that were refused.",
    "source",
    "reason",
)
COLLECT_BUFFERED = Gauge(
    "gpuloop_collect_buffered_records",
    "Telemetry that Kafka has not acknowledged yet.",
    registry=REGISTRY,
)
ANALYSES = _counter("analyses_total", "Questions to the deep causal tier.", "result")
REANCHORED = _counter("clock_reanchored_total", "Times the world fell behind its clock.")
SINK_ROWS = _counter("sink_rows_total", "Rows that a sink made durable.", "component", "table")
SINK_BATCHES = _counter("sink_batches_total", "Batches that a sink made durable.", "component")
SINK_RETRIES = _counter("sink_retries_total", "Times a sink's store was away.", "component")
SINK_LAG = Gauge(
    "gpuloop_sink_lag_records", "Records that wait for a sink.", ("component",), registry=REGISTRY
)
SINK_OLDEST_AGE = Gauge(
    "gpuloop_sink_oldest_unwritten_seconds",
    "Age of the oldest record that a sink holds and could not write yet.",
    ("component",),
    registry=REGISTRY,
)
STEP_SECONDS = Histogram(
    "gpuloop_step_seconds",
    "Wall time of one cut, from records to acknowledged outputs.",
    ("component",),
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    registry=REGISTRY,
)
STATE_SECONDS = Histogram(
    "gpuloop_telemetry_to_state_seconds",
    "Wall time from telemetry's production to its being in the state; of a frame, its oldest.",
    ("topic",),
    buckets=(
        *(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25),
        *(0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 60.0),
    ),
    registry=REGISTRY,
)
FLEET_TIME = Gauge(
    "gpuloop_fleet_time_seconds", "Fleet clock of the last cut.", ("component",), registry=REGISTRY
)
POSITION = Gauge(
    "gpuloop_position", "Next offset to consume.", ("component", "partition"), registry=REGISTRY
)
OWNS_FLEET = Gauge(
    "gpuloop_owns_fleet", "1 while this decider owns the fleet and so decides.", registry=REGISTRY
)
READY = Gauge("gpuloop_ready", "1 when the service says it is ready.", registry=REGISTRY)


def exposition() -> bytes:
    """Return all metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)
