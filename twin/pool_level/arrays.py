"""What the worlds are made of: arrays with one row per pool of each world.

Rows are independent of each other. Times are microseconds, money US dollars' millionths; a node's
column is its slot, on-demand slots before spot slots, so that columns are in the order of names.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

NEVER: Final = 1 << 62

NONE, PENDING, READY, DRAINING, LEAVING, DOWN = range(6)
"""Phases of a node; in the middle three it works and is paid for."""

FREE, QUEUED, RUNNING = range(3)
"""States of a job's slot."""

WAITING, STARTED, FINISHED, FAILED, CANCELLED, REFUSED = range(6)
"""What became of a job."""

REVENUE, CAPACITY, ENERGY, WAIT, SERVICE, DISRUPTION = range(6)
"""Columns of the books, in the order of `COMPONENTS`; costs are positive here."""

INTERACTIVE, BATCH, TRAINING = range(3)
KINDS: Final = 3

LOSS, MEMORY, RECLAIM = range(3)
"""What is drawn for a node each hour."""

SPARE_NODES: Final = 24
"""Node slots per billing beyond a pool's ceiling, for nodes that drain while others come."""


class Specs(NamedTuple):
    """Jobs, those of a row side by side: first those that run when it begins, then arrivals.

    `reservation` is the highest quote its tenant accepts, `start_normal` the standard normal draw
    behind its starts, `watts` what one of its GPUs draws beyond idle. The last three say what
    became of it; `started_us` is its first start.
    """

    at_us: Ints
    gpus: Ints
    work_us: Ints
    kind: Ints
    tenant: Ints
    reservation: Floats
    patience_us: Ints
    start_normal: Floats
    fails: Flags
    watts: Floats
    started_us: Ints
    ended_us: Ints
    fate: Ints


class Rules(NamedTuple):
    """What does not change while a row lives; prices and shortages are by hour since its start."""

    seed: NDArray[np.uint64]
    start_us: Ints
    first: Ints
    arrivals: Ints
    last: Ints
    gpus_per_node: Ints
    nodes_per_rack: Ints
    billings: Flags
    initial: Ints
    nodes_min: Ints
    nodes_max: Ints
    price: Ints
    shortage: Flags
    reference: Floats
    price_floor: Floats
    price_ceiling: Floats
    reclaims: Floats
    lost: Floats
    ecc: Floats
    cold_start_us: Ints
    """How long a node's column takes to come with its n-th machine, (rows, columns, boots)."""
    luck: Floats
    """Uniform draws by column, hour and `LOSS`, `MEMORY` or `RECLAIM`; no hours: drawn anew."""
    checkpoint_us: Ints
    idle_watts: Floats
    node_watts: Floats
    energy_price: Floats
    service: Ints
    service_seconds: Floats
    service_target: Floats
    service_prefill_us: Ints
    service_p95_us: Ints
    service_timeout: Floats
    service_price: Floats
    service_watts: Floats
    service_rate: Floats
    """Requests per second by minute since the start; no columns where no pool serves."""


class State(NamedTuple):
    """Everything that changes. `rates` flow into `books` per hour; `counts` are cumulative."""

    now_us: Ints
    next_spec: Ints
    minute_us: Ints
    hour_us: Ints
    desired: Ints
    quote: Floats
    loyalty: Floats
    """(rows,) how much less, as a ratio, tenants with a record of use are told."""
    answers: Floats
    """(rows, kinds, `ANSWERS`) what tenants said to their quotes, cumulative."""
    record_jobs: Ints
    """(rows, tenants) quotes accepted, and in `record_us` when the last was."""
    record_us: Ints
    generation: Ints
    phase: Ints
    free: Ints
    due_us: Ints
    boot: Ints
    tenant: Ints
    lost_us: Ints
    reclaim_us: Ints
    kill_us: Ints
    serving: Ints
    node_next_us: Ints
    job: Ints
    job_next_us: Ints
    high: Ints
    held: Ints
    queue: Ints
    queued: Ints
    service_gpus: Ints
    service_wanted: Ints
    backlog: Floats
    utilisation: Floats
    first_token_us: Ints
    violated: Ints
    rates: Floats
    books: Floats
    counts: Ints
    watts: Floats


(
    ARRIVED,
    TURNED_AWAY,
    ARRIVED_GPUS,
    STARTS,
    WAIT_US,
    ENDED,
    GAVE_UP,
    PREEMPTED,
    RECLAIMED,
    LOST,
    VIOLATED,
    LATE,
) = range(12)
COUNTS: Final = 12
"""Columns of `counts`."""

ACCEPTS, REFUSALS, ACCEPTED_SUM, REFUSED_SUM = range(4)
ANSWERS: Final = 4
"""Columns of `answers`: jobs, and the sums of their quotes."""

(
    STATE,
    SPEC,
    GPUS,
    PRICE,
    QUEUED_US,
    MARK_US,
    BEGUN_US,
    DONE_US,
    ATTEMPT,
    AVOID,
    CHARGED,
    NEXT_US,
    NODES,
    FIELD,
) = range(14)
"""Columns of a job's slot; from `FIELD` on there are pairs of node and GPUs on it."""


def row_type(name: str) -> Any:
    """Return the element type of a state's array."""
    floats = {"quote", "loyalty", "answers", "backlog", "utilisation", "rates", "books", "watts"}
    return np.float64 if name in floats else np.int64
