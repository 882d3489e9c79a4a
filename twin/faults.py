"""What breaks: overheating, degraded links, failing memory, lost and reclaimed nodes.

Each class has a mechanism, so its symptoms follow from physics and scheduling and not from a
script: a failed cooler heats GPUs until the driver lowers their clocks; a degraded link slows jobs
that span GPUs; failing memory makes a job retry and at last kills it. Whether a node fails in an
hour is drawn per node and hour.
"""

from typing import Final

from gpuloop.schemas.units import HOUR_US, MINUTE_US
from gpuloop.twin.capacity import Capacity
from gpuloop.twin.config import FaultClass
from gpuloop.twin.draws import hash64, lognormal, uniform
from gpuloop.twin.engine import Engine
from gpuloop.twin.hardware import Hardware
from gpuloop.twin.jobs import Jobs
from gpuloop.twin.pacing import Pacing
from gpuloop.twin.sharing import holders
from gpuloop.twin.state import RENTED, Kind, Node
from gpuloop.twin.telemetry import Telemetry, corrected_errors

CLASSES: Final[tuple[FaultClass, ...]] = ("thermal", "link", "ecc", "lost", "reclaim")
HEALED_AFTER_MINUTES: Final[dict[str, float]] = {"thermal": 40, "link": 30, "ecc": 35, "lost": 15}
HEALED_SIGMA: Final = 0.35
BACKGROUND_CORRECTED_PER_HOUR: Final = 0.02
UNCONTAINED_SHARE: Final = 0.12
XID_DOUBLE_BIT: Final = 48
XID_NVLINK: Final = 74
XID_OFF_THE_BUS: Final = 79
XID_CONTAINED: Final = 94
XID_UNCONTAINED: Final = 95
RESET: Final = 1
REBOOT: Final = 2
DRAIN_PEERS: Final = 3
DRAIN_AND_RESET: Final = 4


class Faults:
    """Faults of the nodes of a world."""

    def __init__(
        self, engine: Engine, hardware: Hardware, pacing: Pacing, jobs: Jobs, capacity: Capacity,
        telemetry: Telemetry,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._hardware = hardware
        self._pacing = pacing
        self._jobs = jobs
        self._capacity = capacity
        self._telemetry = telemetry

    def draw_hour(self, node: Node) -> None:
        """Set timers for what befalls a node in the rest of this hour."""
        engine, config = self._engine, self._engine.config
        hour = engine.now_us // HOUR_US
        reclaims = engine.pools[node.pool].spot_reclaims_per_node_hour
        factor = config.fault_rate_factor
        rates: dict[FaultClass, float] = {
            "thermal": config.fault_rates.thermal * factor,
            "link": config.fault_rates.link * factor,
            "ecc": config.fault_rates.ecc * factor,
            "lost": config.fault_rates.lost * factor,
            "reclaim": reclaims if node.billing == "spot" else 0.0,
        }
        for fault, rate in rates.items():
            # One draw is both whether and when: given that it happens, it is uniform in time.
            drawn = uniform(config.seed, fault, node.id, hour)
            at_us = hour * HOUR_US + int(drawn / rate * HOUR_US) if drawn < rate else -1
            if at_us >= engine.now_us:
                engine.at(at_us, Kind.FAULT, f"{fault}|{node.id}", node.boot)
        for gpu in range(len(node.slots)):
            drawn = uniform(config.seed, "corrected", node.id, hour, gpu)
            node.ecc_corrected[gpu] += drawn < BACKGROUND_CORRECTED_PER_HOUR

    def strike(self, subject: str, token: int) -> None:
        """Begin a fault; `subject` is `class|node` or, for links, `class|rack`.

        A node that is gone, not working or already suffering from it is passed over.
        """
        fault, _, where = subject.partition("|")
        for pool in self._engine.pools:
            for node in self._engine.rented(pool):
                if where in (node.id, node.rack) and token in (0, node.boot):
                    self._begin(fault, node)

    def heal(self, subject: str, token: int) -> None:
        """End a fault, unless the node went away in between."""
        fault, _, name = subject.partition("|")
        node = self._engine.state.nodes.get(name)
        if node is None or node.boot != token or node.phase not in RENTED:
            return
        announced = True
        self._hardware.settle(node)
        if fault == "thermal":
            announced, node.cooling, node.throttled = node.throttled, 1.0, False
        elif fault == "link":
            node.link = 1.0
        else:
            node.ecc_corrected = corrected_errors(node, self._engine.now_us)
            node.ecc_gpu = -1
        if announced:
            self._telemetry.fault(node, "recovered", detail=f"{fault} fault is over")
        self._pacing.health_changed(node)

    def throttle(self, name: str, token: int) -> None:
        """Let the driver lower a node's clocks: its hottest GPU has reached the limit."""
        node = self._engine.state.nodes.get(name)
        if node is None or node.heat_token != token or node.throttled or node.cooling == 1.0:
            return
        self._hardware.settle(node)
        node.throttled = True
        gpu = node.celsius.index(max(node.celsius))
        self._telemetry.fault(node, "thermal", gpu_index=gpu, detail="clocks are being lowered")
        self._pacing.health_changed(node)

    def ecc_error(self, name: str, token: int) -> None:
        """Count an uncorrectable error of failing memory; some take the job down."""
        node = self._engine.state.nodes.get(name)
        if node is None or node.boot != token or node.ecc_gpu < 0:
            return
        gpu = node.ecc_gpu
        node.ecc_uncorrected[gpu] += 1
        count = node.ecc_uncorrected[gpu]
        key = (self._engine.config.seed, "uncontained", node.id, node.boot, count)
        fatal = uniform(*key) < UNCONTAINED_SHARE
        xid = XID_UNCONTAINED if fatal else XID_CONTAINED
        self._telemetry.fault(node, "xid", gpu_index=gpu, xid=xid, recovery_action=RESET)
        jobs = self._engine.state.jobs
        hit = [jobs[name] for name in holders(node, gpu) if name in jobs] if fatal else []
        for job in hit:
            self._jobs.interrupt(job, "uncontained memory error", avoid=(node.id,))
        if hit:
            self._jobs.schedule(node.pool)
        self._next_ecc_error(node)

    def _begin(self, fault: str, node: Node) -> None:
        engine, now = self._engine, self._engine.now_us
        key = (engine.config.seed, fault, node.id, node.boot, now)
        match fault:
            case "thermal" if node.cooling == 1.0:
                self._hardware.settle(node)
                node.cooling = 3.5 + 1.5 * uniform(*key)
                self._pacing.health_changed(node)
            case "link" if node.link == 1.0 and engine.models[node.pool].nvlink_bytes_per_second:
                node.link = 0.15 + 0.15 * uniform(*key)
                self._telemetry.fault(
                    node, "xid", xid=XID_NVLINK, recovery_action=DRAIN_PEERS, detail="NVLink error"
                )
                self._pacing.health_changed(node)
            case "ecc" if node.ecc_gpu < 0:
                node.ecc_gpu, node.ecc_since_us = self._gpu_at_fault(node), now
                node.ecc_uncorrected[node.ecc_gpu] += 1
                self._telemetry.fault(
                    node, "ecc", gpu_index=node.ecc_gpu, xid=XID_DOUBLE_BIT,
                    recovery_action=DRAIN_AND_RESET, detail="double-bit error",
                )  # fmt: skip
                self._next_ecc_error(node)
                self._pacing.health_changed(node)
            case "lost":
                engine.state.counters.faults += 1
                self._telemetry.fault(
                    node, "lost", xid=XID_OFF_THE_BUS, recovery_action=REBOOT,
                    detail="GPU has fallen off the bus",
                )  # fmt: skip
                self._capacity.lose(node, self._duration_us(fault, node))
                self._jobs.schedule(node.pool)
                return
            case "reclaim":
                self._capacity.notice(node)
                return
            case _:
                return
        engine.state.counters.faults += 1
        until = now + self._duration_us(fault, node)
        engine.at(until, Kind.HEAL, f"{fault}|{node.id}", node.boot)

    def _gpu_at_fault(self, node: Node) -> int:
        """Return the GPU whose memory fails: one at work, where memory is used, if there is one."""
        busy = [index for index, slot in enumerate(node.slots) if slot]
        among = busy or list(range(len(node.slots)))
        key = (self._engine.config.seed, "gpu-at-fault", node.id, self._engine.now_us)
        return among[hash64(*key) % len(among)]

    def _next_ecc_error(self, node: Node) -> None:
        count = sum(node.ecc_uncorrected)
        drawn = uniform(self._engine.config.seed, "ecc-gap", node.id, node.boot, count)
        at_us = self._engine.now_us + round((1 + 3 * drawn) * MINUTE_US)
        self._engine.at(at_us, Kind.ECC_ERROR, node.id, node.boot)

    def _duration_us(self, fault: str, node: Node) -> int:
        key = (self._engine.config.seed, "healed", fault, node.id, self._engine.now_us)
        return round(lognormal(HEALED_AFTER_MINUTES[fault], HEALED_SIGMA, *key) * MINUTE_US)
