"""Which sensor can move which: the causal graph of a fleet, from membership alone.

Edges follow physics, never correlation: what heats a rack heats its nodes, a hot node throttles,
and a gang runs at the pace of its slowest member, so throttling, links or memory errors of any
member slow the whole job. What operators did (a migration, a change of capacity or price) is a
cause like any other. Power, and through it past load, is already part of what a temperature is
compared with, so the graph of one minute has no cycle.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

PROGRESS: Final = "progress"
MIGRATION: Final = "migration"
CAPACITY: Final = "nodes_ready"
PRICE: Final = "quote"

SLOPES: Final[dict[str, float]] = {
    "throttled": -0.5,
    "nvlink_bytes_per_second": 0.7,
    "ecc_uncorrected": -1.0,
    MIGRATION: -0.3,
    CAPACITY: 0.0,
    PRICE: 0.0,
}
"""What a departure of one unit does to the pace of the job it touches, before any data.

A hardware slowdown halves clocks; a job that spends a third of its time exchanging data loses
about 0.7 of what its links lose; a retried memory error costs about a minute each. Temperature is
not here: it slows nothing but by throttling.
"""


class Column(NamedTuple):
    """A metric of a subject: a vertex of the graph."""

    subject: str
    metric: str

    def __str__(self) -> str:
        """Return the name under which an analysis carries it."""
        return f"{self.metric}@{self.subject}"


class Link(NamedTuple):
    """A direct cause, its effect, and the slope that physics gives."""

    cause: Column
    effect: Column
    slope: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Membership at one minute; `weights` are GPUs. Subjects of every kind have distinct names."""

    rack_of: dict[str, str]
    nodes_of: dict[str, tuple[str, ...]]
    weights: dict[str, int]
    channels: tuple[str, ...]

    def causes(self, symptom: Column) -> tuple[Link, ...]:
        """Return every link that ends, directly or not, in the symptom; causes before effects."""
        subject = symptom.subject
        if symptom.metric != PROGRESS:
            return tuple(self._into_node(symptom)) if subject in self.rack_of else ()
        if subject in self.nodes_of:
            members = dict.fromkeys(self.nodes_of[subject], 1.0)
            actions = [Link(Column(subject, MIGRATION), symptom, SLOPES[MIGRATION])]
        else:
            members, actions = self._shares(), []
            for metric in (CAPACITY, PRICE):
                actions.append(Link(Column(subject, metric), symptom, SLOPES[metric]))
        links: dict[Link, None] = {}
        for node in members:
            for metric in self.channels:
                links.update(dict.fromkeys(self._into_node(Column(node, metric))))
        for node, share in members.items():
            for metric in self.channels:
                if metric in SLOPES:
                    links[Link(Column(node, metric), symptom, SLOPES[metric] * share)] = None
        return (*links, *actions)

    def _into_node(self, column: Column) -> list[Link]:
        """Return what moves one sensor of one node."""
        links = [Link(Column(self.rack_of[column.subject], column.metric), column, 1.0)]
        if column.metric == "throttled":
            heat = Column(column.subject, "temperature_celsius")
            links += [*self._into_node(heat), Link(heat, column, 0.0)]
        return links

    def _shares(self) -> dict[str, float]:
        """Return how much of a pool's work each node holds up."""
        total = sum(self.weights[job] for job in self.nodes_of)
        shares: dict[str, float] = {}
        for job, nodes in self.nodes_of.items():
            for node in nodes:
                shares[node] = shares.get(node, 0.0) + self.weights[job] / max(total, 1)
        return dict(sorted(shares.items()))
