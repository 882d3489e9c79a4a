"""Builders of pool states, jobs, batches and events, with sensible values for all but the point."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from gpuloop.actuators.envelope import (
    LONG_AGO_US,
    SENT,
    EnvelopeConfig,
    EnvelopeState,
    delta_limits,
)
from gpuloop.schemas.component import Context, Output, Received
from gpuloop.schemas.identity import sha256_of
from gpuloop.schemas.messages import Control, JobState, Message, Offer, PoolState
from gpuloop.schemas.messages.control import ControlBody, scope
from gpuloop.schemas.messages.state import Feature, QueueState
from gpuloop.schemas.messages.telemetry import Tranche
from gpuloop.schemas.policy import FEATURE_NAMES, PoolBatch
from gpuloop.schemas.units import HOUR_US, MINUTE_US, USD_MICROS

FLEET = "test"
START_US = 1_508_112_000_000_000


def pool_state(
    pool: str = "a100",
    tick_us: int = START_US,
    *,
    on_demand: int | None = 16,
    spot: int | None = 8,
    allocated: int = 100,
    queued: int = 0,
    waiting_since_us: int | None = None,
    quote_usd: float = 4.8,
    **changes: Any,
) -> PoolState:
    """Return a pool of 8-GPU nodes; None nodes means that billing cannot be rented."""
    tranches = [
        Tranche(billing=billing, nodes_ready=nodes, usd_micros_per_node_hour=cost)
        for billing, nodes, cost in (
            ("on_demand", on_demand, 29_000_000),
            ("spot", spot, 12_000_000),
        )
        if nodes is not None
    ]
    since = tick_us - MINUTE_US if waiting_since_us is None else waiting_since_us
    queue = QueueState(
        job_class="batch", jobs=1, gpus=queued, oldest_submitted_us=since, submitted_sum_us=since
    )
    state = PoolState(
        fleet=FLEET,
        pool=pool,
        tick_us=tick_us,
        gpu_model="a100",
        gpus_per_node=8,
        nodes_min=8,
        nodes_max=48,
        tranches=tuple(tranches),
        capacity_age_us=0,
        quote_usd_micros_per_gpu_hour=round(quote_usd * USD_MICROS),
        energy_usd_micros_per_kwh=80_000,
        generations={"scaling": 0, "pricing": 0},
        nodes_heard=sum(tranche.nodes_ready for tranche in tranches),
        gpus_allocated=allocated,
        running_jobs=12,
        queues=(queue,) if queued else (),
        services=(),
        arrived_gpus=0,
        arrived_jobs=0,
        refused_jobs=0,
        features={"utilisation": Feature(value=0.5, age_us=0, quality=1.0)},
        shards_reported=4,
        shards_expected=4,
    )
    return msgspec.structs.replace(state, **changes)


def job_state(job: str = "j1", pool: str = "a100", **changes: Any) -> JobState:
    """Return a running job of eight GPUs on one node."""
    state = JobState(
        fleet=FLEET,
        job=job,
        pool=pool,
        tenant="t",
        job_class="batch",
        phase="running",
        gpus=8,
        nodes=("a100-d001",),
        event_time_us=START_US,
        submitted_us=START_US,
        started_us=START_US,
        checkpointed_us=None,
        gpu_us_done=0,
        attempt=1,
        generation=0,
        price_usd_micros_per_gpu_hour=4_800_000,
    )
    return msgspec.structs.replace(state, **changes)


def offer(billing: str = "on_demand", usd: float = 3.6, at_us: int = START_US) -> Offer:
    """Return a market offer of an A100, believed for two hours."""
    return Offer(
        fleet=FLEET,
        provider="gcp",
        region="r",
        gpu_model="a100",
        billing=billing,
        usd_micros_per_gpu_hour=round(usd * USD_MICROS),
        availability=1.0,
        interruptions_per_node_hour=0.01,
        fetched_at_us=at_us,
        valid_for_us=2 * HOUR_US,
    )


def received(topic: str, message: Message | None, key: str = "k", **changes: Any) -> Received:
    """Return a message as it arrives; its id follows from its content."""
    identity = sha256_of(topic, key, repr(message))
    base = Received(topic=topic, partition=0, offset=0, key=key, id=identity, message=message)
    return dataclasses.replace(base, **changes)


def control(body: ControlBody, by: str = "me") -> Received:
    """Return a control as it arrives."""
    return received("controls", Control(fleet=FLEET, by=by, body=body), scope(body))


def echo(output: Output) -> Received:
    """Return a message that was written, as its readers receive it."""
    return Received(
        topic=output.topic,
        partition=0,
        offset=0,
        key=output.key,
        id=output.event_id,
        message=output.message,
        payload=output.payload,
    )


def at(now_us: int, wall_us: int = 1_000_000_000, seed: int = 0, run: str = "") -> Context:
    """Return a context."""
    return Context(now_us=now_us, wall_us=wall_us, seed=seed, run=run)


def batch(n: int = 1, config: EnvelopeConfig | None = None, **columns: Any) -> PoolBatch:
    """Return n equal pools of 16 on-demand and 8 spot nodes; a column replaces all of its rows."""
    present = columns.get("present", [[16.0, 8.0, 0.0, 4.0]] * n)
    fields: dict[str, Any] = {
        "pools": tuple(f"pool{i}" for i in range(n)),
        "tick_us": [START_US] * n,
        "observation": np.zeros((n, len(FEATURE_NAMES))),
        "ages_us": np.zeros((n, len(FEATURE_NAMES)), dtype=np.int64),
        "quality": np.ones((n, len(FEATURE_NAMES))),
        "present": present,
        "low": [[8.0, 0.0, 0.0, 2.0]] * n,
        "high": [[48.0, 48.0, 1.0, 8.0]] * n,
        "rule": present,
        "ready_nodes": [[16.0, 8.0]] * n,
        "nodes_min": [8.0] * n,
        "nodes_max": [48.0] * n,
        "gpus_per_node": [8.0] * n,
        "gpus_allocated": [100.0] * n,
        "gpus_queued": [0.0] * n,
        "oldest_wait_us": [0] * n,
        "nodes_arriving": [0.0] * n,
        "gpus_demanded_peak": [100.0] * n,
        "forecast_gpus": [[[100.0] * 3] * 3] * n,
        "forecast_trusted": [False] * n,
        "running_jobs": [12.0] * n,
        "jobs_at_risk": [0.0] * n,
        "node_cost": [[29.0, 12.0]] * n,
        "market_price": [3.6] * n,
        "reference_price": [4.0] * n,
        "interruptions": [0.01] * n,
        "budget": [np.inf] * n,
        "fleet": [0] * n,
        "fleet_budget": [np.inf] * n,
        "utilisation_target": [1.0] * n,
        "capacity_fresh": [True] * n,
        "demand_fresh": [True] * n,
        "telemetry_fresh": [True] * n,
        "market_fresh": [True] * n,
        "price_epoch": [True] * n,
    }
    fields |= columns
    kinds = {"tick_us": np.int64, "oldest_wait_us": np.int64, "fleet": np.int64}
    flags = ("_fresh", "_trusted", "_epoch")
    arrays = {
        name: value
        if name == "pools"
        else np.array(value, kinds.get(name, np.bool_ if name.endswith(flags) else float))
        for name, value in fields.items()
        if name != "delta"
    }
    arrays["ages_us"] = arrays["ages_us"].astype(np.int64)
    arrays["delta"] = (
        np.array(columns["delta"], float)
        if "delta" in columns
        else delta_limits(
            present=arrays["present"],
            low=arrays["low"],
            high=arrays["high"],
            nodes_max=arrays["nodes_max"],
            price_epoch=arrays["price_epoch"],
            config=config or EnvelopeConfig(),
        )
    )
    return PoolBatch(**arrays)


def envelope_state(n: int = 1, **columns: Sequence[Any]) -> EnvelopeState:
    """Return the envelope's memory of n pools in which nothing has happened yet."""
    times = ("last_growth_us", "last_shrink_us", "last_price_us")
    counts = ("started", "stopped", "migrated")
    flags = ("breaker_open", "frozen", "scaling_in_flight", "pricing_in_flight")
    arrays: dict[str, Any] = {
        name: np.array(columns.get(name, [LONG_AGO_US] * n), np.int64) for name in times
    }
    arrays |= {name: np.array(columns.get(name, [0.0] * n), float) for name in counts}
    arrays |= {name: np.array(columns.get(name, [False] * n), np.bool_) for name in flags}
    arrays["tier"] = np.array(columns.get("tier", [SENT] * n), np.int64)
    return EnvelopeState(**arrays)
