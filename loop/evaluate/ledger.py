"""The money ledger: what a fleet earns and costs, from telemetry alone, exact to the micro.

Steps wait until the ledger's clock passes them and are then applied in the order of their event
times, so neither reordering nor duplicates change any window. A step that comes after its time has
passed is applied with a correction for the time since; totals stay right, the correction falls
into the window open then, and that window says so. Knows nothing of decisions.

    revenue             GPUs of running jobs, or their part of one, x their price, and what services
                        report
    capacity_cost       ready nodes x price per node-hour; the market's price where none is stated
    energy_cost         power x energy price
    waiting_penalty     GPUs of jobs queued for more than five minutes x half their price
    service_penalty     two dollars for each minute in which a service misses its level
    disruption_penalty  work lost to preemption, failure and migration x the job's price; that of
                        a migration falls to the pool the job moved to
"""

from bisect import insort
from typing import Final

import msgspec

from gpuloop.loop.evaluate.accounts import QUANTITIES, Account
from gpuloop.loop.evaluate.duplicates import Duplicates
from gpuloop.loop.evaluate.steps import (
    CapacityStep,
    JobStep,
    OfferStep,
    OverdueStep,
    ServiceStep,
    Step,
    order,
    step_of,
)
from gpuloop.schemas.component import Received, State
from gpuloop.schemas.messages import Message, Offer, ResourceSample
from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.schemas.units import HOUR_US, MINUTE_US

DEFINITION: Final = "ledger/1"
WAITING_GRACE_US: Final = 5 * MINUTE_US
SERVICE_PENALTY_USD_MICROS: Final = 2_000_000

MAX_JOBS: Final = 20_000
MAX_WAITING_STEPS: Final = 50_000
ENDED_US: Final = HOUR_US
"""How long a job that ended is remembered, so that late news does not start it again."""
MAX_POOLS: Final = 1_000
MAX_MARKETS: Final = 256
MAX_SELLERS: Final = 64

_QUEUES: Final = frozenset({"submitted", "preempted"})
_ENDS: Final = frozenset({"finished", "failed", "cancelled"})
_DISRUPTS: Final = frozenset({"preempted", "migrated", "failed"})


class Job(msgspec.Struct, array_like=True):
    """A job that waits or runs since `since_us`; `overdue` while its waiting costs."""

    pool: str
    gpus: int
    price: int
    running: bool
    since_us: int
    last_us: int
    overdue: bool = False
    gpu_milli: int = 1000

    @property
    def hourly(self) -> int:
        """Return what it pays in an hour, in whole USD micros; a part of a GPU pays that part."""
        return self.gpus * self.price * self.gpu_milli // 1000


class Book(msgspec.Struct):
    """One pool's accounts and what its capacity costs now; `corrected` since the last settling."""

    accounts: dict[str, Account]
    gpu_model: str = ""
    gpus_per_node: int = 0
    tranches: tuple[tuple[str, int, int], ...] = ()
    heard_us: int = 0
    corrected: bool = False


class Counts(msgspec.Struct):
    """What the ledger met that was not plain news, for metrics."""

    duplicates: int = 0
    late: int = 0
    overtaken: int = 0
    implausible: int = 0
    refused: int = 0


class Flow(msgspec.Struct, frozen=True):
    """What a pool earned and cost between two settlings; `corrected` when some of it is older."""

    components: dict[str, int]
    corrected: bool
    heard_us: int
    quantities: dict[str, int] = {}


class Ledger(State):
    """All books up to `now_us`, and the steps that wait for a later time.

    `heard_us` is the newest capacity sample's time: how far telemetry is known to have come.
    """

    now_us: int = 0
    heard_us: int = 0
    books: dict[str, Book] = {}
    jobs: dict[str, Job] = {}
    ended: dict[str, int] = {}
    prices: dict[str, dict[str, tuple[int, int]]] = {}
    waiting: list[Step] = []
    duplicates: Duplicates = msgspec.field(default_factory=Duplicates)
    counts: Counts = msgspec.field(default_factory=Counts)

    def observe(self, event: Received) -> None:
        """Take in a telemetry or market event: now if its time has passed, else when it has."""
        if event.message is None or _is_facility(event.message):
            return
        if not isinstance(event.message, Offer) and not self.duplicates.is_new(event.id):
            self.counts.duplicates += 1
            return
        step = step_of(event.message)
        if step is None:
            self.counts.implausible += 1
            return
        if isinstance(step, CapacityStep):
            self.heard_us = max(self.heard_us, step.at_us)
        self._plan(step)

    def advance(self, until_us: int) -> None:
        """Let time pass: apply every step before `until_us`. Never goes back."""
        while self.waiting and self.waiting[0].at_us < until_us:
            step = self.waiting.pop(0)
            self.now_us = max(self.now_us, step.at_us)
            self._apply(step)
        self.now_us = max(self.now_us, until_us)

    def settle(self, pool: str) -> Flow:
        """Return a pool's flow since it was last settled, up to now."""
        book = self.books.get(pool)
        if book is None:
            return Flow(components=dict.fromkeys(COMPONENTS, 0), corrected=False, heard_us=0)
        flow = {name: book.accounts[name].take(name, self.now_us) for name in COMPONENTS}
        taken = {n: self._quantity(book, n).take_above_zero(n, self.now_us) for n in QUANTITIES}
        corrected, book.corrected = book.corrected, False
        return Flow(flow, corrected, book.heard_us, taken)

    def _plan(self, step: Step) -> None:
        if step.at_us < self.now_us:
            self.counts.late += not isinstance(step, OverdueStep)
            self._apply(step)
            return
        insort(self.waiting, step, key=order)
        if len(self.waiting) > MAX_WAITING_STEPS:
            self.counts.refused += 1
            self.advance(self.waiting[0].at_us + 1)

    def _apply(self, step: Step) -> None:
        match step:
            case JobStep():
                self._apply_job(step)
            case CapacityStep():
                self._apply_capacity(step)
            case ServiceStep():
                revenue = step.revenue_usd_micros
                self._add(step.pool, "revenue", revenue * HOUR_US, step.at_us)
                penalty = SERVICE_PENALTY_USD_MICROS * step.violated_us
                self._add(step.pool, "service_penalty", penalty, step.at_us)
            case OfferStep():
                self._apply_offer(step)
            case OverdueStep():
                job = self.jobs.get(step.subject)
                if job and not job.running and job.since_us == step.since_us:
                    job.overdue = True
                    self._change(job.pool, "waiting_penalty", job.hourly, step.at_us)

    def _apply_job(self, step: JobStep) -> None:
        job = self.jobs.get(step.subject)
        price = step.price or (job.price if job else 0)
        if step.event in _DISRUPTS and step.gpu_us_lost:
            self._add(step.pool, "disruption_penalty", step.gpu_us_lost * price, step.at_us)
        if job is not None:
            if step.at_us < job.last_us:
                self.counts.overtaken += 1
                return
            job.last_us = step.at_us
        elif step.at_us < self.ended.get(step.subject, 0):
            self.counts.overtaken += 1
            return
        if step.event in _ENDS:
            if job is not None:
                self._leave(job, step.at_us)
                del self.jobs[step.subject]
            self._remember_end(step)
            return
        running = step.event not in _QUEUES and (step.event != "migrated" or step.placed)
        if job is not None:
            asked = (job.pool, job.gpus, job.gpu_milli, job.price)
            same = asked == (step.pool, step.gpus, step.gpu_milli, price)
            if step.event == "submitted" or (running == job.running and (same or not running)):
                return
            self._leave(job, step.at_us)
        elif len(self.jobs) >= MAX_JOBS:
            self.counts.refused += 1
            return
        job = Job(
            step.pool, step.gpus, price, running, step.at_us, step.at_us, gpu_milli=step.gpu_milli
        )
        self.jobs[step.subject] = job
        if running:
            self._change(job.pool, "revenue", job.hourly, step.at_us)
        else:
            overdue_us = step.at_us + WAITING_GRACE_US
            self._plan(OverdueStep(overdue_us, 0, 0, step.subject, since_us=step.at_us))

    def _remember_end(self, step: JobStep) -> None:
        self.ended[step.subject] = max(step.at_us, self.ended.pop(step.subject, 0))
        while self.ended:
            oldest = next(iter(self.ended))
            if len(self.ended) <= MAX_JOBS and self.ended[oldest] >= self.now_us - ENDED_US:
                break
            del self.ended[oldest]

    def _leave(self, job: Job, at_us: int) -> None:
        """Stop what a job earns or costs where it is."""
        if job.running:
            self._change(job.pool, "revenue", -job.hourly, at_us)
        elif job.overdue:
            overdue_us = job.since_us + WAITING_GRACE_US
            self._change(job.pool, "waiting_penalty", -job.hourly, max(at_us, overdue_us))

    def _apply_capacity(self, step: CapacityStep) -> None:
        book = self._book(step.subject)
        if step.at_us < book.heard_us:
            self.counts.overtaken += 1
            return
        book.heard_us = step.at_us
        book.gpu_model, book.gpus_per_node = step.gpu_model, step.gpus_per_node
        book.tranches = step.tranches
        self._reprice(step.subject, book, step.at_us)
        change = step.energy_rate - book.accounts["energy_cost"].rate
        self._change(step.subject, "energy_cost", change, step.at_us)
        for name, rate in zip(QUANTITIES, (step.milliwatts, step.carbon_rate), strict=True):
            account = self._quantity(book, name)
            account.change(name, rate - account.rate, step.at_us)

    def _apply_offer(self, step: OfferStep) -> None:
        if step.subject not in self.prices and len(self.prices) >= MAX_MARKETS:
            self.counts.refused += 1
            return
        sellers = self.prices.setdefault(step.subject, {})
        if step.seller not in sellers and len(sellers) >= MAX_SELLERS:
            self.counts.refused += 1
            return
        fetched_us, _ = sellers.get(step.seller, (0, 0))
        if step.at_us < fetched_us:
            return
        sellers[step.seller] = (step.at_us, step.usd_micros_per_gpu_hour)
        for name, book in sorted(self.books.items()):
            if any(f"{book.gpu_model}/{kind}" == step.subject for kind, _, _ in book.tranches):
                self._reprice(name, book, max(step.at_us, book.heard_us))

    def _reprice(self, pool: str, book: Book, at_us: int) -> None:
        """Let capacity cost what is rented at the stated price, else at the cheapest offer's."""
        rate = 0
        for kind, nodes, price in book.tranches:
            sellers = self.prices.get(f"{book.gpu_model}/{kind}", {})
            offered = min((micros for _, micros in sellers.values()), default=0)
            rate += nodes * (price or offered * book.gpus_per_node)
        self._change(pool, "capacity_cost", rate - book.accounts["capacity_cost"].rate, at_us)

    def _quantity(self, book: Book, name: str) -> Account:
        """Return an account that is no money; books from before it was kept begin it now."""
        return book.accounts.setdefault(name, Account(since_us=self.now_us))

    def _change(self, pool: str, component: str, by: int, at_us: int) -> None:
        book = self._book(pool)
        if by:
            book.corrected |= at_us < self.now_us
            book.accounts[component].change(component, by, at_us)

    def _add(self, pool: str, component: str, units: int, at_us: int) -> None:
        book = self._book(pool)
        if units:
            book.corrected |= at_us < self.now_us
            book.accounts[component].add(component, units)

    def _book(self, pool: str) -> Book:
        book = self.books.get(pool)
        if book is None:
            book = Book({name: Account() for name in COMPONENTS})
            if len(self.books) < MAX_POOLS:
                self.books[pool] = book
            else:
                self.counts.refused += 1
        return book


def _is_facility(message: Message) -> bool:
    """Return whether a sample is of something that jobs share beside GPUs."""
    return isinstance(message, ResourceSample) and message.kind != "capacity"
