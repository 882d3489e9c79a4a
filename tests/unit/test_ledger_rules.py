"""What earns, what costs and when: the ledger's definition, a line at a time."""

from typing import Any

import pytest

from gpuloop.loop.evaluate.duplicates import BLOCK, MAX_BLOCKS, MAX_STREAMS, Duplicates
from gpuloop.loop.evaluate.ledger import Ledger
from gpuloop.schemas.component import Received, load, save
from gpuloop.schemas.identity import source_event_id
from gpuloop.schemas.messages import JobEvent, Message, Offer, ResourceSample, ServiceSample
from gpuloop.schemas.messages.telemetry import Tranche
from gpuloop.schemas.units import HOUR_US, INT64_MAX, MINUTE_US

USD = 1_000_000


class Books:
    """A ledger and the numbering of what it is told."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._seq = 0

    def tell(self, message: Message, *, seq: int | None = None) -> "Books":
        self._seq += 1
        event_id = source_event_id("local", message.TYPE, 1, self._seq if seq is None else seq)
        self.ledger.observe(
            Received(
                topic=message.TYPE, partition=0, offset=0, key="", id=event_id, message=message
            )
        )
        return self

    def job(self, kind: str, minute: float, **changes: Any) -> "Books":
        fields: dict[str, Any] = {
            "job": "j",
            "pool": "p",
            "gpus": 6,
            "price_usd_micros_per_gpu_hour": 2 * USD,
            "nodes": ("n",) if kind in ("started", "migrated") else (),
        }
        return self.tell(
            JobEvent(
                fleet="local",
                kind=kind,  # type: ignore[arg-type]
                tenant="t",
                job_class="batch",
                event_time_us=round(minute * MINUTE_US),
                boot=1,
                seq=self._seq,
                **(fields | changes),
            )
        )

    def capacity(self, minute: float, *tranches: Tranche, **changes: Any) -> "Books":
        fields: dict[str, Any] = {"gpu_model": "a100", "gpus_per_node": 8}
        return self.tell(
            ResourceSample(
                fleet="local",
                resource="p",
                kind="capacity",
                pool="p",
                event_time_us=round(minute * MINUTE_US),
                boot=1,
                seq=self._seq,
                load=0.0,
                capacity=0.0,
                tranches=tranches,
                **(fields | changes),
            )
        )

    def offer(
        self, minute: float, usd: float, provider: str = "gcp", model: str = "a100"
    ) -> "Books":
        return self.tell(
            Offer(
                fleet="local",
                provider=provider,
                region="r",
                gpu_model=model,
                billing="spot",
                usd_micros_per_gpu_hour=round(usd * USD),
                availability=1.0,
                fetched_at_us=round(minute * MINUTE_US),
                valid_for_us=HOUR_US,
            )
        )

    def until(self, minute: float) -> dict[str, float]:
        """Return what pool `p` earned since the last time, in dollars, without what is zero."""
        self.ledger.advance(round(minute * MINUTE_US))
        flow = self.ledger.settle("p").components
        return {name: micros / USD for name, micros in flow.items() if micros}


def spot(nodes: int, usd_per_node_hour: float = 0.0) -> Tranche:
    price = round(usd_per_node_hour * USD)
    return Tranche(billing="spot", nodes_ready=nodes, usd_micros_per_node_hour=price)


def test_a_running_job_earns_its_gpus_times_its_price() -> None:
    books = Books().job("started", 10).job("finished", 40)
    assert books.until(60) == {"revenue": 6.0}


def test_a_job_that_shares_a_device_earns_its_part_of_the_price() -> None:
    part = {"gpus": 1, "gpu_milli": 250}
    books = Books().job("submitted", 0, **part).job("started", 25, **part)
    books.job("preempted", 55, gpu_us_lost=2 * MINUTE_US, **part)
    assert books.until(55) == {"revenue": 0.25, "waiting_penalty": -0.083333}
    assert books.until(56) == {"disruption_penalty": pytest.approx(-2 * 2 / 60, abs=1e-6)}


def test_what_happens_at_a_boundary_belongs_to_the_window_that_begins_there() -> None:
    books = Books().job("started", 0).job("failed", 10, gpu_us_lost=HOUR_US)
    assert books.until(10) == {"revenue": 2.0}
    assert books.until(20) == {"disruption_penalty": -2.0}


def test_a_job_that_is_moved_earns_where_it_runs() -> None:
    books = Books().job("started", 0, pool="q").job("migrated", 30, gpu_us_lost=HOUR_US // 2)
    assert books.until(60) == {"revenue": 6.0, "disruption_penalty": -1.0}
    assert books.ledger.settle("q").components["revenue"] == 6 * USD


def test_waiting_costs_half_the_price_after_five_minutes() -> None:
    books = Books().job("submitted", 0)
    assert books.until(5) == {}
    assert books.until(15) == {"waiting_penalty": -1.0}
    assert books.job("started", 20).until(60) == {"waiting_penalty": -0.5, "revenue": 8.0}


def test_a_preempted_job_waits_anew_and_its_lost_work_is_refunded() -> None:
    books = Books().job("started", 0).job("preempted", 30, gpu_us_lost=6 * HOUR_US)
    assert books.until(35) == {"revenue": 6.0, "disruption_penalty": -12.0}
    assert books.until(45) == {"waiting_penalty": -1.0}


def test_a_job_first_heard_of_in_mid_run_counts_from_then() -> None:
    assert Books().job("progress", 50).until(60) == {"revenue": 2.0}


def test_a_cancelled_job_costs_nothing_more() -> None:
    books = Books().job("submitted", 0).job("cancelled", 15)
    assert books.until(600) == {"waiting_penalty": -1.0}
    assert books.ledger.jobs == {}


def test_an_event_overtaken_by_a_later_one_of_its_job_is_counted_and_not_applied() -> None:
    books = Books().job("started", 10).job("finished", 40)
    assert books.until(60) == {"revenue": 6.0}
    running = Books().job("started", 10).job("preempted", 40).job("started", 50)
    assert running.until(60) == {"revenue": 8.0, "waiting_penalty": -0.5}
    running.job("preempted", 45, gpu_us_lost=HOUR_US)
    assert running.until(60) == {"disruption_penalty": -2.0}
    assert running.ledger.counts.overtaken == 1
    assert running.until(120) == {"revenue": 12.0}


def test_ready_nodes_cost_until_the_next_sample() -> None:
    books = Books().capacity(0, spot(3, 4.0)).capacity(30, spot(1, 4.0))
    assert books.until(60) == {"capacity_cost": -8.0}


def test_an_older_capacity_sample_never_replaces_a_newer_one() -> None:
    books = Books().capacity(30, spot(1, 4.0))
    assert books.until(60) == {"capacity_cost": -2.0}
    books.capacity(20, spot(50, 4.0))
    assert books.until(60) == {}
    assert books.ledger.counts.overtaken == 1
    assert books.until(120) == {"capacity_cost": -4.0}


def test_capacity_without_a_price_costs_what_the_cheapest_offer_asks() -> None:
    books = Books().offer(0, 0.5).capacity(0, spot(2))
    assert books.until(60) == {"capacity_cost": -8.0}
    books.offer(90, 0.25, provider="aws").offer(90, 0.1, model="h100")
    assert books.until(120) == {"capacity_cost": -6.0}
    books.offer(80, 0.01, provider="aws")
    assert books.until(180) == {"capacity_cost": -4.0}


def test_a_late_offer_prices_no_capacity_from_before_the_last_sample() -> None:
    books = Books().capacity(30, spot(2))
    assert books.until(60) == {}
    assert books.offer(10, 0.5).until(60) == {"capacity_cost": -4.0}


def test_a_stated_price_is_not_replaced_by_an_offer() -> None:
    assert Books().offer(0, 0.5).capacity(0, spot(2, 1.0)).until(60) == {"capacity_cost": -2.0}


def test_energy_costs_power_times_its_price() -> None:
    books = Books().capacity(0, power_watts=1500.5, energy_usd_micros_per_kwh=100_000)
    assert books.until(60) == {"energy_cost": -0.15005}


@pytest.mark.parametrize(("violated", "penalty"), [(False, {}), (True, {"service_penalty": -2.0})])
def test_a_service_window_counts_in_the_window_it_covers(
    violated: bool, penalty: dict[str, float]
) -> None:
    sample = ServiceSample(
        fleet="local",
        service="chat",
        pool="p",
        event_time_us=MINUTE_US,
        window_us=MINUTE_US,
        boot=1,
        seq=1,
        gpus=4,
        requests_per_second=1.0,
        queue_depth=0.0,
        utilisation=0.5,
        first_token_p50_us=1,
        first_token_p95_us=2,
        error_ratio=0.0,
        violated=violated,
        revenue_usd_micros=3 * USD,
    )
    books = Books().tell(sample)
    assert books.until(1) == {"revenue": 3.0, **penalty}


def test_a_late_step_is_booked_now_and_marks_the_window_it_falls_into() -> None:
    books = Books().job("started", 0)
    assert books.until(30) == {"revenue": 6.0}
    books.job("finished", 20)
    books.ledger.advance(40 * MINUTE_US)
    flow = books.ledger.settle("p")
    assert flow.components["revenue"] == -2 * USD
    assert flow.corrected
    assert not books.ledger.settle("p").corrected
    assert books.ledger.counts.late == 1


def test_impossible_numbers_are_counted_and_leave_a_state_that_can_be_saved() -> None:
    books = Books().job("started", 0)
    books.job("started", 0, job="x", price_usd_micros_per_gpu_hour=INT64_MAX)
    books.job("failed", 0, job="y", gpu_us_lost=INT64_MAX)
    books.capacity(0, Tranche(billing="spot", nodes_ready=INT64_MAX, usd_micros_per_node_hour=1))
    books.capacity(0, Tranche(billing="spot", nodes_ready=10**6, usd_micros_per_node_hour=10**10))
    books.capacity(0, power_watts=1e300, energy_usd_micros_per_kwh=1)
    books.capacity(0, power_watts=1.7e308, energy_usd_micros_per_kwh=1)
    books.offer(0, 1e12)
    assert books.until(60) == {"revenue": 12.0}
    assert books.ledger.counts.implausible == 7
    assert load(Ledger, save(books.ledger)) == books.ledger


@pytest.mark.parametrize("late", ["submitted", "started", "progress", "migrated"])
def test_late_news_does_not_start_a_job_that_has_ended(late: str) -> None:
    books = Books().job("submitted", 0).job("started", 0).job("finished", 30)
    assert books.until(40)["revenue"] == 6.0
    books.job(late, 20)
    assert books.ledger.jobs == {}
    assert books.ledger.counts.overtaken == 1
    assert books.until(100) == {}


def test_a_job_may_begin_again_when_it_failed_and_ends_are_forgotten() -> None:
    books = Books().job("started", 0).job("failed", 10).job("started", 10)
    books.until(11)
    assert list(books.ledger.jobs) == ["j"]
    books.job("finished", 20).job("started", 200, job="k").job("finished", 201, job="k")
    books.until(300)
    assert list(books.ledger.ended) == ["k"]


def test_capacity_priced_by_an_offer_stays_plausible() -> None:
    books = Books().capacity(0, spot(10**6), gpus_per_node=64).offer(0, 1e4)
    books.capacity(1, spot(10**6), gpus_per_node=10**9)
    assert books.until(60) == {"capacity_cost": -64e10}
    assert load(Ledger, save(books.ledger)) == books.ledger


def test_sequence_numbers_are_known_in_any_order_and_forgotten_when_old() -> None:
    seen = Duplicates()
    assert [seen.is_new(f"local/jobs/1/{seq}") for seq in (5, 3, 5, 4, 3, 9, 4)] == [
        True, True, False, True, False, True, False,
    ]  # fmt: skip
    assert seen.is_new("local/jobs/2/5")
    assert all(seen.is_new(f"local/jobs/1/{9 + BLOCK * n}") for n in range(1, MAX_BLOCKS))
    assert not seen.is_new("local/jobs/1/9")
    assert seen.is_new("local/jobs/1/10")
    assert all(seen.is_new(f"local/jobs/1/{9 + BLOCK * (MAX_BLOCKS + n)}") for n in range(4))
    assert not seen.is_new("local/jobs/1/11")
    assert seen.leaps == 0
    assert seen.is_new("by hand")
    assert seen.is_new("by hand")
    assert seen.is_new("a/b/1/" + "9" * 400)


def test_one_number_far_ahead_does_not_make_those_that_truly_come_next_look_old() -> None:
    seen = Duplicates()
    for seq in range(3 * BLOCK):
        if seq % 700 == 350:
            assert seen.is_new(f"local/jobs/1/{10**17 + seq * BLOCK}")
        assert seen.is_new(f"local/jobs/1/{seq}")
        assert not seen.is_new(f"local/jobs/1/{seq}")
    assert seen.leaps == 4
    assert len(seen.sources["local/jobs/1"].blocks) <= MAX_BLOCKS


def test_many_numbers_far_ahead_do_not_hide_it_either() -> None:
    seen = Duplicates()
    assert seen.is_new("local/jobs/1/5")
    for far in range(1, 50):
        assert seen.is_new(f"local/jobs/1/{far * 10**12}")
    assert seen.is_new(f"local/jobs/1/{BLOCK}")


def test_streams_are_bounded_and_a_loaded_state_forgets_the_same_one() -> None:
    seen = Duplicates()
    for number in range(MAX_STREAMS):
        assert seen.is_new(f"local/source-{(number * 7) % MAX_STREAMS}/1/1")
    assert not seen.is_new("local/source-0/1/1")
    copy = load(Ledger, save(Ledger(duplicates=seen))).duplicates
    for memory in (seen, copy):
        assert memory.is_new("local/new/1/1")
        assert len(memory.sources) == MAX_STREAMS
        assert not memory.is_new("local/source-0/1/1")
        assert memory.is_new("local/source-7/1/1")
