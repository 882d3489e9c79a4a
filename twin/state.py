"""Everything about a world that must survive a crash; caches are rebuilt from it.

Saved as msgpack on every transaction of the twin, so jobs and nodes are arrays without field
names.
"""

from enum import IntEnum
from typing import Literal

import msgspec

from gpuloop.schemas.component import State
from gpuloop.schemas.messages.telemetry import Billing
from gpuloop.twin.books import Books
from gpuloop.twin.config import JobClass

NodePhase = Literal["pending", "ready", "draining", "leaving", "down"]
RENTED: tuple[NodePhase, ...] = ("ready", "draining", "leaving")
"""Phases in which a node works and is paid for."""


class Kind(IntEnum):
    """What a timer is for; at one instant lower kinds go first."""

    BEGIN = 0
    NODE_READY = 1
    NODE_RECLAIMED = 2
    FAULT = 3
    HEAL = 4
    THROTTLE = 5
    ECC_ERROR = 6
    JOB_FINISH = 7
    JOB_BEAT = 8
    JOB_GIVES_UP = 9
    JOB_GRACE_OVER = 10
    ARRIVAL = 11
    HOUR = 12
    GPU_SAMPLE = 13
    MINUTE = 14


Timer = tuple[int, int, str, int]
"""(time in microseconds, kind, subject, token): a token that is no longer the subject's voids it"""


class Job(msgspec.Struct, array_like=True, kw_only=True):
    """An accepted job until it ends.

    Work is measured in microseconds on healthy GPUs of the pool `home`; `done_us` is true at
    `mark_us`, `saved_us` is what the last checkpoint holds. `health` is the share of full speed,
    `granted` what shared facilities leave of it.
    `gpu_milli` is how many thousandths of each of its GPUs it asks for.
    """

    id: str
    pool: str
    home: str
    tenant: str
    job_class: JobClass
    gpus: int
    submitted_us: int
    work_us: int
    price: int
    running: bool = False
    queued_us: int = 0
    waiting_charged: bool = False
    nodes: list[str] = []
    avoid: list[str] = []
    done_us: int = 0
    mark_us: int = 0
    saved_us: int = 0
    saved_at_us: int = 0
    health: float = 1.0
    finish_token: int = 0
    run_token: int = 0
    attempt: int = 0
    generation: int = 0
    gpu_milli: int = 1000
    granted: float = 1.0


class Node(msgspec.Struct, array_like=True, kw_only=True):
    """A rented or ordered node.

    `slots` holds what runs on each GPU: a job's id, a service's name, or nothing; `shares` who has
    how many thousandths of the GPUs that are shared (`sharing`). `celsius` is
    true at `heat_us`. `cooling` multiplies thermal resistance, `link` is the share of interconnect
    bandwidth left, `ecc_gpu` the GPU whose memory is failing. `due_us` is when a pending or
    down node is ready, or when a leaving one is taken away.
    """

    id: str
    pool: str
    rack: str
    billing: Billing
    phase: NodePhase
    due_us: int
    boot: int
    slots: list[str]
    celsius: list[float]
    ecc_corrected: list[int]
    ecc_uncorrected: list[int]
    free: int = 0
    seq: int = 0
    tenant: str = ""
    heat_us: int = 0
    watts: float = 0.0
    cooling: float = 1.0
    throttled: bool = False
    heat_token: int = 0
    link: float = 1.0
    ecc_gpu: int = -1
    ecc_since_us: int = 0
    shares: dict[int, dict[str, int]] = {}


class Pool(msgspec.Struct, kw_only=True):
    """A pool's desired state, prices, queue (job ids, first to go first) and its tenants.

    `held_back` are jobs that quota or budget does not allow now.
    """

    on_demand_nodes: int
    spot_nodes: int
    quote: int
    reference: int
    usd_micros_per_gpu_hour: dict[str, int]
    scaling_generation: int = 0
    pricing_generation: int = 0
    power_watts: int = 0
    queue: list[str] = []
    records: dict[str, tuple[int, int]] = {}
    """By tenant: quotes accepted, and when the last was."""
    held_back: list[str] = []


class Service(msgspec.Struct, kw_only=True):
    """An inference service: servers held and wanted, and what the last minute left behind."""

    gpus: int = 0
    wanted: int = 0
    backlog: float = 0.0
    utilisation: float = 0.0


class TenantAccount(msgspec.Struct, kw_only=True):
    """What a limited tenant holds and spends.

    `milli` are thousandths of GPUs of its admitted jobs by pool, `hourly` what these cost an hour
    and `rate` those of them that run, in USD micros. `spent` since midnight is true at `since_us`,
    in USD micros times microseconds per hour.
    """

    milli: dict[str, int] = {}
    hourly: int = 0
    rate: int = 0
    spent: int = 0
    since_us: int


class Counters(msgspec.Struct, kw_only=True):
    """What has happened since the start, for reports and tests."""

    arrived: int = 0
    refused: int = 0
    started: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    preempted: int = 0
    migrated: int = 0
    reclaimed: int = 0
    faults: int = 0
    wait_us: int = 0
    denied: int = 0


class WorldState(State):
    """A world at `now_us`: every event up to and at that time has happened."""

    now_us: int
    timers: list[Timer]
    hour: int
    arrived_in_hour: int
    pools: dict[str, Pool]
    nodes: dict[str, Node]
    boots: dict[str, int]
    jobs: dict[str, Job]
    services: dict[str, Service]
    seqs: dict[str, int]
    books: Books
    counters: Counters
    tenants: dict[str, TenantAccount] = {}
