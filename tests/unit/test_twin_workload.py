"""Workloads and prices are functions of time, from a trace or without one."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from gpuloop.schemas.units import HOUR_US, SECOND_US
from gpuloop.twin.config import DEFAULT_START_US, Shape
from gpuloop.twin.market import BUILT_IN, build_market
from gpuloop.twin.workload import Generator, build_workload, kept

FIRST_HOUR = DEFAULT_START_US // HOUR_US
TRACES = os.environ.get("GPULOOP_TRACES")
needs_traces = pytest.mark.skipif(not TRACES, reason="GPULOOP_TRACES is not set")


def write_jobs(folder: Path, rows: list[str]) -> Path:
    (folder / "philly").mkdir()
    with gzip.open(folder / "philly/jobs.csv.gz", "wt") as file:
        file.write("timestamp,duration,num_gpus,gpu_time,cluster\n" + "\n".join(rows) + "\n")
    return folder


def build(folder: Path | None, which: str = "auto", start_us: int = DEFAULT_START_US):  # type: ignore[no-untyped-def]
    return build_workload(folder, which, start_us=start_us, seed=1, shape="bursty")


def test_missing_folder_falls_back_to_the_generator_and_says_so(tmp_path: Path) -> None:
    assert build(None).name == "generator:bursty"
    assert build(tmp_path).name == "generator:bursty"
    assert build(tmp_path, "generator:steady").name == "generator:steady"


def test_asking_for_a_trace_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for which in ("philly", "generator:odd", "borg"):
        with pytest.raises(ValueError, match="philly"):
            build(tmp_path, which)


def test_any_folder_of_the_layout_is_read_in_order_of_submission(tmp_path: Path) -> None:
    folder = write_jobs(
        tmp_path,
        ["2017-10-16 01:30:00,60.0,2,120.0,b", "2017-10-16 01:10:00,7200.0,1,7200.0,a",
         "2017-10-15 22:00:00,14400.0,8,115200.0,a"],
    )  # fmt: skip
    workload = build(folder)
    assert workload.name == "philly"
    jobs = workload.arrivals(FIRST_HOUR + 1)
    assert [(job.gpus, job.tenant) for job in jobs] == [(1, "a"), (2, "b")]
    (running,) = workload.running_at(DEFAULT_START_US)
    assert (running.gpus, running.work_us) == (8, 2 * HOUR_US)


def test_start_outside_the_trace_moves_to_its_first_midnight(tmp_path: Path) -> None:
    folder = write_jobs(
        tmp_path, ["2019-03-05 07:00:00,60.0,1,60.0,a", "2019-03-06 07:00:00,60.0,1,60.0,a"]
    )
    start = build(folder).start_us
    assert np.datetime64(start, "us") == np.datetime64("2019-03-05T00:00:00")


def test_job_keeps_its_name_in_a_shorter_cut_of_the_trace(tmp_path: Path) -> None:
    rows = [f"2017-10-16 0{h}:00:00,60.0,1,60.0,a" for h in range(5)]
    (tmp_path / "all").mkdir()
    (tmp_path / "cut").mkdir()
    whole, cut = write_jobs(tmp_path / "all", rows), write_jobs(tmp_path / "cut", rows[2:])
    assert build(whole).arrivals(FIRST_HOUR + 3) == build(cut).arrivals(FIRST_HOUR + 3)


def test_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "philly").mkdir()
    with gzip.open(tmp_path / "philly/jobs.csv.gz", "wt") as file:
        file.write("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not laid out"):
        build(tmp_path)


@pytest.mark.parametrize("shape", ["bursty", "cyclical", "flash", "steady"])
def test_generated_hours_repeat_and_are_in_order(shape: Shape) -> None:
    one, two = Generator(shape, 5, DEFAULT_START_US), Generator(shape, 5, DEFAULT_START_US)
    assert two.arrivals(FIRST_HOUR + 9) == one.arrivals(FIRST_HOUR + 9)
    jobs = one.arrivals(FIRST_HOUR)
    assert list(jobs) == sorted(jobs)
    assert all(FIRST_HOUR * HOUR_US <= j.submitted_us < (FIRST_HOUR + 1) * HOUR_US for j in jobs)


def test_shapes_differ_in_how_uneven_their_hours_are() -> None:
    spread = {}
    for shape in ("bursty", "cyclical", "steady"):
        generator = Generator(shape, 2, DEFAULT_START_US)  # type: ignore[arg-type]
        counts = [len(generator.arrivals(FIRST_HOUR + hour)) for hour in range(96)]
        spread[shape] = np.std(counts) / np.mean(counts)
    assert spread["steady"] < 0.25 < spread["cyclical"] < 0.7 < spread["bursty"]


def minutes_of(generator: Generator, day: int) -> np.ndarray:
    """Return how many jobs come in each minute of a day."""
    first = (FIRST_HOUR + 24 * day) * HOUR_US
    jobs = [j for hour in range(24) for j in generator.arrivals(FIRST_HOUR + 24 * day + hour)]
    return np.bincount([(j.submitted_us - first) // (60 * SECOND_US) for j in jobs], minlength=1440)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_flash_is_one_sudden_stretch_of_a_quiet_day(seed: int) -> None:
    generator = Generator("flash", seed, DEFAULT_START_US)
    begins = set()
    for day in range(10):
        minutes = minutes_of(generator, day)
        loud = np.convolve(minutes, np.ones(5), "same") > 14  # Quiet brings 3 of a mean, flash 29.
        edges = np.flatnonzero(np.diff(loud.astype(int), prepend=0, append=0))
        assert len(edges) == 2
        assert 20 <= edges[1] - edges[0] <= 95
        quiet = np.delete(minutes, np.arange(max(edges[0] - 5, 0), edges[1] + 5))
        assert 0.45 < quiet.mean() < 0.72
        assert minutes[edges[0] + 5 : edges[1] - 5].mean() > 4.5
        begins.add(int(edges[0]) // 60)
    assert len(begins) > 4


def test_day_with_a_flash_brings_about_as_many_jobs_as_a_steady_one() -> None:
    count = {
        shape: sum(minutes_of(Generator(shape, 4, DEFAULT_START_US), d).sum() for d in range(20))  # type: ignore[arg-type]
        for shape in ("flash", "steady")
    }
    assert count["flash"] == pytest.approx(count["steady"], rel=0.05)


def test_generated_load_is_near_that_of_philly() -> None:
    generator = Generator("steady", 3, DEFAULT_START_US)
    gpus = [
        sum(job.gpus for job in generator.running_at((FIRST_HOUR + 24 * day) * HOUR_US))
        for day in range(10)
    ]
    assert 300 < np.mean(gpus) < 650


def test_smaller_share_of_jobs_is_a_subset() -> None:
    jobs = Generator("steady", 3, DEFAULT_START_US).arrivals(FIRST_HOUR)
    assert set(kept(jobs, 0.5, seed=1)) < set(kept(jobs, 0.9, seed=1)) < set(kept(jobs, 1.0, 1))


def test_market_without_history_has_the_built_in_prices() -> None:
    market = build_market(
        None, region="us-central1", fleet_start_us=0, market_start="2025-01-29T21:00:00+00:00"
    )
    assert market.price("l4", "spot", 5 * HOUR_US) == BUILT_IN["l4", "spot"]
    assert "built-in" in market.source


def test_price_steps_at_its_date_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "market").mkdir()
    header = "snapshot_date,region,hour_usd,hour_spot_usd,accelerator,accelerator_count\n"
    rows = "2025-01-20,r,8.0,4.0,l4,8\n2025-01-25,r,8.0,4.0,l4,8\n2025-01-30,r,8.0,6.0,l4,8\n"
    with gzip.open(tmp_path / "market/gcp_gpu_prices.csv.gz", "wt") as file:
        file.write(header + rows + "2025-01-30,r,9.0,9.0,l4,1\n2025-01-30,other,7.0,7.0,l4,8\n")
    market = build_market(
        tmp_path, region="r", fleet_start_us=0, market_start="2025-01-29T21:00:00+00:00"
    )
    assert len(market.steps["l4", "spot"]) == 2
    assert market.price("l4", "spot", 3 * HOUR_US - SECOND_US) == 500_000
    assert market.price("l4", "spot", 3 * HOUR_US) == 750_000
    assert market.price("l4", "on_demand", 0) == 1_000_000


@needs_traces
def test_philly_trace_has_the_jobs_it_is_said_to_have() -> None:
    workload = build(Path(str(TRACES)), "philly")
    if workload.start_us != DEFAULT_START_US:
        pytest.skip("this cut of the trace lacks 16 October 2017")
    hours = range(FIRST_HOUR, FIRST_HOUR + 24)
    assert sum(len(workload.arrivals(hour)) for hour in hours) == 1281
