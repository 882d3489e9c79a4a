"""An hour of requests from a file is what the service gets, after an hour of its own."""

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from benchmarks.controlling.hour import WORLDS, play_hour, rates
from benchmarks.controlling.play import Entrant
from benchmarks.controlling.splits import LLM
from msgspec.structs import replace

from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.twin.config import TwinConfig

FIRST = datetime(2023, 11, 16, 18, 15, 46, tzinfo=UTC)


def folder_of(folder: Path, per_minute: list[int]) -> Path:
    """Return a folder whose trace has so many requests in each minute, and one more at its end."""
    (folder / "llm").mkdir(parents=True)
    with gzip.open(folder / LLM, "wt") as out:
        out.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for minute, count in enumerate([*per_minute, 1]):
            for one in range(count):
                at = FIRST + timedelta(minutes=minute, seconds=59 * one / max(count, 1))
                out.write(f"{at:%Y-%m-%d %H:%M:%S.%f}0,374,44\n")
    return folder


def entrant(share: float) -> Entrant:
    static = CONTROLLERS["static"]
    controller = static.make(static.turned(static.config(), share))
    return Entrant(name="static", setting=share, controller=controller)


def test_rates_are_those_of_whole_minutes_from_the_first_request(tmp_path: Path) -> None:
    assert rates(folder_of(tmp_path, [120, 0, 300])).tolist() == [2.0, 0.0, 5.0]


def test_service_is_judged_by_the_minutes_of_the_trace_alone(tmp_path: Path) -> None:
    """Nothing but ten minutes of a flood of requests is counted, and too little holds none."""
    config = replace(TwinConfig(seed=1), arrival_share=0.1)
    config = replace(config, pools=config.pools[2:])
    flood = folder_of(tmp_path / "flood", [12_000] * 10)
    calm = folder_of(tmp_path / "calm", [60] * 10)
    rule = RuleConfig()
    (small,) = play_hour(flood, config, [entrant(0.1)], rule)
    few, many = play_hour(calm, config, [entrant(0.1), entrant(1.0)], rule)
    assert small.minutes == few.minutes == 10 * WORLDS
    assert small.violated > 0.8 * small.minutes
    assert few.violated < 0.2 * few.minutes
    assert many.usd_per_hour > 3 * few.usd_per_hour > 0.0
    assert (few.name, few.setting) == ("static", pytest.approx(0.1))
