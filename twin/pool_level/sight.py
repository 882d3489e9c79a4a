"""What telemetry would say of the rows now, for compiled code: counts of jobs, nodes and money.

It is what the capacity sample, the jobs' events and the services' samples of the other level come
to once the observe stage has added them up.
"""

from typing import Any, NamedTuple

import numpy as np

from gpuloop.schemas.units import HOUR_US
from gpuloop.twin import machines
from gpuloop.twin.hardware import SERVICE_ACTIVITY
from gpuloop.twin.pool_level.arrays import (
    ARRIVED_GPUS,
    ATTEMPT,
    FREE,
    GPUS,
    KINDS,
    LATE,
    LEAVING,
    NEVER,
    NONE,
    READY,
    RUNNING,
    SPEC,
    STATE,
    Floats,
    Ints,
    Rules,
    Specs,
    State,
)
from gpuloop.twin.pool_level.compiling import compiled, entry
from gpuloop.twin.pool_level.jobs import is_late

NO_ACTIVITY = machines.activity(1e-12)
ACTIVITY_SLOPE = machines.activity(1.0) - NO_ACTIVITY
SERVED = machines.activity(SERVICE_ACTIVITY)
"""What a GPU draws as a share of its span, at no load, per utilisation, and serving."""


class Sight(NamedTuple):
    """What is seen of the rows, (rows,) unless another shape is said."""

    ready: Floats
    """(rows, 2) nodes on demand and spot that work and are paid for."""
    ordered: Floats
    arrivals_us: Ints
    """(rows, columns) when the nodes that are ordered or repaired come; `NEVER` for others."""
    node_cost: Floats
    """(rows, 2) US dollars' millionths per node-hour, 0 where a billing is not sold."""
    gpus_allocated: Floats
    running_jobs: Floats
    busy_gpus: Floats
    """GPUs at work weighted by how busy their jobs keep them."""
    jobs_queued: Floats
    gpus_queued: Floats
    oldest_us: Ints
    """Submission of the job that waits for longest; now where none waits."""
    waited_us: Floats
    """How long all waiting jobs have waited together."""
    arrived_gpus: Floats
    """Of all jobs that accepted their quote, cumulative."""
    gpus_by_kind: Floats
    """(rows, kinds) GPUs at work for each kind of job or waited for by it."""
    late_jobs: Floats
    """Jobs that have waited, or wait, too long for their first start, cumulative."""


def blank(rows: int, columns: int) -> Sight:
    """Return what has not been looked at yet."""
    shapes: dict[str, tuple[int, ...]] = {
        "ready": (rows, 2),
        "node_cost": (rows, 2),
        "gpus_by_kind": (rows, KINDS),
        "arrivals_us": (rows, columns),
    }
    whole = ("arrivals_us", "oldest_us")
    told: dict[str, Any] = {
        name: np.zeros(shapes.get(name, (rows,)), np.int64 if name in whole else np.float64)
        for name in Sight._fields
    }
    return Sight(**told)


@entry
def look(state: State, rules: Rules, specs: Specs, seen: Sight) -> None:
    """Write what is seen of all rows now."""
    for row in range(state.now_us.shape[0]):
        _look_at_nodes(state, rules, row, seen)
        _look_at_jobs(state, rules, specs, row, seen)


@compiled
def _look_at_nodes(state: State, rules: Rules, row: int, seen: Sight) -> None:
    half = state.phase.shape[1] // 2
    hour = state.now_us[row] // HOUR_US - rules.start_us[row] // HOUR_US
    hour = min(hour, rules.price.shape[1] - 1)
    seen.ordered[row] = 0.0
    for billing in range(2):
        seen.ready[row, billing] = 0.0
        price = rules.price[row, hour, billing]
        seen.node_cost[row, billing] = price * rules.gpus_per_node[row]
    for node in range(state.phase.shape[1]):
        phase = state.phase[row, node]
        seen.arrivals_us[row, node] = NEVER
        if READY <= phase <= LEAVING:
            seen.ready[row, 0 if node < half else 1] += 1.0
        elif phase != NONE:
            seen.ordered[row] += 1.0
            seen.arrivals_us[row, node] = state.due_us[row, node]


@compiled
def _look_at_jobs(state: State, rules: Rules, specs: Specs, row: int, seen: Sight) -> None:
    now, running = state.now_us[row], 0
    seen.gpus_by_kind[row] = 0.0
    for slot in range(state.high[row]):
        running += int(state.job[row, slot, STATE] == RUNNING)
        if state.job[row, slot, STATE] != FREE:
            kind = specs.kind[state.job[row, slot, SPEC]]
            seen.gpus_by_kind[row, kind] += state.job[row, slot, GPUS]
    seen.running_jobs[row] = running
    held, served = state.held[row], state.service_gpus[row]
    seen.gpus_allocated[row] = held + served
    span = rules.service_watts[row] / SERVED
    busy = (state.watts[row] / span - NO_ACTIVITY * held) / ACTIVITY_SLOPE
    seen.busy_gpus[row] = max(busy, 0.0) + served * state.utilisation[row]
    seen.arrived_gpus[row] = state.counts[row, ARRIVED_GPUS]
    seen.jobs_queued[row] = state.queued[row]
    seen.oldest_us[row], gpus, waited, late = now, 0, 0, state.counts[row, LATE]
    for place in range(state.queued[row]):
        slot = state.queue[row, place]
        spec = state.job[row, slot, SPEC]
        at = specs.at_us[spec]
        late += int(state.job[row, slot, ATTEMPT] == 0 and is_late(specs, spec, now))
        seen.oldest_us[row] = min(seen.oldest_us[row], at)
        gpus += state.job[row, slot, GPUS]
        waited += now - at
    seen.gpus_queued[row], seen.waited_us[row] = gpus, waited
    seen.late_jobs[row] = late
