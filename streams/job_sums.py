"""What jobs add up to: how many, their GPUs, and apart from these the parts of GPUs.

Thousandths of shared devices are summed as such and become GPUs only when all shards are together.
"""

from typing import Final

from gpuloop.schemas.component import State
from gpuloop.schemas.messages import JobEvent

WHOLE_GPU: Final = 1000
"""A device in thousandths."""


class Jobs(State):
    """How many jobs, their GPUs, and the thousandths of those that share devices."""

    jobs: int = 0
    gpus: int = 0
    milli: int = 0


class Waiting(State):
    """The queue of one class: GPUs, thousandths of shared ones, and when each was submitted."""

    gpus: int = 0
    submitted_us: dict[str, int] = {}
    milli: int = 0


def asked(event: JobEvent) -> tuple[int, int]:
    """Return the whole GPUs that a job asks for, and its thousandths of one that it shares."""
    return (event.gpus, 0) if event.gpu_milli == WHOLE_GPU else (0, event.gpus * event.gpu_milli)


def add(sums: dict[str, Jobs], job_class: str, jobs: int, gpus: int, milli: int) -> None:
    """Add some jobs of a class, or take them away, in place."""
    known = sums.setdefault(job_class, Jobs())
    known.jobs += jobs
    known.gpus += gpus
    known.milli += milli
