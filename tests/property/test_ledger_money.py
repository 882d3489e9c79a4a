"""The ledger against a plain recomputation: no cutting, repeating, reordering or delay loses money.

The reference below knows no rates and no rests: it lays out what ran and waited when, and sums
exact fractions.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import TypeVar

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gpuloop.loop.evaluate.ledger import Ledger
from gpuloop.schemas.component import Received, load, save
from gpuloop.schemas.identity import source_event_id
from gpuloop.schemas.messages import JobEvent, ResourceSample, ServiceSample
from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.schemas.messages.telemetry import Tranche
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US

END_US = 40 * MINUTE_US
LATENESS_US = 2 * MINUTE_US
POOLS = ("a100", "h100")
NEXT = {
    None: ("submitted", "started"),
    "queued": ("started", "cancelled", "preempted"),
    "running": ("progress", "checkpointed", "preempted", "migrated", "failed", "finished"),
}
PHASE = {
    "submitted": "queued", "preempted": "queued", "started": "running", "progress": "running",
    "checkpointed": "running", "migrated": "running",
}  # fmt: skip

Message = JobEvent | ResourceSample | ServiceSample
M = TypeVar("M", JobEvent, ResourceSample, ServiceSample)
Totals = dict[tuple[str, str], int]


def received(message: Message, source: str) -> Received:
    return Received(
        topic=message.TYPE,
        partition=0,
        offset=0,
        key="",
        id=source_event_id("local", source, message.boot, message.seq),
        message=message,
    )


times = st.lists(st.integers(0, END_US - 1), min_size=1, max_size=8, unique=True).map(sorted)
prices = st.integers(0, 5_000_000)
gpus = st.integers(1, 64)


@st.composite
def job_histories(draw: st.DrawFn) -> list[JobEvent]:
    events: list[JobEvent] = []
    for number in range(draw(st.integers(0, 4))):
        phase: str | None = None
        size, pool = draw(gpus), draw(st.sampled_from(POOLS))
        for at in draw(times):
            if phase == "gone":
                break
            kind = draw(st.sampled_from(NEXT[phase]))
            pool = draw(st.sampled_from(POOLS)) if kind == "migrated" else pool
            lost = draw(st.integers(0, 10**10)) if kind in NEXT["running"][2:5] else 0
            phase = PHASE.get(kind, "gone")
            events.append(
                JobEvent(
                    fleet="local",
                    job=f"job-{number}",
                    kind=kind,  # type: ignore[arg-type]
                    pool=pool,
                    tenant="t",
                    job_class="batch",
                    event_time_us=at,
                    boot=1,
                    seq=0,
                    gpus=size,
                    nodes=("n",) if phase == "running" else (),
                    price_usd_micros_per_gpu_hour=1_000_003 + number,
                    gpu_us_lost=lost,
                )
            )
    return numbered(events)


@st.composite
def capacity_histories(draw: st.DrawFn) -> list[ResourceSample]:
    samples = [
        ResourceSample(
            fleet="local",
            resource=pool,
            kind="capacity",
            pool=pool,
            event_time_us=at,
            boot=1,
            seq=0,
            load=0.0,
            capacity=0.0,
            tranches=(
                Tranche(
                    billing="on_demand",
                    nodes_ready=draw(st.integers(0, 50)),
                    usd_micros_per_node_hour=draw(prices),
                ),
            ),
            energy_usd_micros_per_kwh=draw(st.integers(0, 200_000)),
            power_watts=draw(st.integers(0, 10**6)) / 8,
        )
        for pool in POOLS
        for at in draw(times)
    ]
    return numbered(samples)


@st.composite
def service_histories(draw: st.DrawFn) -> list[ServiceSample]:
    samples = [
        ServiceSample(
            fleet="local",
            service="chat",
            pool="a100",
            event_time_us=at,
            window_us=draw(st.sampled_from((MINUTE_US, 7 * SECOND_US))),
            boot=1,
            seq=0,
            gpus=1,
            requests_per_second=1.0,
            queue_depth=0.0,
            utilisation=0.5,
            first_token_p50_us=1,
            first_token_p95_us=1,
            error_ratio=0.0,
            violated=draw(st.booleans()),
            revenue_usd_micros=draw(prices),
        )
        for at in draw(times)
    ]
    return numbered(samples)


def numbered(messages: Sequence[M]) -> list[M]:
    """Sort messages by time and give them their sequence numbers."""
    ordered = sorted(messages, key=lambda m: m.event_time_us)
    return [msgspec.structs.replace(m, seq=seq) for seq, m in enumerate(ordered)]


@dataclass(frozen=True)
class History:
    jobs: list[JobEvent]
    capacity: list[ResourceSample]
    services: list[ServiceSample]

    def events(self) -> list[Received]:
        """All events in the order of their times."""
        found = [received(m, "jobs") for m in self.jobs]
        found += [received(m, "resources") for m in self.capacity]
        found += [received(m, "services") for m in self.services]
        return sorted(found, key=time_of)


histories = st.builds(History, job_histories(), capacity_histories(), service_histories())


def time_of(event: Received) -> int:
    assert isinstance(event.message, JobEvent | ResourceSample | ServiceSample)
    return event.message.event_time_us


def recomputed(history: History, until_us: int) -> Totals:
    """Sum exact fractions over what ran, waited and was rented until a time."""
    sums: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
    for name in {event.job for event in history.jobs}:
        told = [e for e in history.jobs if e.job == name and e.event_time_us < until_us]
        queued_us = -1
        for event, following in zip(told, [*told[1:], None], strict=True):
            end = following.event_time_us if following else until_us
            rate = Fraction(event.gpus * event.price_usd_micros_per_gpu_hour, HOUR_US)
            sums[event.pool, "disruption_penalty"] -= Fraction(event.gpu_us_lost, event.gpus) * rate
            phase = PHASE.get(event.kind)
            if phase == "running":
                queued_us = -1
                sums[event.pool, "revenue"] += rate * (end - event.event_time_us)
            elif phase == "queued":
                queued_us = event.event_time_us if queued_us < 0 else queued_us
                begin = max(event.event_time_us, queued_us + 5 * MINUTE_US)
                sums[event.pool, "waiting_penalty"] -= rate / 2 * max(end - begin, 0)
    for pool in POOLS:
        seen = [s for s in history.capacity if s.pool == pool and s.event_time_us < until_us]
        for sample, later in zip(seen, [*seen[1:], None], strict=True):
            lasts = (later.event_time_us if later else until_us) - sample.event_time_us
            for tranche in sample.tranches:
                cost = tranche.nodes_ready * tranche.usd_micros_per_node_hour
                sums[pool, "capacity_cost"] -= Fraction(cost * lasts, HOUR_US)
            kilowatts = Fraction(sample.power_watts) / 1000
            price = sample.energy_usd_micros_per_kwh
            sums[pool, "energy_cost"] -= kilowatts * price * Fraction(lasts, HOUR_US)
    for service in history.services:
        if max(service.event_time_us - 1, 0) < until_us:
            sums[service.pool, "revenue"] += service.revenue_usd_micros
            violated = service.window_us if service.violated else 0
            sums[service.pool, "service_penalty"] -= Fraction(2_000_000 * violated, MINUTE_US)
    return {
        (pool, name): floor(sums[pool, name]) if name == "revenue" else -floor(-sums[pool, name])
        for pool in POOLS
        for name in COMPONENTS
    }


def settled(ledger: Ledger) -> Totals:
    return {
        (pool, name): micros
        for pool in POOLS
        for name, micros in ledger.settle(pool).components.items()
    }


def total(windows: Sequence[Totals]) -> Totals:
    return {key: sum(window[key] for window in windows) for key in windows[0]}


def run(arrivals: Sequence[tuple[int, Received]], *, reload: bool = False) -> list[Totals]:
    """Deliver events at their arrival times; settle each minute two minutes after its end."""
    ledger, windows, waiting = Ledger(), [], list(arrivals)
    for now in range(0, END_US + LATENESS_US + 1, MINUTE_US):
        while waiting and waiting[0][0] <= now:
            ledger.observe(waiting.pop(0)[1])
        if now >= LATENESS_US:
            ledger.advance(now - LATENESS_US)
            windows.append(settled(ledger))
        if reload:
            ledger = load(Ledger, save(ledger))
    for _, event in waiting:
        ledger.observe(event)
    windows.append(settled(ledger))
    return windows


def on_time(events: Sequence[Received]) -> list[tuple[int, Received]]:
    return [(time_of(event), event) for event in events]


@given(histories, st.lists(st.integers(0, END_US), max_size=6))
def test_windows_add_up_to_the_recomputed_total_however_time_is_cut(
    history: History, cuts: list[int]
) -> None:
    ledger = Ledger()
    for event in history.events():
        ledger.observe(event)
    windows = []
    for end in [*sorted(cuts), END_US]:
        ledger.advance(end)
        windows.append(settled(ledger))
    assert total(windows) == recomputed(history, END_US)


@given(histories, st.data())
def test_order_and_repetition_within_the_lateness_change_no_window(
    history: History, data: st.DataObject
) -> None:
    events = history.events()
    arrivals = on_time(events)
    delays = st.integers(0, LATENESS_US - 1)
    for event in events:
        for _ in range(data.draw(st.integers(0, 1))):
            arrivals.append((time_of(event) + data.draw(delays), event))
    shaken = [
        (time_of(event) + data.draw(delays), event)
        for event in data.draw(st.permutations(events + events[: len(events) // 2]))
    ]
    plain = run(on_time(events))
    assert run(sorted(arrivals, key=lambda a: a[0])) == plain
    assert run(sorted(shaken, key=lambda a: a[0])) == plain
    assert total(plain) == recomputed(history, END_US)


@given(histories, st.data())
def test_a_source_however_late_changes_windows_but_no_total(
    history: History, data: st.DataObject
) -> None:
    late = data.draw(st.sampled_from(("jobs", "resources", "services")))
    by = data.draw(st.integers(0, 2 * END_US))
    arrivals = [
        (time_of(event) + (by if f"/{late}/" in event.id else 0), event)
        for event in history.events()
    ]
    windows = run(sorted(arrivals, key=lambda a: a[0]))
    assert total(windows) == recomputed(history, END_US)


@given(histories)
def test_a_ledger_saved_and_loaded_every_minute_is_the_same_ledger(history: History) -> None:
    arrivals = on_time(history.events())
    assert run(arrivals, reload=True) == run(arrivals)
