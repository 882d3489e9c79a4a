"""The nodes as machines: what load and faults make of their temperature, clocks and speed.

Nothing here is stepped. A node is settled when its load or health changes, and temperatures in
between follow in closed form. Health flows one way: faults slow GPUs, a gang goes at the pace of
its slowest GPU, and its other nodes idle the difference.
"""

from typing import NamedTuple

from gpuloop.schemas.units import SECOND_US
from gpuloop.twin import machines
from gpuloop.twin.demand import Profile
from gpuloop.twin.draws import uniform
from gpuloop.twin.engine import Engine
from gpuloop.twin.machines import GpuModel
from gpuloop.twin.state import Job, Kind, Node, Service

SERVICE_ACTIVITY = 0.5
SERVICE_MEMORY = 0.8
INLET_SPREAD_CELSIUS = 4.0
NVLINK_SHARE = 0.3
PCIE_SHARE = 0.1


class Rows(NamedTuple):
    """What a node's GPUs show at this load, one value per GPU."""

    utilisation: list[float]
    sm_active: list[float]
    tensor_active: list[float]
    memory_used: list[float]
    nvlink: list[float]
    pcie: list[float]
    watts: list[float]
    clock_mhz: list[float]
    throttle: list[int]


class Hardware:
    """Physics of the nodes of a world."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inlets: dict[str, float] = {}
        self.rebind()

    def rebind(self) -> None:
        """Derive from the state what temperatures move to.

        Done at once, not when first asked for: a node is settled after its slots have changed, and
        must then be settled with what it ran before.
        """
        nodes = self._engine.state.nodes.values()
        self._goals = {node.id: self._goals_of(node) for node in nodes}

    def forget(self, node: Node) -> None:
        """Drop what was derived from a machine that is going or coming."""
        self._goals.pop(node.id, None)

    def inlet(self, node: Node) -> float:
        """Return the air temperature at a node's rack."""
        found = self._inlets.get(node.rack)
        if found is None:
            spread = INLET_SPREAD_CELSIUS * uniform(self._engine.config.seed, "inlet", node.rack)
            found = self._inlets[node.rack] = machines.INLET_CELSIUS + spread
        return found

    def occupy(self, node: Node, name: str, count: int) -> None:
        """Let a job or service take some of a node's free GPUs."""
        self._swap(node, "", name, count)
        node.free -= count

    def clear(self, node: Node, name: str, count: int) -> None:
        """Free at most `count` of the GPUs that a job or service holds on a node."""
        self._swap(node, name, "", count)
        node.free = node.slots.count("")

    def _swap(self, node: Node, old: str, new: str, count: int) -> None:
        for index, slot in enumerate(node.slots):
            if count and slot == old:
                node.slots[index] = new
                count -= 1
        self.refresh(node)

    def refresh(self, node: Node) -> None:
        """Settle a node's heat and take its present load and health into account."""
        self.settle(node)
        model = self._engine.models[node.pool]
        watts = [self._watts(node, model, slot) for slot in node.slots]
        node.watts = float(model.node_watts + sum(watts))
        self._goals[node.id] = self._equilibria(node, model, watts)
        if node.cooling > 1.0:
            self._expect_throttling(node, model)

    def settle(self, node: Node) -> None:
        """Bring a node's temperatures up to now."""
        now = self._engine.now_us
        if now > node.heat_us:
            node.celsius = self.temperatures(node)
        node.heat_us = now

    def temperatures(self, node: Node) -> list[float]:
        """Return the temperatures of a node's GPUs now."""
        seconds = (self._engine.now_us - node.heat_us) / SECOND_US
        left = machines.decay(seconds, node.cooling)
        return [
            goal + (start - goal) * left
            for goal, start in zip(self._goals[node.id], node.celsius, strict=True)
        ]

    def speed(self, job: Job) -> float:
        """Return the share of full speed at which a job's nodes let it go."""
        nodes = self._engine.state.nodes
        return min((self._speed_on(nodes[name], job) for name in job.nodes), default=1.0)

    def rows(self, node: Node) -> Rows:
        """Return what a node's GPUs show."""
        engine, model = self._engine, self._engine.models[node.pool]
        rows = Rows([], [], [], [], [], [], [], [], [])
        for slot in node.slots:
            job, service = engine.state.jobs.get(slot), engine.state.services.get(slot)
            self._show(rows, node, model, job, service)
            clock = self._clock(node, model, slot)
            rows.watts.append(self._watts(node, model, slot))
            rows.clock_mhz.append(model.clock_mhz * clock if slot else model.idle_clock_mhz)
            rows.throttle.append(_throttle_bits(slot, clock, self._activity(slot)))
        return rows

    def _show(
        self, rows: Rows, node: Node, model: GpuModel, job: Job | None, service: Service | None
    ) -> None:
        load, health, wide = Profile(0.0, 0.0, 0.0, 0.0, 0.0), 1.0, False
        if job is not None:
            load, health, wide = self._engine.profile(job.id), job.health, job.gpus > 1
        elif service is not None:
            busy = service.utilisation
            load = Profile(busy, busy * 0.7, busy * 0.3, SERVICE_MEMORY, 0.0)
        rows.utilisation.append(load.utilisation * (0.7 + 0.3 * health))
        rows.sm_active.append(load.sm_active * health)
        rows.tensor_active.append(load.tensor_active * health)
        rows.memory_used.append(load.memory_used)
        # What failed links no longer carry goes over PCIe.
        traffic = model.nvlink_bytes_per_second * NVLINK_SHARE * load.comm * health * wide
        rows.nvlink.append(traffic * node.link)
        spare = model.pcie_bytes_per_second * PCIE_SHARE
        rows.pcie.append(spare * load.utilisation * health + min(traffic * (1 - node.link), spare))

    def _goals_of(self, node: Node) -> list[float]:
        model = self._engine.models[node.pool]
        watts = [self._watts(node, model, slot) for slot in node.slots]
        return self._equilibria(node, model, watts)

    def _equilibria(self, node: Node, model: GpuModel, watts: list[float]) -> list[float]:
        inlet = self.inlet(node)
        return [machines.equilibrium(model, inlet, node.cooling, value) for value in watts]

    def _activity(self, slot: str) -> float:
        if not slot:
            return 0.0
        if slot in self._engine.services:
            return SERVICE_ACTIVITY
        return machines.activity(self._engine.profile(slot).utilisation)

    def _clock(self, node: Node, model: GpuModel, slot: str) -> float:
        if not node.throttled or not slot:
            return 1.0
        active = self._activity(slot)
        return machines.throttled_clock(model, self.inlet(node), node.cooling, active)

    def _watts(self, node: Node, model: GpuModel, slot: str) -> float:
        if not slot:
            return model.idle_watts
        job = self._engine.state.jobs.get(slot)
        rate = 1.0 if job is None else job.health
        clock = self._clock(node, model, slot)
        return machines.gpu_watts(model, self._activity(slot), clock, rate)

    def _speed_on(self, node: Node, job: Job) -> float:
        if not node.throttled and node.link == 1.0 and node.ecc_gpu < 0:
            return 1.0
        speed = 1.0
        if node.throttled:
            speed = self._clock(node, self._engine.models[node.pool], job.id)
        if node.link < 1.0 and job.gpus > 1:
            comm = self._engine.profile(job.id).comm
            speed = min(speed, machines.link_speed(comm, node.link))
        if node.ecc_gpu >= 0 and node.slots[node.ecc_gpu] == job.id:
            speed = min(speed, machines.ECC_SPEED)
        return speed

    def _expect_throttling(self, node: Node, model: GpuModel) -> None:
        """Set the timer for the moment the hottest GPU reaches its limit at this load."""
        node.heat_token += 1
        if node.throttled:
            return
        times = [
            machines.seconds_until(model.throttle_celsius, start, goal, node.cooling)
            for start, goal in zip(node.celsius, self._goals[node.id], strict=True)
        ]
        reached = [seconds for seconds in times if seconds is not None]
        if reached:
            at_us = self._engine.now_us + round(min(reached) * SECOND_US)
            self._engine.at(at_us, Kind.THROTTLE, node.id, node.heat_token)


def _throttle_bits(slot: str, clock: float, activity: float) -> int:
    if not slot:
        return machines.IDLE_BIT
    bits = machines.POWER_CAP_BIT if activity > 0.85 and clock == 1.0 else 0
    if clock < 1.0:
        bits |= machines.SW_THERMAL_BIT
    if clock < 0.5:
        bits |= machines.HW_THERMAL_BIT
    return bits
