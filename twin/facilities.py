"""What jobs share beside GPUs: storage, the network between racks, a database of metadata.

A facility divides its capacity max-min fairly among what its jobs would take at the pace that their
nodes allow: nobody gets more than it asks, and what small ones leave goes to the others alike. A
job goes at the pace of the facility that grants it the smallest part of its wish. What a job takes
less of one facility because another holds it back is not given to others.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from gpuloop.twin.config import FacilityConfig
from gpuloop.twin.draws import uniform
from gpuloop.twin.engine import Engine
from gpuloop.twin.fit import WHOLE_GPU
from gpuloop.twin.hardware import Hardware
from gpuloop.twin.pacing import Pacing
from gpuloop.twin.state import Job, Kind

MEAN_COMM: Final = 0.35
"""The mean of a job's share of time spent exchanging data (`demand.profile`)."""
FULLEST: Final = 0.95
"""Load beyond which latency no longer grows as 1 / (1 - load)."""


class Strain(NamedTuple):
    """A facility at one time: what is asked of it and what it gives, and how long it takes."""

    facility: FacilityConfig
    asked: float
    given: float
    latency_us: int


class Facilities:
    """The facilities of a world and what they grant its running jobs."""

    def __init__(self, engine: Engine, hardware: Hardware, pacing: Pacing) -> None:
        self._engine = engine
        self._hardware = hardware
        self._pacing = pacing
        for facility in engine.config.facilities:
            unknown = sorted(set(facility.pools) - engine.pools.keys())
            if unknown:
                raise ValueError(f"{facility.name} serves {', '.join(unknown)}, which are no pools")

    def divide(self) -> None:
        """Divide every facility anew and let the jobs concerned go at another pace from now on."""
        jobs = self._engine.state.jobs
        granted = {job.id: 1.0 for job in jobs.values() if job.running}
        for facility in self._engine.config.facilities:
            asked = dict(self._asked(facility))
            for name, given in zip(
                asked, max_min(list(asked.values()), facility.capacity), strict=True
            ):
                granted[name] = min(granted[name], given / asked[name])
        changed = [jobs[name] for name, part in granted.items() if jobs[name].granted != part]
        for job in changed:
            self._pacing.settle(job)
            job.granted = granted[job.id]
            self._pacing.pace(job)
        self._pacing.felt_by(changed)
        self._engine.forget_timers(Kind.JOB_FINISH, {j.id: j.finish_token for j in jobs.values()})

    def strains(self) -> Iterator[Strain]:
        """Yield how every facility stands now."""
        for facility in self._engine.config.facilities:
            wishes = [wish for _, wish in self._asked(facility)]
            asked, given = sum(wishes), sum(max_min(wishes, facility.capacity))
            waiting = max(1.0, asked / facility.capacity) / (
                1.0 - min(given / facility.capacity, FULLEST)
            )
            yield Strain(facility, asked, given, round(facility.latency_us * waiting))

    def _asked(self, facility: FacilityConfig) -> Iterator[tuple[str, float]]:
        """Yield what each running job that uses a facility would take of it."""
        for job in self._engine.state.jobs.values():
            if job.running and (not facility.pools or job.pool in facility.pools):
                wish = self._wish(facility, job) * self._hardware.speed(job)
                if wish > 0:
                    yield job.id, wish

    def _wish(self, facility: FacilityConfig, job: Job) -> float:
        gpus = job.gpus * job.gpu_milli / WHOLE_GPU
        if facility.kind == "network":
            nodes = self._engine.state.nodes
            if len({nodes[name].rack for name in job.nodes}) < 2:
                return 0.0
            return facility.per_gpu * gpus * self._engine.profile(job.id).comm / MEAN_COMM
        drawn = uniform(self._engine.config.seed, "facility", facility.name, job.id)
        return facility.per_gpu * gpus * (0.5 + drawn)


def max_min(wishes: Sequence[float], capacity: float) -> list[float]:
    """Return the max-min fair division of a capacity among wishes, in their order.

    Everyone gets its wish or the same level, whichever is less; nothing is left while a wish is
    open.
    """
    if sum(wishes) <= capacity:
        return list(wishes)
    rising = sorted(wishes)
    before = [0.0, *accumulate(rising)]
    # The level is where those below it have all they wish and the others divide the rest.
    level = next(
        (capacity - before[index]) / (len(rising) - index)
        for index, wish in enumerate(rising)
        if before[index] + wish * (len(rising) - index) >= capacity
    )
    return [min(wish, level) for wish in wishes]
