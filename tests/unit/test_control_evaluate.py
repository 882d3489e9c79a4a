"""Worlds of scored days: who runs in them, when they begin and what their days are called."""

import gzip
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from benchmarks.controlling import evaluate
from benchmarks.controlling.classes import CLASSES
from benchmarks.controlling.evaluate import (
    SYNTHETIC_DAYS,
    Plan,
    bounded,
    demanded,
    only,
    plan,
    reclaimed,
    scheduled,
)
from benchmarks.controlling.play import Entrant, Residual, Stage, play
from benchmarks.controlling.splits import Span, Split, split
from msgspec.structs import replace

from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.workload import DAY_US, Generator, JobSpec

FIRST_US = 20_000 * DAY_US


class Listed:
    """A workload of given jobs."""

    name = "listed"
    start_us = FIRST_US

    def __init__(self, *jobs: JobSpec) -> None:
        self._jobs = jobs

    def arrivals(self, hour: int) -> tuple[JobSpec, ...]:
        return tuple(job for job in self._jobs if job.submitted_us // HOUR_US == hour)

    def running_at(self, at_us: int) -> tuple[JobSpec, ...]:
        return ()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder of ten generated days that are laid out like Philly's."""
    found = tmp_path_factory.mktemp("traces")
    (found / "philly").mkdir()
    jobs = [
        job
        for hour in range(FIRST_US // HOUR_US, FIRST_US // HOUR_US + 240)
        for job in Generator("bursty", 77, FIRST_US).arrivals(hour)
    ]
    with gzip.open(found / "philly" / "jobs.csv.gz", "wt") as out:
        out.write("timestamp,duration,num_gpus,gpu_time,cluster\n")
        for job in jobs:
            at = np.datetime64(job.submitted_us, "us").astype("datetime64[s]")
            out.write(f"{str(at).replace('T', ' ')},{job.work_us / 1e6},{job.gpus},0,new\n")
    return found


def test_demand_is_what_runs_if_nothing_waits():
    config = replace(TwinConfig(), arrival_share=1.0)
    job = JobSpec(FIRST_US + HOUR_US, "one", 4, 2 * HOUR_US, "t")
    found = demanded(config, Listed(job), Span(FIRST_US, 1))
    total = sum(found.values())
    assert total[:5].tolist() == [0.0, 4.0, 4.0, 0.0, 0.0]


def test_a_new_folders_fleet_is_sized_by_its_first_days_which_are_not_scored(folder):
    parts = split(folder)
    assert not parts.known
    assert parts.bounds is not None
    fleet = bounded(TwinConfig(), parts.bounds, folder)
    assert [pool.nodes_max for pool in fleet.pools] != [p.nodes_max for p in TwinConfig().pools]
    for pool in fleet.pools:
        assert 1 <= pool.nodes_min <= pool.on_demand_nodes + pool.spot_nodes <= pool.nodes_max
    made = plan(parts, TwinConfig(), traces=folder, rule=RuleConfig())
    scored = {
        date
        for row, dates in zip(made.classes, made.dates, strict=True)
        for load, date in zip(row, dates, strict=True)
        if load is not None and " " not in date
    }
    assert scored <= {date for span in parts.test for date in span.dates}
    assert scored


def test_classes_that_a_folder_lacks_are_generated_and_called_synthetic(folder):
    made = plan(split(folder), TwinConfig(), traces=folder, rule=RuleConfig())
    assert made.synthetic
    pools = len(TwinConfig().pools)
    worlds = len(made.stage.configs)
    assert len(made.classes) == len(made.dates) == worlds * pools
    for load in made.synthetic:
        rows = [
            (one, date)
            for row, dates in zip(made.classes, made.dates, strict=True)
            for one, date in zip(row, dates, strict=True)
            if one == load
        ]
        assert rows
        assert all(date.startswith(f"{load} ") for _, date in rows)


def test_generated_weeks_of_a_class_are_of_several_seeds_and_their_days_are_apart(folder):
    made = plan(split(folder), TwinConfig(), traces=folder, rule=RuleConfig())
    pools = len(TwinConfig().pools)
    for load in made.synthetic:
        rows = [row for row, dates in enumerate(made.dates) if dates[0].startswith(f"{load} ")]
        seeds = {made.stage.configs[row // pools].seed for row in rows}
        assert len(seeds) == len(rows) / pools == ceil(SYNTHETIC_DAYS / made.stage.days) > 1
        days = {date for row in rows for date in made.dates[row]}
        assert len(days) == len(rows) / pools * made.stage.days >= SYNTHETIC_DAYS


@pytest.mark.parametrize(("fewest", "real"), [(0, True), (1_000, False)])
def test_real_days_are_scored_where_there_are_enough_of_their_class(
    folder, monkeypatch, fewest, real
):
    monkeypatch.setattr(evaluate, "FEWEST_DAYS", dict.fromkeys(CLASSES, fewest))
    made = plan(split(folder), TwinConfig(), traces=folder, rule=RuleConfig())
    assert ("bursty" in made.synthetic) is not real
    dates = [
        date
        for row, named in zip(made.classes, made.dates, strict=True)
        for load, date in zip(row, named, strict=True)
        if load == "bursty"
    ]
    assert dates
    assert all(date.startswith("bursty ") is not real for date in dates)


def test_worlds_without_a_day_of_a_class_are_left_out_and_other_classes_are_not_scored():
    """Three worlds of two pools; the second has no flash day."""
    config = TwinConfig()
    config = replace(config, pools=config.pools[:2])
    whole = Plan(
        stage=Stage(
            configs=[replace(config, seed=seed) for seed in range(3)],
            workloads=[Generator("flash", seed, FIRST_US) for seed in range(3)],
            traces=None,
            days=2,
        ),
        classes=(
            ("bursty", "flash"), (None, "bursty"),
            ("bursty", "bursty"), (None, None),
            ("steady", "steady"), ("flash", "flash"),
        ),
        dates=tuple((f"{row} one", f"{row} two") for row in range(6)),
        synthetic=frozenset({"steady", "flash"}),
    )  # fmt: skip
    some = only(whole, "flash")
    assert [one.seed for one in some.stage.configs] == [0, 2]
    assert list(some.stage.workloads) == [whole.stage.workloads[0], whole.stage.workloads[2]]
    assert some.classes == ((None, "flash"), (None, None), (None, None), ("flash", "flash"))
    assert [row[0] for row in some.dates] == ["0 one", "1 one", "4 one", "5 one"]
    assert some.synthetic == {"flash"}


def test_spot_nodes_are_taken_back_as_often_as_assumed_in_every_pool_and_nothing_else_changes():
    usual, often = TwinConfig(), reclaimed(TwinConfig(), 4.0)
    for one, other in zip(usual.pools, often.pools, strict=True):
        rate = one.spot_reclaims_per_node_hour
        assert other == replace(one, spot_reclaims_per_node_hour=4.0 * rate)
    assert replace(often, pools=usual.pools) == usual


def test_a_folder_without_jobs_is_only_generated():
    parts = Split(known=False, train=None, tune=None, bounds=None, test=(), llm=None)
    made = plan(parts, TwinConfig(), traces=None, rule=RuleConfig())
    assert made.synthetic == frozenset(CLASSES)


def test_a_schedule_knows_the_hours_of_the_week(folder):
    table = scheduled(TwinConfig(), folder, Span(FIRST_US, 7))
    assert all(len(hours) == 168 for hours in table.values())
    assert sum(len(hour) for hour in table["a100"]) == 168


def test_everyone_meets_the_same_world_and_only_acts_in_it_differently():
    stage = Stage(
        configs=[replace(TwinConfig(seed=3), start_us=FIRST_US)],
        workloads=[Generator("steady", 3, FIRST_US)],
        traces=None,
        days=1,
    )
    rule = CONTROLLERS["rule+forecast"]

    def entrant(name: str, alpha: float | None) -> Entrant:
        controller = rule.make()
        if alpha is not None:
            alphas = {"h100": alpha, "a100": alpha}
            controller = Residual(controller, lambda seen: np.full((len(seen), 4), 0.5), alphas)
        return Entrant(name=name, setting=0.0, controller=controller)

    days = []
    found = play(
        stage,
        [entrant("one", None), entrant("same", None), entrant("still", 0.0), entrant("other", 1.0)],
        tell=days.append,
    )
    assert days == [1]
    one, same, still, other = found.scores
    np.testing.assert_array_equal(one.cost_usd, same.cost_usd)
    np.testing.assert_array_equal(one.cost_usd, still.cost_usd)
    np.testing.assert_array_equal(one.violated, same.violated)
    assert (other.cost_usd[:2] > one.cost_usd[:2]).all()
    np.testing.assert_array_equal(other.cost_usd[2], one.cost_usd[2], "no alpha, no offset")
    assert (found.differing[3][:2] > 0.0).all(), "by pool and day"
    assert not found.differing[3][2].any(), "no alpha, no offset"
    for same_as_base in found.differing[:3]:
        assert same_as_base.shape == (3, 1)
        assert not same_as_base.any(), "who has no offset, or none of it, does as it is"
    np.testing.assert_allclose(found.lost_node_hours[0], found.lost_node_hours[1])
