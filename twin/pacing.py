"""How fast running jobs go, by their nodes' health and what facilities grant, and when they end."""

from collections.abc import Iterable
from math import ceil

from gpuloop.twin.engine import Engine
from gpuloop.twin.hardware import Hardware
from gpuloop.twin.sharing import holding
from gpuloop.twin.state import Job, Kind, Node


class Pacing:
    """The pace of a world's running jobs."""

    def __init__(self, engine: Engine, hardware: Hardware) -> None:
        self._engine = engine
        self._hardware = hardware

    def settle(self, job: Job) -> None:
        """Bring a running job's work up to now; before its mark it is still starting."""
        now = self._engine.now_us
        if now > job.mark_us:
            done = int((now - job.mark_us) * self._rate(job))
            job.done_us = min(job.done_us + done, job.work_us)
            job.mark_us = now

    def pace(self, job: Job) -> None:
        """Take the speed that nodes and facilities allow a job and set the timer of its end."""
        job.health = self._hardware.speed(job) * job.granted
        job.finish_token += 1
        left = ceil((job.work_us - job.done_us) / self._rate(job))
        self._engine.at(job.mark_us + left, Kind.JOB_FINISH, job.id, job.finish_token)

    def health_changed(self, node: Node) -> None:
        """Let a node's jobs go at the speed it now allows, and every node they run on feel it."""
        jobs = self._engine.state.jobs
        changed = [jobs[name] for name in holding(node) if name in jobs]
        for job in changed:
            self.settle(job)
            self.pace(job)
        self._engine.crowded = True
        self.felt_by(changed, node)

    def felt_by(self, changed: Iterable[Job], *nodes: Node) -> None:
        """Let every node feel that some jobs on it go at another pace, and some nodes anyway."""
        touched = {node.id: node for node in nodes}
        for job in changed:
            for name in job.nodes:
                touched[name] = self._engine.state.nodes[name]
        self.refresh([touched[name] for name in sorted(touched)])

    def refresh(self, nodes: Iterable[Node]) -> None:
        """Let nodes take their present load into account."""
        for node in nodes:
            self._hardware.refresh(node)

    def _rate(self, job: Job) -> float:
        models = self._engine.models
        return job.health * models[job.pool].speed / models[job.home].speed
