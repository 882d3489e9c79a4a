"""What a pool rents: orders, cold starts, draining, and what the provider takes back.

Desired counts are kept as a node group keeps them: a node that is lost or reclaimed is replaced.
Node names are slots (`a100-s003`) that are used again, so two policies that both rent a fourth
spot node meet the same luck on it; its `boot` rises with every machine that takes the name.
"""

from typing import Final

from gpuloop.schemas.fleet import Refused
from gpuloop.schemas.messages.actions import ScaleTo
from gpuloop.schemas.messages.telemetry import BILLINGS, Billing
from gpuloop.schemas.units import HOUR_US, SECOND_US
from gpuloop.twin.config import RECLAIM_NOTICE_US
from gpuloop.twin.draws import lognormal, uniform
from gpuloop.twin.engine import Engine
from gpuloop.twin.hardware import Hardware
from gpuloop.twin.inference import Inference
from gpuloop.twin.jobs import Jobs
from gpuloop.twin.sharing import holding
from gpuloop.twin.state import Kind, Node, NodePhase
from gpuloop.twin.telemetry import Telemetry

COLD_START_SECONDS: Final = 180.0
COLD_START_SIGMA: Final = 0.5
COLD_START_RANGE: Final = (60.0, 600.0)
MARKS: Final[dict[Billing, str]] = {"on_demand": "d", "spot": "s"}
_WANTED: Final[tuple[NodePhase, ...]] = ("pending", "ready", "leaving", "down")


class Capacity:
    """The rented nodes of a world."""

    def __init__(
        self, engine: Engine, hardware: Hardware, inference: Inference, jobs: Jobs,
        telemetry: Telemetry,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._hardware = hardware
        self._inference = inference
        self._jobs = jobs
        self._telemetry = telemetry

    def begin(self) -> None:
        """Rent what the configuration starts with, ready at once."""
        for name, config in self._engine.pools.items():
            counts = {"on_demand": config.on_demand_nodes, "spot": config.spot_nodes}
            for billing in BILLINGS:
                for _ in range(counts[billing]):
                    self._boot(self._order(name, billing, self._engine.now_us))

    def scale(self, name: str, to: ScaleTo) -> None:
        """Bring a pool's desired counts to `to`.

        Raises:
            Refused: out of bounds, a billing the pool cannot use, or no spot capacity upstream.

        """
        engine = self._engine
        config, pool = engine.pools[name], engine.pool(name)
        wanted: dict[Billing, int] = {"on_demand": to.on_demand_nodes, "spot": to.spot_nodes}
        for billing, count in wanted.items():
            if count and billing not in config.billings:
                raise Refused("unsupported", f"{name} rents no {billing} nodes")
        total = to.on_demand_nodes + to.spot_nodes
        if not config.nodes_min <= total <= config.nodes_max:
            limits = f"{config.nodes_min} to {config.nodes_max}"
            raise Refused("out_of_bounds", f"{name} may have {limits} nodes, not {total}")
        if self._new_nodes(name, "spot", to.spot_nodes) > 0 and self._shortage(name):
            raise Refused("no_capacity", f"no spot nodes for {name} in this hour")
        pool.on_demand_nodes, pool.spot_nodes = to.on_demand_nodes, to.spot_nodes
        for billing in config.billings:
            self._adjust(name, billing)
        pool.scaling_generation += 1
        engine.changed.add(name)
        self._jobs.schedule(name)

    def node_ready(self, node_id: str, token: int) -> None:
        """Let an ordered or repaired node join its pool."""
        node = self._engine.state.nodes.get(node_id)
        if node is None or node.boot != token or node.phase not in ("pending", "down"):
            return
        recovered = node.phase == "down"
        if recovered:
            self._telemetry.fault(node, "recovered", detail="rebooted")
        self._boot(node)
        self._jobs.schedule(node.pool)

    def notice(self, node: Node) -> None:
        """Let the provider announce that it takes a spot node back."""
        if node.billing != "spot" or node.phase not in ("ready", "draining"):
            return
        engine = self._engine
        node.phase, node.due_us = "leaving", engine.now_us + RECLAIM_NOTICE_US
        engine.at(node.due_us, Kind.NODE_RECLAIMED, node.id, node.boot)
        engine.changed.add(node.pool)
        self._telemetry.fault(
            node, "reclaim_notice", deadline_us=node.due_us, detail="spot node is reclaimed"
        )

    def reclaimed(self, node_id: str, token: int) -> None:
        """Take a spot node away and order another in its place."""
        node = self._engine.state.nodes.get(node_id)
        if node is None or node.boot != token or node.phase != "leaving":
            return
        self._engine.state.counters.reclaimed += 1
        self.evict(node, "spot node reclaimed")
        self._remove(node)
        self._adjust(node.pool, node.billing)
        self._jobs.schedule(node.pool)

    def lose(self, node: Node, repair_us: int) -> None:
        """Let a node vanish and come back after a repair."""
        engine = self._engine
        self.evict(node, "node lost")
        if node.phase in ("draining", "leaving"):
            self._remove(node)
            self._adjust(node.pool, node.billing)
            return
        self._reset(node)
        node.phase, node.due_us = "down", engine.now_us + repair_us
        node.boot = self._next_boot(node.id)
        engine.at(node.due_us, Kind.NODE_READY, node.id, node.boot)
        engine.changed.add(node.pool)

    def evict(self, node: Node, reason: str) -> None:
        """Interrupt everything on a node."""
        self._inference.evict(node)
        for name in holding(node):
            self._jobs.interrupt(self._engine.state.jobs[name], reason, avoid=(node.id,))

    def let_go(self, pool: str) -> None:
        """Remove drained nodes that nothing runs on any more."""
        for node in list(self._engine.nodes_of[pool]):
            if node.phase == "draining" and node.free == len(node.slots):
                self._remove(node)

    def reprice(self) -> None:
        """Take the market's prices of now."""
        engine = self._engine
        for name, config in engine.pools.items():
            for billing in config.billings:
                price = engine.market.price(config.gpu_model, billing, engine.now_us)
                if engine.pool(name).usd_micros_per_gpu_hour.get(billing) != price:
                    engine.pool(name).usd_micros_per_gpu_hour[billing] = price
                    engine.changed.add(name)

    def _adjust(self, name: str, billing: Billing) -> None:
        """Order or give up nodes until a pool has what it wants under one billing."""
        pool = self._engine.pool(name)
        wanted = pool.on_demand_nodes if billing == "on_demand" else pool.spot_nodes
        mine = [node for node in self._engine.nodes_of[name] if node.billing == billing]
        surplus = sum(node.phase in _WANTED for node in mine) - wanted
        if surplus > 0:
            self._give_up(mine, surplus)
            return
        draining = [node for node in mine if node.phase == "draining"]
        draining.sort(key=lambda node: (node.free, node.id))
        for node in draining[:-surplus]:
            node.phase = "ready"
        missing = -surplus - len(draining)
        for _ in range(max(missing, 0)):
            self._order(name, billing, self._available_from(name, billing))

    def _give_up(self, mine: list[Node], surplus: int) -> None:
        """Cancel orders first, then idle nodes; busy ones drain, the emptiest first."""
        order = {"pending": 0, "down": 1, "ready": 2}
        services = self._engine.services
        candidates = [node for node in mine if node.phase in order]
        busy = {n.id: sum(s != "" and s not in services for s in n.slots) for n in candidates}
        candidates.sort(key=lambda node: node.id, reverse=True)
        candidates.sort(key=lambda node: (order[node.phase], busy[node.id]))
        for node in candidates[:surplus]:
            if node.phase != "ready":
                self._remove(node)
                continue
            node.phase = "draining"
            self._inference.evict(node)
        self.let_go(mine[0].pool)

    def _order(self, pool: str, billing: Billing, from_us: int) -> Node:
        engine, config = self._engine, self._engine.pools[pool]
        index = 0
        while (name := f"{pool}-{MARKS[billing]}{index:03d}") in engine.state.nodes:
            index += 1
        boot = self._next_boot(name)
        node = Node(
            id=name,
            pool=pool,
            rack=f"{pool}-{MARKS[billing]}-rack{index // config.nodes_per_rack}",
            billing=billing,
            phase="pending",
            due_us=from_us + cold_start_us(engine.config.seed, name, boot),
            boot=boot,
            slots=[""] * config.gpus_per_node,
            free=config.gpus_per_node,
            celsius=[],
            ecc_corrected=[0] * config.gpus_per_node,
            ecc_uncorrected=[0] * config.gpus_per_node,
        )
        engine.add_node(node)
        engine.at(node.due_us, Kind.NODE_READY, node.id, node.boot)
        return node

    def _boot(self, node: Node) -> None:
        engine = self._engine
        self._hardware.forget(node)
        node.phase, node.due_us, node.heat_us, node.seq = "ready", 0, engine.now_us, 0
        node.celsius = [self._hardware.inlet(node)] * len(node.slots)
        self._hardware.refresh(node)
        engine.at(engine.now_us, Kind.HOUR, node.id, node.boot)
        engine.changed.add(node.pool)

    def _reset(self, node: Node) -> None:
        """Clear what a reboot clears."""
        node.cooling, node.link, node.throttled, node.ecc_gpu = 1.0, 1.0, False, -1
        node.ecc_corrected = [0] * len(node.slots)
        node.ecc_uncorrected = [0] * len(node.slots)
        node.tenant = ""

    def _remove(self, node: Node) -> None:
        self._hardware.forget(node)
        self._engine.remove_node(node)

    def _next_boot(self, node: str) -> int:
        boots = self._engine.state.boots
        boots[node] = boots.get(node, 0) + 1
        return boots[node]

    def _new_nodes(self, pool: str, billing: Billing, wanted: int) -> int:
        return wanted - sum(node.billing == billing for node in self._engine.nodes_of[pool])

    def _shortage(self, pool: str, hour: int | None = None) -> bool:
        engine = self._engine
        at = engine.now_us // HOUR_US if hour is None else hour
        drawn = uniform(engine.config.seed, "shortage", pool, at)
        return drawn > engine.pools[pool].spot_availability

    def _available_from(self, pool: str, billing: Billing) -> int:
        """Return when the provider starts a replacement: after an hour without spot capacity."""
        now = self._engine.now_us
        hour = now // HOUR_US
        if billing == "on_demand" or not self._shortage(pool, hour):
            return now
        while self._shortage(pool, hour) and hour < now // HOUR_US + 24:
            hour += 1
        return hour * HOUR_US


def cold_start_us(seed: int, node: str, boot: int) -> int:
    """Return how long a node takes from its order until it is ready."""
    seconds = lognormal(COLD_START_SECONDS, COLD_START_SIGMA, seed, "cold", node, boot)
    low, high = COLD_START_RANGE
    return round(min(max(seconds, low), high) * SECOND_US)
