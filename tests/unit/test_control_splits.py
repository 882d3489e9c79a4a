"""No day is scored that anything was trained or tuned on, in whichever folder it comes."""

import gzip
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from benchmarks.controlling.splits import DIGESTS, LLM, TRAIN, TUNE, Split, midnight_us, split

from gpuloop.twin.workload import JOBS, read_philly

TRACES = os.environ.get("GPULOOP_TRACES")
HEADER = "timestamp,duration,num_gpus,gpu_time,cluster\n"


def folder_of(folder: Path, rows: list[str]) -> Path:
    (folder / "philly").mkdir()
    with gzip.open(folder / JOBS, "wt") as file:
        file.write(HEADER + "\n".join(rows) + "\n")
    return folder


def days_of(first: str, counts: list[int], *, tenant: str = "a", minute: int = 10) -> list[str]:
    """Return rows of days with so many jobs each, the last of which comes at 23:`minute`."""
    rows = []
    for day, count in enumerate(counts):
        date = datetime.fromisoformat(first).replace(tzinfo=UTC) + timedelta(days=day)
        for job in range(count):
            at = date + timedelta(hours=23 * job // max(count - 1, 1), minutes=minute)
            rows.append(f"{at:%Y-%m-%d %H:%M:%S},60.0,1,60.0,{tenant}")
    return rows


def dates(found: Split) -> list[tuple[str, ...]]:
    return [span.dates for span in found.test]


def test_first_three_days_of_a_new_folder_set_the_bounds_and_are_not_scored(tmp_path: Path) -> None:
    found = split(folder_of(tmp_path, days_of("2020-05-01", [24] * 5)))
    assert found.bounds is not None
    assert found.bounds.dates == ("2020-05-01", "2020-05-02", "2020-05-03")
    assert dates(found) == [("2020-05-04", "2020-05-05")]
    assert (found.known, found.train, found.tune, found.llm) == (False, None, None, None)


def test_days_that_are_not_whole_are_left_out(tmp_path: Path) -> None:
    rows = days_of("2020-05-01", [24] * 6)
    found = split(folder_of(tmp_path, rows[2:-1]))
    assert found.bounds is not None
    assert found.bounds.dates[0] == "2020-05-02"
    assert dates(found) == [("2020-05-05",)]


def test_days_before_a_log_is_in_use_do_not_set_the_bounds(tmp_path: Path) -> None:
    found = split(folder_of(tmp_path, days_of("2020-05-01", [1, 0, 2, 24, 24, 24, 24, 24, 24])))
    assert found.bounds is not None
    assert found.bounds.dates[0] == "2020-05-04"


def test_quiet_day_amid_others_is_scored(tmp_path: Path) -> None:
    found = split(folder_of(tmp_path, days_of("2020-05-01", [24, 24, 24, 24, 0, 24])))
    assert dates(found) == [("2020-05-04", "2020-05-05", "2020-05-06")]


def test_days_of_philly_that_were_taught_are_not_scored_under_another_roof(tmp_path: Path) -> None:
    """Some tenants of the trace, so that no day's digest is that of the whole."""
    found = split(folder_of(tmp_path, days_of("2017-10-10", [24] * 8, tenant="6214e9")))
    assert dates(found) == [("2017-10-16", "2017-10-17")]
    (tmp_path / "other").mkdir()
    others = split(folder_of(tmp_path / "other", days_of("2017-10-10", [24] * 8, tenant="x")))
    assert dates(others)[0][0] == "2017-10-13"


def test_folder_with_nothing_new_says_so(tmp_path: Path) -> None:
    taught = days_of("2017-10-01", [24] * 10, tenant="6214e9")
    with pytest.raises(ValueError, match="10 whole days, and 10 days that were trained or tuned"):
        split(folder_of(tmp_path, taught))


def test_folder_with_too_few_days_says_how_many_it_takes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 whole days.*one new day are needed"):
        split(folder_of(tmp_path, days_of("2020-05-01", [24] * 3)))


def test_folder_without_anything_usable_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"philly/jobs.csv.gz nor llm/azure"):
        split(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        split(tmp_path / "none")
    (tmp_path / "philly").mkdir()
    with gzip.open(tmp_path / JOBS, "wt") as file:
        file.write("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not laid out"):
        split(tmp_path)


def test_hour_of_a_language_model_alone_is_for_tests_only(tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / LLM).touch()
    found = split(tmp_path)
    assert found.llm == tmp_path / LLM
    assert (found.test, found.train, found.tune) == ((), None, None)


def test_training_tuning_and_scored_weeks_follow_each_other() -> None:
    assert TRAIN.dates[0] == "2017-09-25"
    assert TRAIN.dates[-1] == "2017-10-08"
    assert TUNE.dates == tuple(f"2017-10-{day:02}" for day in range(9, 16))
    assert len(DIGESTS) == TRAIN.days + TUNE.days


@pytest.mark.skipif(not TRACES, reason="GPULOOP_TRACES is not set")
class TestPhilly:
    """The published trace, where it is whole."""

    def test_weeks_are_those_that_were_fixed(self) -> None:
        if len(read_philly(Path(str(TRACES)) / JOBS)) != 68_063:
            pytest.skip("this folder does not hold the whole trace")
        found = split(Path(str(TRACES)))
        assert found.known
        assert (found.train, found.tune, found.bounds) == (TRAIN, TUNE, None)
        assert found.test[0].first_us == midnight_us("2017-10-16")

    def test_known_weeks_are_recognised_among_other_days(self, tmp_path: Path) -> None:
        """Tenants are renamed, but for those of three tuning days: only these are known."""
        jobs = read_philly(Path(str(TRACES)) / JOBS)
        rows = []
        for job in jobs:
            at = datetime.fromtimestamp(job.submitted_us / 1e6, UTC)
            if not "2017-10-05" <= f"{at:%Y-%m-%d}" <= "2017-10-18":
                continue
            kept = 11 <= at.day <= 13
            tenant = job.tenant if kept else f"other {job.tenant}"
            seconds = job.work_us / 1e6
            rows.append(f"{at:%Y-%m-%d %H:%M:%S},{seconds},{job.gpus},0,{tenant}")
        if not rows:
            pytest.skip("this folder lacks these weeks")
        found = split(folder_of(tmp_path, rows))
        assert not found.known
        spans = [(span[0], span[-1]) for span in dates(found)]
        assert spans == [("2017-10-08", "2017-10-10"), ("2017-10-14", "2017-10-18")]
