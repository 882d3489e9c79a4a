"""The clock of a world: its timers, its output buffer and what its parts share.

Parts (hardware, jobs, capacity, faults) hold an `Engine` and change its state; none of them knows
when it is called. Caches here are functions of the state and are rebuilt by `bind`.
"""

import heapq
from bisect import insort
from collections.abc import Mapping
from typing import Final

from gpuloop.schemas.component import Output
from gpuloop.schemas.identity import source_event_id
from gpuloop.schemas.messages.base import Message
from gpuloop.twin.config import PoolConfig, TwinConfig
from gpuloop.twin.demand import Profile, profile
from gpuloop.twin.machines import GPU_MODELS, GpuModel
from gpuloop.twin.market import Market
from gpuloop.twin.state import RENTED, Job, Kind, Node, Pool, WorldState
from gpuloop.twin.workload import Workload

WORLD_BOOT: Final = 1
"""A twin resumes its state with its events, so its own boot never changes."""


FEW_TIMERS: Final = 1_000
VOID_SHARE: Final = 8
"""How many timers per job and node may stand before void ones are looked for."""


class Engine:
    """State, time and output of one world."""

    def __init__(
        self, config: TwinConfig, workload: Workload, market: Market, state: WorldState
    ) -> None:
        self.config = config
        self.workload = workload
        self.market = market
        self.pools: dict[str, PoolConfig] = {pool.name: pool for pool in config.pools}
        self.models: dict[str, GpuModel] = {
            pool.name: GPU_MODELS[pool.gpu_model] for pool in config.pools
        }
        self.services = {service.name: service for service in config.services}
        self.outputs: list[Output] = []
        self.changed: set[str] = set()
        self.emptied: set[str] = set()
        self.crowded = False
        self.bind(state)

    def bind(self, state: WorldState) -> None:
        """Continue from a state."""
        self.state = state
        self.nodes_of: dict[str, list[Node]] = {name: [] for name in self.pools}
        for node in state.nodes.values():
            insort(self.nodes_of[node.pool], node, key=_node_id)
        self._profiles: dict[str, Profile] = {}

    @property
    def now_us(self) -> int:
        """Return the fleet time reached."""
        return self.state.now_us

    def at(self, time_us: int, kind: Kind, subject: str = "", token: int = 0) -> None:
        """Set a timer."""
        heapq.heappush(self.state.timers, (time_us, kind, subject, token))

    def forget_timers(self, kind: Kind, tokens: Mapping[str, int]) -> None:
        """Drop timers of a kind that their subjects' tokens have voided, once they are many."""
        timers = self.state.timers
        if len(timers) > FEW_TIMERS + VOID_SHARE * (len(tokens) + len(self.state.nodes)):
            timers[:] = [t for t in timers if t[1] != kind or tokens.get(t[2]) == t[3]]
            heapq.heapify(timers)

    def next_seq(self, source: str) -> int:
        """Return the next sequence number of a source of events."""
        seq = self.state.seqs.get(source, 0) + 1
        self.state.seqs[source] = seq
        return seq

    def emit(
        self, topic: str, key: str, message: Message, source: str, seq: int, boot: int = WORLD_BOOT
    ) -> None:
        """Buffer a message that happens now."""
        self.outputs.append(
            Output(
                topic=topic,
                key=key,
                message=message,
                event_id=source_event_id(self.config.fleet, source, boot, seq),
                time_us=self.state.now_us,
            )
        )

    def pool(self, name: str) -> Pool:
        """Return a pool's state."""
        return self.state.pools[name]

    def add_node(self, node: Node) -> None:
        """Take a node into the fleet."""
        self.state.nodes[node.id] = node
        insort(self.nodes_of[node.pool], node, key=_node_id)
        self.changed.add(node.pool)

    def remove_node(self, node: Node) -> None:
        """Let a node leave the fleet."""
        del self.state.nodes[node.id]
        self.nodes_of[node.pool].remove(node)
        self.changed.add(node.pool)

    def rented(self, pool: str) -> list[Node]:
        """Return the nodes of a pool that work and are paid for, by name."""
        return [node for node in self.nodes_of[pool] if node.phase in RENTED]

    def profile(self, job: str) -> Profile:
        """Return the load of a job."""
        found = self._profiles.get(job)
        if found is None:
            found = self._profiles[job] = profile(self.config.seed, job)
        return found

    def forget(self, job: Job) -> None:
        """Drop a job that ended."""
        del self.state.jobs[job.id]
        self._profiles.pop(job.id, None)


def _node_id(node: Node) -> str:
    return node.id
