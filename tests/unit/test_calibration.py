"""The calibration report says what agrees, what does not, and by what it was measured."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.calibrating.figures import Assumption, Figure, as_json, markdown, shown
from benchmarks.calibrating.played import play
from benchmarks.calibrating.serving import fifo_waits

from gpuloop.twin.services import erlang_c
from gpuloop.twin.workload import JOBS


def figure(*model: float, published: float = 100.0, others: tuple[float, ...] = ()) -> Figure:
    return Figure(
        group="Jobs", name="mean wait", unit="s", model=model, published=published,
        source="Philly", standing="unused", others=others, note="rounds",
    )  # fmt: skip


def test_a_tenth_away_agrees_and_more_does_not() -> None:
    assert figure(109.0).verdict == figure(91.0).verdict == "agrees"
    assert figure(112.0).verdict == "off"


def test_seeds_on_both_sides_of_what_was_published_agree() -> None:
    assert figure(50.0, 110.0).verdict == "agrees"
    assert figure(50.0, 80.0).verdict == "off"


def test_a_value_between_clusters_lies_within_their_range() -> None:
    assert figure(300.0, others=(400.0,)).verdict == "within the range"
    assert figure(500.0, others=(400.0,)).verdict == "off"


def test_page_says_first_where_the_twin_is_off() -> None:
    page = markdown(
        [figure(100.0), figure(500.0)],
        [Assumption(name="reclaims", value="0.01 an hour", basis="none published")],
        "How it was measured.",
    )
    head, _, tables = page.partition("## Jobs")
    assert "mean wait: 500 s against 100 s published (Philly); rounds." in head
    assert "1 agree" in head
    assert "1 are off" in head
    assert "| +400% | **off** | unused | Philly |" in tables
    assert "| reclaims | 0.01 an hour | none published |" in tables


def test_machines_read_the_same_verdicts() -> None:
    told = json.loads(json.dumps(as_json([figure(500.0)])))
    assert told["figures"][0]["verdict"] == "off"


def test_nothing_published_as_zero_is_divided_by() -> None:
    assert figure(0.5, published=0.0).difference is None


def test_values_are_shown_as_people_read_them() -> None:
    assert shown(0.305, "%") == "30.5 %"
    assert shown(3_760.6, "s") == "3,761 s"
    assert shown(1.0, "") == "1"


def test_queue_of_a_trace_waits_as_the_formula_says_where_it_holds() -> None:
    """Poisson arrivals and exponential lengths: Erlang C."""
    rng, servers, load = np.random.default_rng(0), 5, 3.5
    at = np.cumsum(rng.exponential(1.0, 200_000))
    waits = fifo_waits(at, rng.exponential(load, len(at)), servers)
    assert np.mean(waits > 0) == pytest.approx(erlang_c(servers, load), rel=0.02)


def test_one_server_serves_one_request_after_the_other() -> None:
    waits = fifo_waits(np.array([0.0, 1.0, 1.0]), np.array([3.0, 1.0, 1.0]), 1)
    assert waits.tolist() == [0.0, 2.0, 3.0]


def test_what_is_played_is_read_from_telemetry(tmp_path: Path) -> None:
    path = tmp_path / JOBS
    path.parent.mkdir(parents=True)
    rows = ["timestamp,duration,num_gpus,cluster"]
    rows += [f"2017-10-16 00:{minute:02d}:00,3600,1,t" for minute in range(1, 31)]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    played = play(0, tmp_path, 3)
    assert len(played.waits) + played.ended["cancelled"] > 10
    assert played.node_hours == 4 * 64
    assert played.gpus == 8 * played.node_hours
    assert played.sensor("utilisation", "a100").max() > 0
