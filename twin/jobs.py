"""The life of a job: quote, queue, start, checkpoint, interruption, migration, end.

Scheduling is first come first served with backfill: what fits may overtake, until the head of the
queue has waited half an hour; then the roomiest nodes are held for it. Services take free GPUs
before the queue does, because their load cannot wait.
"""

from bisect import insort
from typing import Final

from gpuloop.schemas.fleet import Refused
from gpuloop.schemas.units import MINUTE_US, SECOND_US
from gpuloop.twin.config import MAX_ATTEMPTS, WAITING_GRACE_US
from gpuloop.twin.demand import (
    accepted_jobs,
    choose_pool,
    job_class,
    patience_us,
    reservation_price,
    told_quote,
)
from gpuloop.twin.draws import lognormal, uniform
from gpuloop.twin.engine import Engine
from gpuloop.twin.fit import WHOLE_GPU
from gpuloop.twin.hardware import Hardware
from gpuloop.twin.inference import Inference
from gpuloop.twin.pacing import Pacing
from gpuloop.twin.placement import held_for
from gpuloop.twin.places import Places, find, rooms_of, with_own_room
from gpuloop.twin.sharing import asked_milli, gpu_us, hourly, leave
from gpuloop.twin.state import Job, Kind, Node
from gpuloop.twin.telemetry import Telemetry
from gpuloop.twin.tenancy import Tenancy
from gpuloop.twin.workload import JobSpec

HEAD_PATIENCE_US: Final = 30 * MINUTE_US
BACKFILL_DEPTH: Final = 100
WARM_START_SECONDS: Final = 5.0
COLD_START_SECONDS: Final = 45.0
COLD_START_SIGMA: Final = 0.5


class Jobs:
    """Every accepted job of a world, and the queues of its pools."""

    def __init__(
        self, engine: Engine, hardware: Hardware, pacing: Pacing, inference: Inference,
        telemetry: Telemetry,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._hardware = hardware
        self._pacing = pacing
        self._inference = inference
        self._telemetry = telemetry
        self._tenancy = Tenancy(engine)

    def offer(self, spec: JobSpec) -> None:
        """Quote a price to a job that arrives; it is queued if its tenant accepts."""
        engine, seed = self._engine, self._engine.config.seed
        job = self._admit(spec)
        pool = engine.pool(job.pool)
        segment = engine.config.segments[job.job_class]
        engine.state.counters.arrived += 1
        if never := self._tenancy.never(job):
            engine.state.counters.denied += 1
            self._telemetry.tenant(job, "refused", job.price, reason=never)
            return
        jobs, last_us = pool.records.get(job.tenant, (0, 0))
        loyalty = engine.pools[job.pool].loyalty_ratio
        job.price = round(told_quote(pool.quote, loyalty, jobs, last_us, engine.now_us))
        if reservation_price(seed, job.id, segment, pool.reference) < job.price:
            engine.state.counters.refused += 1
            self._telemetry.tenant(job, "refused", job.price)
            return
        pool.records[job.tenant] = (accepted_jobs(jobs, last_us, engine.now_us), engine.now_us)
        not_now = self._tenancy.behind(job) or self._tenancy.not_now(job)
        self._telemetry.tenant(job, "accepted", job.price, reason=not_now)
        if not_now:
            self._hold_back(job)
        else:
            self._queue_new(job)
            self.schedule(job.pool)
        self._lose_patience(job)

    def resume_all(self, specs: tuple[JobSpec, ...]) -> None:
        """Place the jobs that run when a world begins, widest first; the rest are queued."""
        for spec in sorted(specs, key=lambda s: (-s.gpus, s.submitted_us, s.job)):
            job = self._admit(spec)
            if self._tenancy.not_now(job):
                self._hold_back(job)
                self._lose_patience(job)
                continue
            nodes = find(self._engine, job, rooms_of(self._engine, job.pool))
            if nodes is None:
                self._queue_new(job)
                self._lose_patience(job)
            else:
                self._engine.state.jobs[job.id] = job
                self._tenancy.admit(job)
                self._start(job, nodes)

    def release(self, tenant: str = "") -> None:
        """Queue the jobs that quotas and budgets allow now, of one tenant or of all."""
        pools = set()
        for job in self._tenancy.released(tenant):
            waited = (self._engine.now_us - job.submitted_us) // SECOND_US
            job.submitted_us = self._engine.now_us
            self._queue_new(job, f"held back by quota or budget for {waited} s")
            pools.add(job.pool)
        for pool in sorted(pools):
            self.schedule(pool)

    def schedule(self, pool: str) -> None:
        """Start whatever of a pool's services and queue fits now."""
        self._inference.grow(pool)
        engine, queue = self._engine, self._engine.pool(pool).queue
        if not queue:
            return
        rooms, too_wide, held = rooms_of(self._engine, pool), 1 << 30, frozenset[str]()
        for name in queue[:BACKFILL_DEPTH]:
            if not rooms:
                return
            job = engine.state.jobs[name]
            width = job.gpus * job.gpu_milli
            if width >= too_wide:
                continue
            open_rooms = [room for room in rooms if room.node not in held]
            nodes = find(self._engine, job, open_rooms)
            if nodes is not None:
                queue.remove(name)
                self._leave_queue(job)
                self._start(job, nodes)
                rooms = rooms_of(self._engine, pool)
            elif not held and engine.now_us - job.queued_us >= HEAD_PATIENCE_US:
                held = held_for(rooms, job.gpus)
            elif not job.avoid:
                too_wide = width

    def beat(self, name: str, token: int) -> None:
        """Report a running job's progress, and checkpoint it when that is due."""
        engine = self._engine
        job = engine.state.jobs.get(name)
        if job is None or not job.running or job.run_token != token:
            return
        self._pacing.settle(job)
        if engine.config.progress_every_us:
            self._telemetry.job(job, "progress")
        if engine.now_us - job.saved_at_us >= engine.config.checkpoint_every_us:
            job.saved_us, job.saved_at_us = job.done_us, engine.now_us
            self._telemetry.job(job, "checkpointed")
        self._next_beat(job)

    def finish(self, name: str, token: int) -> None:
        """End a job whose work is done; some were doomed by their own code."""
        engine = self._engine
        job = engine.state.jobs.get(name)
        if job is None or not job.running or job.finish_token != token:
            return
        job.done_us = job.work_us
        nodes = self._vacate(job)
        self._forget(job)
        failed = uniform(engine.config.seed, "fails", name) < engine.config.job_failure_share
        if failed:
            engine.state.counters.failed += 1
            self._telemetry.job(job, "failed", reason="application error")
        else:
            engine.state.counters.finished += 1
            self._telemetry.job(job, "finished")
        self._pacing.refresh(nodes)
        self.release(job.tenant)
        self.schedule(job.pool)

    def interrupt(self, job: Job, reason: str, *, avoid: tuple[str, ...] = ()) -> None:
        """Throw a job back to its last checkpoint and into the queue, or give it up."""
        engine = self._engine
        self._pacing.settle(job)
        lost = gpu_us(job, job.done_us - job.saved_us)
        job.done_us = job.saved_us
        engine.state.books.book(job.pool, "disruption_penalty", lost * job.price)
        nodes = self._vacate(job)
        job.avoid = list(avoid)
        if job.attempt >= MAX_ATTEMPTS:
            self._forget(job)
            engine.state.counters.failed += 1
            self._telemetry.job(job, "failed", lost_gpu_us=lost, reason=f"gave up: {reason}")
        else:
            engine.state.counters.preempted += 1
            self._telemetry.job(job, "preempted", lost_gpu_us=lost, reason=reason)
            job.nodes = []
            self._enqueue(job)
        self._pacing.refresh(nodes)

    def give_up(self, name: str) -> None:
        """Cancel a job that has never been started and whose tenant's patience is over."""
        engine = self._engine
        job = engine.state.jobs.get(name)
        if job is None or job.running or job.attempt > 0:
            return
        pool, patience = engine.pool(job.pool), "waited too long"
        engine.state.counters.cancelled += 1
        if name in pool.held_back:
            pool.held_back.remove(name)
            engine.forget(job)
            self._telemetry.tenant(job, "cancelled", job.price, reason=patience)
            return
        pool.queue.remove(name)
        self._leave_queue(job)
        self._forget(job)
        self._telemetry.job(job, "cancelled", reason=patience)
        self._telemetry.tenant(job, "cancelled", job.price)

    def grace_over(self, name: str, token: int) -> None:
        """Start charging for a job that has waited beyond the grace period."""
        engine = self._engine
        job = engine.state.jobs.get(name)
        if job is None or job.running or job.run_token != token:
            return
        job.waiting_charged = True
        engine.state.books.change(job.pool, "waiting_penalty", hourly(job), engine.now_us)

    def migrate(self, job: Job, pool: str, avoid: tuple[str, ...]) -> None:
        """Move a running job from its last state to other nodes, at the price of a pause.

        Raises:
            Refused: `no_capacity` when there is no room elsewhere; nothing has changed.

        """
        engine, config = self._engine, self._engine.config
        if pool != job.pool and (not_now := self._tenancy.not_now(job, pool)):
            raise Refused("no_capacity", not_now)
        rooms = [room for room in rooms_of(self._engine, pool) if room.node not in avoid]
        rooms = with_own_room(self._engine, job, pool, avoid, rooms)
        nodes = find(self._engine, job, rooms)
        if nodes is None:
            asked = f"{job.gpus} GPUs" if job.gpu_milli == WHOLE_GPU else "a part of a GPU"
            raise Refused("no_capacity", f"no room for {asked} in {pool} elsewhere")
        self._pacing.settle(job)
        lost = gpu_us(job, config.migration_pause_us)
        keyed = (config.seed, "migration", job.id, job.generation)
        if uniform(*keyed) < config.migration_failure_share:
            lost += gpu_us(job, job.done_us - job.saved_us)
            job.done_us = job.saved_us
        left = self._vacate(job)
        source = job.pool
        self._tenancy.move(job, pool)
        job.pool, job.generation = pool, job.generation + 1
        engine.state.books.book(pool, "disruption_penalty", lost * job.price)
        job.saved_us, job.saved_at_us = job.done_us, engine.now_us
        self._settle_in(job, nodes, pause_us=config.migration_pause_us)
        engine.state.counters.migrated += 1
        self._telemetry.job(job, "migrated", lost_gpu_us=lost, reason=f"from {source}")
        self._pacing.refresh(left)
        self.schedule(source)

    def _admit(self, spec: JobSpec) -> Job:
        engine = self._engine
        pool = choose_pool(engine.config.seed, spec, engine.config.pools)
        return Job(
            id=spec.job,
            pool=pool.name,
            home=pool.name,
            tenant=spec.tenant,
            job_class=job_class(spec),
            gpus=spec.gpus,
            submitted_us=spec.submitted_us,
            work_us=spec.work_us,
            price=engine.pool(pool.name).quote,
            gpu_milli=asked_milli(engine.config.seed, spec, engine.config.shares),
        )

    def _queue_new(self, job: Job, reason: str = "") -> None:
        self._engine.state.jobs[job.id] = job
        self._tenancy.admit(job)
        self._telemetry.job(job, "submitted", reason=reason)
        self._enqueue(job)

    def _hold_back(self, job: Job) -> None:
        """Keep a job out of sight until its tenant may have it."""
        self._engine.state.jobs[job.id] = job
        self._engine.pool(job.pool).held_back.append(job.id)

    def _forget(self, job: Job) -> None:
        self._tenancy.leave(job)
        self._engine.forget(job)

    def _lose_patience(self, job: Job) -> None:
        """Set the timer at which a job that has to wait is cancelled."""
        engine = self._engine
        if not job.running:
            segment = engine.config.segments[job.job_class]
            wait = patience_us(engine.config.seed, job.id, segment)
            engine.at(engine.now_us + wait, Kind.JOB_GIVES_UP, job.id)

    def _enqueue(self, job: Job) -> None:
        engine = self._engine
        job.running, job.queued_us = False, engine.now_us
        job.run_token += 1
        jobs = engine.state.jobs
        insort(engine.pool(job.pool).queue, job.id, key=lambda name: self._tenancy.rank(jobs[name]))
        engine.at(engine.now_us + WAITING_GRACE_US, Kind.JOB_GRACE_OVER, job.id, job.run_token)

    def _leave_queue(self, job: Job) -> None:
        engine = self._engine
        if job.waiting_charged:
            job.waiting_charged = False
            engine.state.books.change(job.pool, "waiting_penalty", -hourly(job), engine.now_us)

    def _start(self, job: Job, nodes: Places) -> None:
        engine = self._engine
        warm = all(engine.state.nodes[name].tenant == job.tenant for name, _ in nodes)
        job.attempt += 1
        if job.attempt == 1:
            engine.state.counters.started += 1
            if job.queued_us:
                engine.state.counters.wait_us += engine.now_us - job.queued_us
        median = WARM_START_SECONDS if warm else COLD_START_SECONDS
        keyed = (engine.config.seed, "start", job.id, job.attempt)
        pause = round(lognormal(median, COLD_START_SIGMA, *keyed) * SECOND_US)
        job.saved_at_us = engine.now_us
        self._settle_in(job, nodes, pause_us=pause)
        self._telemetry.job(job, "started", reason="warm" if warm else "cold")

    def _settle_in(self, job: Job, nodes: Places, *, pause_us: int) -> None:
        engine = self._engine
        job.running, job.granted = True, 1.0
        job.run_token += 1
        job.avoid = []
        job.nodes = sorted(name for name, _ in nodes)
        job.mark_us = engine.now_us + pause_us
        for name, which in nodes:
            node = engine.state.nodes[name]
            if job.gpu_milli < WHOLE_GPU:
                self._hardware.share(node, which, job.id, job.gpu_milli)
            else:
                self._hardware.occupy(node, job.id, which)
            node.tenant = job.tenant
        self._pacing.pace(job)
        self._pacing.refresh([engine.state.nodes[name] for name in job.nodes])
        engine.state.books.change(job.pool, "revenue", hourly(job), engine.now_us)
        engine.crowded = True
        self._tenancy.runs(job, 1)
        self._next_beat(job)

    def _vacate(self, job: Job) -> list[Node]:
        """Take a running job off its nodes and return them; they still need a refresh."""
        engine = self._engine
        left = []
        for name in job.nodes:
            node = engine.state.nodes[name]
            leave(node, job.id)
            if node.phase == "draining":
                engine.emptied.add(node.pool)
            left.append(node)
        job.running = False
        job.run_token += 1
        job.finish_token += 1
        engine.state.books.change(job.pool, "revenue", -hourly(job), engine.now_us)
        engine.crowded = True
        self._tenancy.runs(job, -1)
        return left

    def _next_beat(self, job: Job) -> None:
        config = self._engine.config
        every = config.progress_every_us or config.checkpoint_every_us
        if every:
            at_us = self._engine.now_us + every
            self._engine.at(at_us, Kind.JOB_BEAT, job.id, job.run_token)
