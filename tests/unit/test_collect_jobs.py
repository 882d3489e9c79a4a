"""Answers of Prometheus to events of jobs and samples of services."""

from typing import Any

import msgspec
import pytest

from gpuloop.schemas.messages import JobEvent, ServiceSample
from gpuloop.schemas.units import MINUTE_US
from gpuloop.streams.collect.answers import NUMBERS, NotAVector, Series, services, vector
from gpuloop.streams.collect.config import Services
from gpuloop.streams.collect.jobs import GONE_AFTER, Answered, Jobs, gauges
from gpuloop.streams.collect.readings import Stamp
from gpuloop.streams.jobs import merge, state_of

BEAT_US = 30_000_000


def series(value: float | str, **labels: str) -> Series:
    return Series(metric=labels, value=(0.0, str(value)))


def holding(job: str, gpus: float, node: str = "n1", **labels: str) -> Series:
    return series(gpus, job_id=job, node=node, pool="h100", tenant="t", job_class="train", **labels)


class Server:
    """Answers beat after beat."""

    def __init__(self, *, boot: int = 7, now_us: int = 0) -> None:
        self.jobs = Jobs("f", boot)
        self.now_us = now_us

    def says(
        self, *running: Series, queued: tuple[Series, ...] = (), failed: tuple[str, ...] = (),
        done: dict[str, int] | None = None,
    ) -> list[JobEvent]:  # fmt: skip
        self.now_us += BEAT_US
        answered = Answered(
            running=gauges(running)[0],
            queued=gauges(queued)[0],
            failed=failed,
            gpu_us_done=done or {},
        )
        return self.jobs.hear(answered, self.now_us)

    def kinds(self, *running: Series, **more: Any) -> list[tuple[str, str]]:
        return [(event.job, event.kind) for event in self.says(*running, **more)]


@pytest.fixture
def server() -> Server:
    found = Server()
    found.says()
    return found


def test_a_job_waits_runs_and_ends(server: Server) -> None:
    assert server.kinds(queued=(holding("j", 8),)) == [("j", "submitted")]
    assert server.kinds(queued=(holding("j", 8),)) == []
    (started,) = server.says(holding("j", 8))
    assert (started.kind, started.gpus, started.nodes) == ("started", 8, ("n1",))
    assert started.pool == "h100"
    assert started.submitted_us < started.event_time_us
    for _ in range(GONE_AFTER - 1):
        server.says()
    (ended,) = server.says()
    assert (ended.kind, ended.gpu_us_done) == ("finished", 0)


def test_a_job_missing_from_a_late_scrape_has_not_ended(server: Server) -> None:
    server.says(holding("j", 8))
    for _ in range(5):
        assert server.kinds() == []
        assert "finished" not in [kind for _, kind in server.kinds(holding("j", 8))]


def test_what_ran_before_the_first_answer_is_no_arrival() -> None:
    assert Server().kinds(holding("j", 8)) == [("j", "progress")]


def test_a_job_that_runs_unannounced_has_been_submitted(server: Server) -> None:
    assert server.kinds(holding("j", 8)) == [("j", "submitted"), ("j", "started")]


def test_a_running_job_reports_each_minute_and_when_it_moves(server: Server) -> None:
    server.says(holding("j", 8))
    assert server.kinds(holding("j", 8)) == []
    assert server.kinds(holding("j", 8)) == [("j", "progress")]
    assert MINUTE_US == 2 * BEAT_US
    (moved,) = server.says(holding("j", 8, node="n2"))
    assert (moved.kind, moved.nodes) == ("progress", ("n2",))


def test_the_series_of_a_jobs_nodes_add_up(server: Server) -> None:
    events = server.says(holding("j", 8, "n2"), holding("j", 4, "n1"))
    assert (events[-1].gpus, events[-1].nodes) == (12, ("n1", "n2"))


def test_a_failure_is_told_at_once(server: Server) -> None:
    server.says(holding("j", 8))
    assert server.kinds(failed=("j",)) == [("j", "failed")]
    assert server.kinds(failed=("j",)) == []


def test_a_job_that_gave_up_waiting_was_cancelled(server: Server) -> None:
    server.says(queued=(holding("j", 8),))
    events = [kind for _ in range(GONE_AFTER) for kind in server.kinds()]
    assert events == [("j", "cancelled")]


def test_a_job_that_waits_again_was_preempted_and_starts_another_attempt(server: Server) -> None:
    server.says(holding("j", 8))
    first = server.says(holding("j", 8), holding("k", 8))[0].attempt
    assert server.kinds(holding("k", 8), queued=(holding("j", 8),)) == [("j", "preempted")]
    again = server.says(holding("j", 8), holding("k", 8))[0]
    assert (again.job, again.kind) == ("j", "started")
    assert again.attempt > first


def test_a_collector_that_starts_again_is_believed_about_a_job_of_several_attempts() -> None:
    old, row = Server(), None
    for running, waiting in ((True, False), (False, True), (True, False)):
        job = (holding("j", 8),)
        for event in old.says(*job * running, queued=job * waiting):
            row = merge(row, event)
    new = Server(boot=8, now_us=old.now_us)
    for event in new.says(holding("j", 8, node="n2")):
        row = merge(row, event)
    assert row is not None
    assert (state_of(row).phase, state_of(row).nodes) == ("running", ("n2",))


def test_work_is_what_was_held_unless_it_is_measured(server: Server) -> None:
    server.says(holding("j", 8))
    server.says(holding("j", 8))
    (event,) = server.says(holding("j", 8))
    assert event.gpu_us_done == 8 * 2 * BEAT_US
    server.says(holding("j", 8), done={"j": 5})
    (event,) = server.says(holding("j", 8), done={"j": 7})
    assert event.gpu_us_done == 7


def test_seq_rises_over_all_jobs(server: Server) -> None:
    events = [*server.says(holding("a", 1)), *server.says(holding("a", 1), holding("b", 1))]
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert {event.boot for event in events} == {7}


def test_series_that_name_no_job_are_counted() -> None:
    found, nameless = gauges(
        [holding("j", 8), series(8), holding("x" * 201, 8), holding("n", float("nan"))]
    )
    assert (set(found), nameless) == ({"j"}, 3)


OBJECTIVE = Services(
    **dict.fromkeys(NUMBERS, "up"),  # type: ignore[arg-type]
    objective_p95_seconds=0.5,
    revenue_usd_per_request=0.01,
)
STAMP = Stamp(time_us=9, boot=7, seq=4)


def of_services(**changes: Series) -> tuple[list[ServiceSample], int]:
    known = {
        "requests_per_second": 20, "queue_depth": 3, "utilisation": 0.7,
        "first_token_p50_seconds": 0.2, "first_token_p95_seconds": 0.6, "error_ratio": 0.01,
        "gpus": 16,
    }  # fmt: skip
    found = {name: [series(value, service="chat", pool="h100")] for name, value in known.items()}
    found |= {name: [one] for name, one in changes.items()}
    return services(OBJECTIVE, found, fleet="f", stamp=STAMP, window_us=BEAT_US)


def test_a_service_that_is_wholly_known_is_a_sample() -> None:
    (sample,), partial = of_services()
    assert partial == 0
    assert (sample.service, sample.pool, sample.gpus, sample.seq) == ("chat", "h100", 16, 4)
    assert (sample.first_token_p50_us, sample.first_token_p95_us) == (200_000, 600_000)
    assert sample.violated
    assert sample.revenue_usd_micros == 6_000_000
    assert msgspec.json.decode(msgspec.json.encode(sample), type=ServiceSample) == sample


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1"])
def test_a_service_without_a_value_is_no_sample_and_counted(value: str) -> None:
    missing = series(value, service="chat", pool="h100")
    assert of_services(first_token_p95_seconds=missing) == ([], 1)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("value", ["1e12", "1e13", "1e305"])
def test_no_number_is_too_large_for_a_message(number: str, value: str) -> None:
    samples, partial = of_services(**{number: series(value, service="chat", pool="h100")})
    assert (len(samples), partial) == ((1, 0) if value == "1e12" else (0, 1))
    for sample in samples:
        assert msgspec.convert(msgspec.to_builtins(sample), ServiceSample) == sample


def test_no_job_works_more_than_a_message_can_hold(server: Server) -> None:
    server.says(holding("j", 1e12))
    server.now_us += MINUTE_US
    (told,) = server.says(holding("j", 1e12))
    assert msgspec.convert(msgspec.to_builtins(told), JobEvent) == told


@pytest.mark.parametrize(
    ("body", "why"),
    [(b'{"status":"error","error":"parse error"}', "parse error"),
     (b'{"status":"success","data":{"resultType":"matrix","result":[]}}', "matrix"),
     (b"<html>", "malformed")],
)  # fmt: skip
def test_an_answer_that_is_no_vector_says_why(body: bytes, why: str) -> None:
    with pytest.raises(NotAVector, match=why):
        vector(body)
