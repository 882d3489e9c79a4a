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
from gpuloop.twin.fit import WHOLE_GPU
from gpuloop.twin.machines import GpuModel
from gpuloop.twin.sharing import SHARED, holders, take_part
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

    def share(self, node: Node, device: int, name: str, milli: int) -> None:
        """Let a job take a part of one of a node's GPUs."""
        take_part(node, device, name, milli)
        self.refresh(node)

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
        watts = self._all_watts(node, model)
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
        for device, slot in enumerate(node.slots):
            if slot == SHARED:
                self._show_shared(rows, node, device)
            else:
                job, service = engine.state.jobs.get(slot), engine.state.services.get(slot)
                self._show(rows, node, model, job, service)
            active = self._activity(node, device)
            clock = self._clock(node, model, active)
            rows.watts.append(self._watts(node, model, device))
            rows.clock_mhz.append(model.clock_mhz * clock if slot else model.idle_clock_mhz)
            rows.throttle.append(_throttle_bits(slot, clock, active))
        return rows

    @staticmethod
    def _serving(service: Service) -> Profile:
        busy = service.utilisation
        return Profile(busy, busy * 0.7, busy * 0.3, SERVICE_MEMORY, 0.0)

    def _show_shared(self, rows: Rows, node: Node, device: int) -> None:
        """Show a shared GPU: each job adds its part of what it would show on all of it."""
        jobs, model = self._engine.state.jobs, self._engine.models[node.pool]
        seen = [0.0] * 5
        for name, milli in node.shares[device].items():
            part = milli / WHOLE_GPU
            if name in self._engine.services:
                load, health = self._serving(self._engine.state.services[name]), 1.0
            else:
                load, health = self._engine.profile(name), jobs[name].health
            shown = (
                load.utilisation * (0.7 + 0.3 * health),
                load.sm_active * health,
                load.tensor_active * health,
                load.memory_used,
                load.utilisation * health,
            )
            seen = [sum_ + part * value for sum_, value in zip(seen, shown, strict=True)]
        rows.utilisation.append(seen[0])
        rows.sm_active.append(seen[1])
        rows.tensor_active.append(seen[2])
        rows.memory_used.append(seen[3])
        rows.nvlink.append(0.0)
        rows.pcie.append(model.pcie_bytes_per_second * PCIE_SHARE * seen[4])

    def _show(
        self, rows: Rows, node: Node, model: GpuModel, job: Job | None, service: Service | None
    ) -> None:
        load, health, wide = Profile(0.0, 0.0, 0.0, 0.0, 0.0), 1.0, False
        if job is not None:
            load, health, wide = self._engine.profile(job.id), job.health, job.gpus > 1
        elif service is not None:
            load = self._serving(service)
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
        return self._equilibria(node, model, self._all_watts(node, model))

    def _equilibria(self, node: Node, model: GpuModel, watts: list[float]) -> list[float]:
        inlet = self.inlet(node)
        return [machines.equilibrium(model, inlet, node.cooling, value) for value in watts]

    def _activity(self, node: Node, device: int) -> float:
        slot = node.slots[device]
        if not slot:
            return 0.0
        if slot in self._engine.services:
            return SERVICE_ACTIVITY
        if slot == SHARED:
            return self._shared_activity(node.shares[device])
        return machines.activity(self._engine.profile(slot).utilisation)

    def _shared_activity(self, parts: dict[str, int]) -> float:
        """Return the activity of a shared device: that of its jobs together, and its servers'."""
        busy = serving = 0.0
        for name, milli in parts.items():
            if name in self._engine.services:
                serving += SERVICE_ACTIVITY * milli / WHOLE_GPU
            else:
                busy += self._engine.profile(name).utilisation * milli / WHOLE_GPU
        return min(machines.activity(busy) + serving, 1.0)

    def _clock(self, node: Node, model: GpuModel, active: float) -> float:
        if not node.throttled or not active:
            return 1.0
        return machines.throttled_clock(model, self.inlet(node), node.cooling, active)

    def _all_watts(self, node: Node, model: GpuModel) -> list[float]:
        return [self._watts(node, model, device) for device in range(len(node.slots))]

    def _watts(self, node: Node, model: GpuModel, device: int) -> float:
        slot = node.slots[device]
        if not slot:
            return model.idle_watts
        active = self._activity(node, device)
        clock = self._clock(node, model, active)
        return machines.gpu_watts(model, active, clock, self._useful(node, device))

    def _useful(self, node: Node, device: int) -> float:
        """Return the share of full speed at which the jobs of a device go, by their parts of it."""
        jobs, slot = self._engine.state.jobs, node.slots[device]
        if slot != SHARED:
            return jobs[slot].health if slot in jobs else 1.0
        parts = node.shares[device]
        useful = (
            milli * (jobs[name].health if name in jobs else 1.0) for name, milli in parts.items()
        )
        return sum(useful) / sum(parts.values())

    def _speed_on(self, node: Node, job: Job) -> float:
        if not node.throttled and node.link == 1.0 and node.ecc_gpu < 0:
            return 1.0
        speed = 1.0
        if node.throttled:
            model = self._engine.models[node.pool]
            speed = self._clock(node, model, self._activity(node, self._device_of(node, job)))
        if node.link < 1.0 and job.gpus > 1:
            comm = self._engine.profile(job.id).comm
            speed = min(speed, machines.link_speed(comm, node.link))
        if node.ecc_gpu >= 0 and job.id in holders(node, node.ecc_gpu):
            speed = min(speed, machines.ECC_SPEED)
        return speed

    def _device_of(self, node: Node, job: Job) -> int:
        """Return one of the devices that a job holds; those it holds whole are alike."""
        shared = (device for device, parts in node.shares.items() if job.id in parts)
        return next(shared, -1) if job.gpu_milli < WHOLE_GPU else node.slots.index(job.id)

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
