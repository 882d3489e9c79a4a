"""The one table of our services: `gpuloop up`, docker-compose and ARCHITECTURE.md follow it.

It says how each process is started and what it may touch. Which topics it reads and writes is not
said twice: that follows from the catalogue. It must not know how processes are run.
"""

from dataclasses import dataclass
from typing import Final, Literal

from gpuloop.schemas.catalogue import CATALOGUE

Extra = Literal["", "observe", "stores", "embedded", "learn", "causes", "collect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A process of ours.

    `extra` is the dependency group it carries, `needs` what must be ready before it starts,
    `roles` the names under which the catalogue lists it, `memory_mib` its limit in a container.
    A service with a `niceness` yields the processor to those that act. `profile` is empty for what
    always runs; `local` marks what only a stack without a server of that kind runs, `gpu` what
    only a machine with GPUs of its own, or a fleet of them to ask, has a use for, `sinks` what runs
    where there is a store to write to. Its loop says something within `loop_seconds` or is stuck;
    None where it may be silent: it trains for long, only serves, or watches itself. One that
    `scales` may have several workers, which share its partitions.
    """

    name: str
    description: str
    extra: Extra = ""
    needs: tuple[str, ...] = ("topics",)
    roles: tuple[str, ...] = ()
    state: str
    on_failure: str
    may_touch_fleet: bool = False
    memory_mib: int
    niceness: int = 0
    loop_seconds: float | None = 300.0
    scales: bool = False
    profile: Literal["", "local", "gpu", "sinks"] = ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return what follows the Python interpreter on its command line."""
        return ("-m", "gpuloop.loop.services", self.name)

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the topics it consumes, in catalogue order."""
        roles = self.roles or (self.name,)
        return tuple(t.name for t in CATALOGUE.values() if set(roles) & set(t.consumers))

    @property
    def writes(self) -> tuple[str, ...]:
        """Return the topics it produces to, in catalogue order."""
        roles = self.roles or (self.name,)
        return tuple(t.name for t in CATALOGUE.values() if set(roles) & set(t.producers))


_TABLE: Final = (
    Service(
        name="twin",
        description="the fleet: digital twin and executor in one transaction",
        roles=("twin", "executor"),
        state="SQLite: world, applied commands, input offsets, outbox",
        on_failure="resumes its world and sends its outbox again under the same ids",
        may_touch_fleet=True,
        memory_mib=384,
    ),
    Service(
        name="framer",
        description="packs node samples into columnar frames, and ticks once a second",
        state="none: committed offsets",
        on_failure="repacks from the last commit; rows know duplicates by (boot, seq)",
        memory_mib=256,
    ),
    Service(
        name="observe",
        description="Faust tables of nodes, jobs and pools",
        extra="observe",
        state="Faust tables with changelog topics",
        on_failure="recovers its tables from the changelogs",
        memory_mib=384,
        loop_seconds=None,
        scales=True,
    ),
    Service(
        name="forecaster",
        description="demand to come, against a seasonal-naive rival; features of pools and classes",
        state="journal and snapshots",
        on_failure="loads its snapshot and follows the journal; decisions go on without forecasts",
        memory_mib=256,
    ),
    Service(
        name="causes",
        description="detectors of anomalies, and root causes: a fast tier and DoWhy behind it",
        extra="causes",
        needs=("topics", "decider"),
        state="journal and snapshots",
        on_failure="loads its snapshot and follows the journal; decisions go on without causes",
        memory_mib=896,
        niceness=5,
    ),
    Service(
        name="decider",
        description="the one process that decides: rule, policy, envelope, arbiter",
        state="journal and snapshots",
        on_failure="the fleet holds; restarted, it claims the next epoch",
        may_touch_fleet=True,
        memory_mib=384,
    ),
    Service(
        name="evaluator",
        description="the money ledger, and the reward of every decision",
        state="journal and snapshots",
        on_failure="loads its snapshot and follows the journal; rewards arrive later",
        memory_mib=256,
    ),
    Service(
        name="auditor",
        description="chains every decision, command, effect and approval by hash",
        state="the audit topic itself; signing key",
        on_failure="continues each chain after its last record",
        memory_mib=256,
    ),
    Service(
        name="learner",
        description="trains SAC and TD3 offsets and publishes policy versions",
        extra="learn",
        needs=("topics", "decider"),
        state="replay buffer rebuilt from topics; signing key",
        on_failure="rebuilds its experience; the policy in force stays",
        memory_mib=1536,
        niceness=10,
        loop_seconds=None,
    ),
    Service(
        name="keeper",
        description="renews the lease without which nothing new starts",
        roles=("supervisor",),
        state="none",
        on_failure="the lease ends within 45 s and nothing new starts",
        memory_mib=128,
    ),
    Service(
        name="collector",
        description="what real GPUs, exporters and Prometheus say, put on the telemetry topics",
        extra="collect",
        state="none: what Kafka has not taken, in memory and bounded",
        on_failure="telemetry ages and the fleet does not shrink; restarted, it goes on with now",
        memory_mib=256,
        profile="gpu",
    ),
    Service(
        name="clickhouse",
        description="owns the embedded ClickHouse engine and answers queries over HTTP",
        extra="embedded",
        needs=(),
        roles=("clickhouse",),
        state="its data folder",
        on_failure="history stops growing; the loop does not notice",
        memory_mib=1024,
        niceness=5,
        loop_seconds=None,
        profile="local",
    ),
    Service(
        name="sink-timescale",
        description="keeps the history of metrics in PostgreSQL or TimescaleDB",
        extra="stores",
        state="rows and positions in the database, in one transaction",
        on_failure="goes on at the positions in the database; the loop does not notice",
        memory_mib=192,
        niceness=5,
        profile="sinks",
    ),
    Service(
        name="sink-clickhouse",
        description="keeps decisions, actions, outcomes and rewards in ClickHouse",
        extra="stores",
        state="rows and the spans of batches in the server",
        on_failure="repeats its last batch, which the server recognises; the loop does not notice",
        memory_mib=192,
        niceness=5,
        profile="sinks",
    ),
)

SERVICES: Final[dict[str, Service]] = {service.name: service for service in _TABLE}
