"""How a busy node behaves, in numbers that do not depend on how busy it is.

Activity, power and heat rise and fall with load, so they are told against each other: SM activity
per utilisation, tensor activity per SM activity, and what power and temperature are beyond a law of
their pool, power by utilisation and temperature by power. The laws are least squares with a memory
of a day, too slow to follow what a node or a cooler does within hours.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuloop.reasoning.series import MOST
from gpuloop.schemas.component import State
from gpuloop.schemas.messages import NodeState

Floats = NDArray[np.float64]

SENSED: Final = (
    "utilisation",
    "sm_active",
    "tensor_active",
    "power_watts",
    "temperature_celsius",
)
METRICS: Final = ("sm_per_utilisation", "tensor_per_sm", "power_excess", "heat_excess")
BUSY: Final = 0.15
STEADY_MINUTES: Final = 4
STEADY_SHARE: Final = 0.12
"""Power that moved by more than this share of itself: heat is still on its way."""
MEMORY: Final = 1.0 - 1.0 / (24 * 60)
"""What a minute's evidence is worth a minute later."""
MAX_NAME_LENGTH: Final = 200
"""What a message can name."""
MIN_EVIDENCE: Final = 120.0
"""Node-minutes from which a law is believed."""


class Law(State):
    """A straight line y(x), fitted online by sums that fade; `n` is the evidence that is left."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def learn(self, x: Floats, y: Floats) -> None:
        """Take in a minute's points."""
        self.n = self.n * MEMORY + len(x)
        self.x = self.x * MEMORY + float(x.sum())
        self.y = self.y * MEMORY + float(y.sum())
        self.xx = self.xx * MEMORY + float(x @ x)
        self.xy = self.xy * MEMORY + float(x @ y)

    @property
    def known(self) -> bool:
        """Return whether there is enough evidence, over loads that differ."""
        return self.n >= MIN_EVIDENCE and self._spread() > 1e-9 * max(self.xx, 1.0)

    def gain(self) -> float:
        """Return the slope."""
        return (self.n * self.xy - self.x * self.y) / self._spread()

    def expect(self, x: Floats) -> Floats:
        """Return y at x."""
        gain = self.gain()
        expected: Floats = (self.y - gain * self.x) / self.n + gain * x
        return expected

    def _spread(self) -> float:
        return self.n * self.xx - self.x * self.x


class Laws(State):
    """What a pool's nodes draw at a utilisation, and how warm they are at a power."""

    power: Law
    heat: Law

    @classmethod
    def unknown(cls) -> "Laws":
        """Return laws of which nothing is known."""
        return cls(power=Law(), heat=Law())

    @property
    def known(self) -> bool:
        """Return whether both are."""
        return self.power.known and self.heat.known


class NodeMemory(State):
    """The newest minute of a node: what its sensors said, and its power over the last minutes."""

    pool: str
    minute: int
    sensed: list[float]
    doubts: dict[str, str] = {}
    powers: list[float] = []
    judged: bool = False


def remember(node: NodeState, minute: int, known: NodeMemory | None) -> NodeMemory:
    """Return a node's memory with a newer state in it; a doubted or absurd reading is none."""
    sensed = [_sensed(node, name) for name in SENSED]
    powers = known.powers if known is not None and known.pool == node.pool else []
    return NodeMemory(
        pool=node.pool,
        minute=minute,
        sensed=sensed,
        doubts={
            name: doubt for name, doubt in node.doubts.items() if 0 < len(name) <= MAX_NAME_LENGTH
        },
        powers=[*powers, sensed[3]][-STEADY_MINUTES:],
    )


def _sensed(node: NodeState, name: str) -> float:
    feature = node.features.get(name)
    if feature is None or feature.value is None or name in node.doubts:
        return math.nan
    # One number that squares to infinity would be in the laws for good.
    return feature.value if abs(feature.value) <= MOST else math.nan


def is_steady(memory: NodeMemory) -> bool:
    """Return whether a node is busy, all its sensors speak, and its load stands."""
    if len(memory.powers) < STEADY_MINUTES or not all(np.isfinite(memory.sensed)):
        return False
    low, high = min(memory.powers), max(memory.powers)
    return memory.sensed[0] >= BUSY and high - low <= STEADY_SHARE * high


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Steady nodes at one minute; `metrics` is (node, metric), `sensed` (node, sensor)."""

    nodes: list[str]
    sensed: Floats
    metrics: Floats


def describe(nodes: dict[str, NodeMemory], laws: Laws) -> Behaviour:
    """Return how some steady nodes behave; the laws must be known."""
    names = sorted(nodes)
    sensed = np.array([nodes[name].sensed for name in names]).reshape(-1, len(SENSED))
    used, active, tensor, watts, celsius = sensed.T
    metrics = np.stack(
        [
            active / used,
            tensor / np.maximum(active, 0.01),
            watts / laws.power.expect(used) - 1.0,
            celsius - laws.heat.expect(watts),
        ],
        axis=1,
    )
    return Behaviour(names, sensed, metrics)
