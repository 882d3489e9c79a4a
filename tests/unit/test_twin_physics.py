"""The twin's closed forms against their definitions."""

import math

import numpy as np
import pytest

from gpuloop.twin import machines
from gpuloop.twin.books import Books
from gpuloop.twin.config import SERVICES
from gpuloop.twin.draws import hash64, uniform, uniform_grid
from gpuloop.twin.placement import Manner, Room, held_for, place
from gpuloop.twin.services import erlang_c, serve, wait_quantile


def erlang_c_by_definition(servers: int, load: float) -> float:
    """Sum the state probabilities, as textbooks write it."""
    waiting = load**servers / math.factorial(servers) * servers / (servers - load)
    return waiting / (sum(load**n / math.factorial(n) for n in range(servers)) + waiting)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (4, 3.2), (20, 17.0), (40, 39.0)])
def test_erlang_c_equals_its_definition(servers: int, load: float) -> None:
    assert erlang_c(servers, load) == pytest.approx(erlang_c_by_definition(servers, load), rel=1e-9)


def test_one_server_waits_as_m_m_1_does() -> None:
    """P(W > t) = rho exp(-(mu - lambda) t)."""
    wait = wait_quantile(erlang_c(1, 0.8), spare=0.2, quantile=0.95)
    assert 0.8 * math.exp(-(1.0 - 0.8) * wait) == pytest.approx(0.05)


def test_latency_agrees_with_a_simulated_queue() -> None:
    """Kiefer-Wolfowitz recursion of M/M/6 at 80 % load, seeded."""
    servers, rate, service = 6, 4.8, 1.0
    rng = np.random.default_rng(7)
    gaps, works = rng.exponential(1 / rate, 200_000), rng.exponential(1 / service, 200_000)
    backlog, waits = np.zeros(servers), np.empty(200_000)
    for index in range(200_000):
        backlog = np.maximum(backlog - gaps[index], 0.0)
        backlog.sort()
        waits[index] = backlog[0]
        backlog[0] += works[index]
    measured = float(np.mean(waits > 0))
    assert measured == pytest.approx(erlang_c(servers, rate), rel=0.03)
    expected = wait_quantile(erlang_c(servers, rate), servers * service - rate, quantile=0.95)
    assert float(np.quantile(waits, 0.95)) == pytest.approx(expected, rel=0.05)


def test_overload_builds_a_backlog_that_later_drains() -> None:
    service = SERVICES[0]
    busy = serve(service, rate=20.0, gpus=10, backlog=0.0)
    assert busy.violated
    assert busy.backlog > 0
    calm = serve(service, rate=5.0, gpus=10, backlog=busy.backlog)
    assert calm.backlog < busy.backlog
    assert calm.served > 5.0 * 60


def test_requests_are_served_lost_or_left() -> None:
    service = SERVICES[0]
    window = serve(service, rate=100.0, gpus=10, backlog=30.0)
    lost = window.error_ratio * 100.0 * 60
    assert window.served + window.backlog + lost == pytest.approx(30.0 + 100.0 * 60, abs=1.0)


def test_service_without_gpus_serves_nobody() -> None:
    window = serve(SERVICES[0], rate=10.0, gpus=0, backlog=0.0)
    assert (window.served, window.violated, window.error_ratio) == (0, True, 1.0)


def test_temperature_reaches_the_limit_when_predicted() -> None:
    cooling, start, end, limit = 4.0, 50.0, 110.0, 85.0
    seconds = machines.seconds_until(limit, start, end, cooling)
    assert seconds is not None
    assert end + (start - end) * machines.decay(seconds, cooling) == pytest.approx(limit)
    assert machines.seconds_until(limit, start, 84.0, cooling) is None


@pytest.mark.parametrize("name", sorted(machines.GPU_MODELS))
def test_throttled_clock_holds_the_limit_temperature(name: str) -> None:
    model = machines.GPU_MODELS[name]
    clock = machines.throttled_clock(model, 27.0, 3.0, 0.9)
    assert machines.MIN_CLOCK < clock < 1.0
    watts = machines.gpu_watts(model, 0.9, clock, 1.0)
    reached = machines.equilibrium(model, 27.0, 3.0, watts)
    assert reached == pytest.approx(model.throttle_celsius)


def test_healthy_gpu_never_throttles_at_full_load() -> None:
    for model in machines.GPU_MODELS.values():
        assert machines.throttled_clock(model, 30.0, 1.0, 1.0) == 1.0


def test_job_takes_the_fullest_node_that_holds_it() -> None:
    rooms = [Room("a", "r0", "spot", 8, 8), Room("b", "r0", "spot", 3, 8)]
    assert place(rooms, 2, Manner("spot")) == (("b", 2),)
    assert place(rooms, 4, Manner("spot")) == (("a", 4),)


def test_wide_gang_prefers_whole_nodes_of_one_rack() -> None:
    rooms = [Room(f"n{i}", f"r{i % 3}", "spot", 8, 8) for i in range(5)]
    placed = place(rooms, 16, Manner("spot"))
    assert placed is not None
    assert dict(placed) in ({"n0": 8, "n3": 8}, {"n1": 8, "n4": 8})


def test_gang_waits_when_whole_nodes_are_missing() -> None:
    rooms = [Room("a", "r0", "spot", 8, 8), Room("b", "r0", "spot", 7, 8)]
    assert place(rooms, 16, Manner("spot")) is None
    assert place(rooms, 12, Manner("spot")) == (("a", 8), ("b", 4))
    assert held_for(rooms, 16) == {"a", "b"}


def test_books_do_not_depend_on_how_often_they_are_read() -> None:
    read, unread = Books.open(("p",), 0), Books.open(("p",), 0)
    for books in (read, unread):
        books.flow("p", "revenue", 1_234_567, 0)
    for at_us in range(0, 7_200_000_000, 999_983):
        read.totals(at_us)
    end = 7_200_000_000
    assert read.totals(end) == unread.totals(end)
    assert read.totals(end)["p"]["revenue"] == 2 * 1_234_567


def test_costs_are_negative_in_the_totals() -> None:
    books = Books.open(("p",), 0)
    books.flow("p", "capacity_cost", 100, 0)
    books.book("p", "service_penalty", 5)
    totals = books.totals(3_600_000_000)["p"]
    assert (totals["capacity_cost"], totals["service_penalty"]) == (-100, -5)


def test_draws_are_uniform_and_keyed() -> None:
    draws = [uniform(1, "x", i) for i in range(20_000)]
    assert np.mean(draws) == pytest.approx(0.5, abs=0.01)
    assert uniform(1, "x", 5) == draws[5]
    assert uniform(2, "x", 5) != draws[5]
    assert uniform(1, "x1", 1) != uniform(1, "x", 11)


def test_noise_grid_is_uniform_and_independent_of_its_neighbours() -> None:
    bases = np.array([hash64("node", i) for i in range(500)], dtype=np.uint64)
    grid = uniform_grid(bases, 8, salt=3)
    assert grid.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(grid[:, 0], grid[:, 1])[0, 1]) < 0.15
    assert np.array_equal(uniform_grid(bases[:3], 8, salt=3), grid[:3])
