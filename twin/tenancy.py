"""What tenants may have: GPUs at once in a pool, money a day, and whose jobs go first.

A job that its tenant's quota or budget does not allow now is held back: it is no demand, waits in
no queue of a pool and costs nobody a penalty, until something of its tenant ends or the day does.
Of one tenant's jobs in one pool none overtakes another. A job beyond the whole quota is refused.

Admitted jobs hold quota whether they run or wait. A budget is committed until midnight: what was
spent today, what every admitted job will cost if it runs until then, and the new one's share must
fit. So a day costs at most the budget, or what jobs from before midnight cost if that is more.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Final

from gpuloop.schemas.units import HOUR_US, USD_MICROS
from gpuloop.twin.config import TenantConfig
from gpuloop.twin.engine import Engine
from gpuloop.twin.fit import WHOLE_GPU
from gpuloop.twin.sharing import hourly
from gpuloop.twin.state import Job, TenantAccount
from gpuloop.twin.workload import DAY_US


class Tenancy:
    """The tenants of a world that are limited or preferred; all others are neither."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tenants: Final[dict[str, TenantConfig]] = {}
        for tenant in engine.config.tenants:
            unknown = sorted(tenant.gpus.keys() - engine.pools.keys())
            if unknown or tenant.name in self._tenants:
                what = f"a quota in {', '.join(unknown)}" if unknown else "two entries"
                raise ValueError(f"tenant {tenant.name} has {what}")
            self._tenants[tenant.name] = tenant

    def rank(self, job: Job) -> tuple[int, int, str]:
        """Return the key by which jobs queue: the tenant's priority, then who came first."""
        tenant = self._tenants.get(job.tenant)
        return (-tenant.priority if tenant else 0, job.submitted_us, job.id)

    def never(self, job: Job) -> str:
        """Return why a job can never be admitted to its pool, or nothing."""
        quota = self._quota(job.tenant, job.pool)
        if quota is not None and _milli(job) > quota * WHOLE_GPU:
            return f"asks for {_gpus(_milli(job))} GPUs, the quota in {job.pool} is {quota}"
        return ""

    def not_now(self, job: Job, pool: str = "") -> str:
        """Return why a job cannot be admitted to its pool, or another, at this time, or nothing."""
        pool = pool or job.pool
        if job.tenant not in self._tenants:
            return ""
        quota, account = self._quota(job.tenant, pool), self._account(job.tenant)
        held = account.milli.get(pool, 0)
        if quota is not None and held + _milli(job) > quota * WHOLE_GPU:
            return f"quota: {_gpus(held)} of {quota} GPUs in {pool} are taken"
        budget = self._tenants[job.tenant].usd_per_day
        if budget is not None and pool == job.pool:
            now = self._engine.now_us
            committed = (account.hourly + hourly(job)) * (DAY_US - now % DAY_US)
            if account.spent + committed > round(budget * USD_MICROS) * HOUR_US:
                spent = account.spent / HOUR_US / USD_MICROS
                return f"budget: {spent:,.2f} of {budget:,.2f} USD are spent, the rest is committed"
        return ""

    def behind(self, job: Job) -> str:
        """Return why a job that comes now may not pass others of its tenant, or nothing."""
        jobs = self._engine.state.jobs
        held = self._engine.pool(job.pool).held_back
        if any(jobs[name].tenant == job.tenant for name in held):
            return "behind others of its tenant that are held back"
        return ""

    def admit(self, job: Job) -> None:
        """Let an admitted job hold its part of quota and budget."""
        if job.tenant in self._tenants:
            account = self._account(job.tenant)
            account.milli[job.pool] = account.milli.get(job.pool, 0) + _milli(job)
            account.hourly += hourly(job)

    def leave(self, job: Job) -> None:
        """Let a job that ended give up what it held."""
        if job.tenant in self._tenants:
            account = self._account(job.tenant)
            account.milli[job.pool] -= _milli(job)
            account.hourly -= hourly(job)

    def move(self, job: Job, pool: str) -> None:
        """Let a job hold its quota in another pool; call before it is there."""
        if job.tenant in self._tenants:
            account = self._account(job.tenant)
            account.milli[job.pool] -= _milli(job)
            account.milli[pool] = account.milli.get(pool, 0) + _milli(job)

    def runs(self, job: Job, sign: int) -> None:
        """Let a job begin (1) or cease (-1) to spend its tenant's money."""
        if job.tenant in self._tenants:
            self._account(job.tenant).rate += sign * hourly(job)

    def released(self, tenant: str = "") -> Iterator[Job]:
        """Yield jobs that may be admitted now, of one tenant or of all; each is off its list.

        Tenants of higher priority go first. Whoever takes a job admits it before it asks for more.
        """
        waiting = {name: pool.held_back for name, pool in self._engine.state.pools.items()}
        if not any(waiting.values()):
            return
        jobs = self._engine.state.jobs
        names = chain.from_iterable(waiting.values())
        stuck: set[tuple[str, str]] = set()
        for job in sorted((jobs[name] for name in names), key=self.rank):
            place = (job.tenant, job.pool)
            if place in stuck or (tenant and job.tenant != tenant):
                continue
            if self.not_now(job):
                stuck.add(place)
                continue
            waiting[job.pool].remove(job.id)
            yield job

    def _quota(self, tenant: str, pool: str) -> int | None:
        found = self._tenants.get(tenant)
        return None if found is None else found.gpus.get(pool)

    def _account(self, tenant: str) -> TenantAccount:
        """Return a tenant's account with what it has spent today up to now."""
        state, now = self._engine.state, self._engine.now_us
        account = state.tenants.get(tenant)
        if account is None:
            account = state.tenants[tenant] = TenantAccount(since_us=now)
        midnight = now - now % DAY_US
        if account.since_us < midnight:
            account.since_us, account.spent = midnight, 0
        account.spent += account.rate * (now - account.since_us)
        account.since_us = now
        return account


def _milli(job: Job) -> int:
    return job.gpus * job.gpu_milli


def _gpus(milli: int) -> str:
    return f"{milli / WHOLE_GPU:g}"
