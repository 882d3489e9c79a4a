"""The control benchmark's command: from what was lived through to page and last line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import control
from benchmarks.controlling import evaluate, report, tuning
from benchmarks.controlling.entrants import POLICY, RULE, Cast, Field, field_of, policies, untuned
from benchmarks.controlling.evaluate import Plan
from benchmarks.controlling.play import Played, Stage
from benchmarks.controlling.results import write_json
from benchmarks.controlling.service import Score
from benchmarks.controlling.splits import Split

from gpuloop.loop.learn.registry import shipped
from gpuloop.reasoning.baselines.catalogue import CONTROLLERS
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.workload import Generator

ROOT = Path(control.__file__).parents[1]
DAYS, ROWS = 4, 3
NEW = Split(known=False, train=None, tune=None, bounds=None, test=(), llm=None)


def everyone() -> Field:
    names = [*CONTROLLERS, POLICY]
    settings = (0.0, 1.0)
    return Field(
        entrants=(),
        places={name: ((2 * place, 2 * place + 1),) for place, name in enumerate(names)},
        settings=dict.fromkeys(names, settings),
        tuned=dict.fromkeys(names, 0.0),
        alphas=({"h100": 0.5, "l4": 0.0}, {"h100": 0.0}),
    )


def lived(cheaper: float) -> Played:
    """Return days on which two settings trade service for money, the policy's at another cost."""
    scores = []
    for name in [*CONTROLLERS, POLICY]:
        for violated, usd in ((40, 100.0), (20, 130.0)):
            cost = usd * (cheaper if name == POLICY else 1.0)
            scores.append(
                Score(
                    cost_usd=np.full((ROWS, DAYS), cost),
                    judged=np.full((ROWS, DAYS), 100),
                    violated=np.full((ROWS, DAYS), violated),
                    minutes=np.tile([[0], [0], [1440]], (1, DAYS)),
                    minutes_violated=np.tile([[0], [0], [30]], (1, DAYS)),
                )
            )
    return Played(
        scores=tuple(scores),
        lost_node_hours=tuple(np.zeros(ROWS) for _ in scores),
        differing=tuple(
            np.outer([1.0, 2.0, 3.0], np.full(DAYS, 0.01 * place)) for place in range(len(scores))
        ),
    )


def week() -> Plan:
    config = TwinConfig()
    return Plan(
        stage=Stage(
            configs=[config],
            workloads=[Generator("bursty", 0, config.start_us)],
            traces=None,
            days=DAYS,
        ),
        classes=(("bursty",) * DAYS, ("steady", "bursty", None, "bursty"), ("bursty",) * DAYS),
        dates=tuple(tuple(f"2020-01-0{day}" for day in range(1, DAYS + 1)) for _ in range(ROWS)),
        synthetic=frozenset(),
    )


def test_each_class_that_has_days_is_compared_and_told_in_one_line():
    found = control.results_of(week(), everyone(), lived(cheaper=0.9))
    told = json.loads(write_json(found))
    assert set(told) == {"bursty", "steady"}
    bursty = told["bursty"]
    assert bursty["cost_at_equal_service_vs_rule"]["value"] == pytest.approx(0.9)
    assert bursty["alpha"] == 0.5
    policy = 2 * len(CONTROLLERS)
    shares = [1.0] * 4 + [2.0] * 2 + [3.0] * 4
    assert bursty["share_of_decisions_differing"] == pytest.approx(0.01 * policy * np.mean(shares))
    assert told["steady"]["share_of_decisions_differing"] == pytest.approx(0.02 * policy)
    assert bursty["avoidable_cost_vs_hpa"] is None
    assert bursty["service"] is not None
    assert told["steady"]["service"] is None, "the pool that serves had no steady day"
    page = report.markdown(found)
    assert "worlds of 4 days" in page
    assert "generated days" not in page
    assert "the policy that ships first: h100 0.5; 0." in page
    assert control.QUICK in page, "what has no bound says so"


def test_page_says_which_classes_were_generated():
    made = dataclasses.replace(week(), synthetic=frozenset({"flash", "steady"}))
    assert any("Of steady, flash loads" in note for note in control.notes(made, everyone()))


def test_variants_are_played_by_the_rule_hpa_and_the_policy_on_bursty_days_alone(monkeypatch):
    usual = control.results_of(week(), everyone(), lived(cheaper=0.9))
    casts = []

    def played(cast):
        casts.append(cast)
        rows, entrants = len(cast.plan().classes), len(cast.field().entrants)
        score = Score(
            cost_usd=np.full((rows, 7), 1.0),
            judged=np.full((rows, 7), 100),
            violated=np.full((rows, 7), 10),
            minutes=np.zeros((rows, 7)),
            minutes_violated=np.zeros((rows, 7)),
        )
        return Played(
            scores=(score,) * entrants,
            lost_node_hours=(np.zeros(rows),) * entrants,
            differing=(np.zeros((rows, 7)),) * entrants,
        )

    monkeypatch.setattr(control, "play_apart", played)
    monkeypatch.setattr(evaluate, "SYNTHETIC_DAYS", 7)
    found = control.variants(Cast(parts=NEW, config=TwinConfig(), traces=None), usual)
    assert [one.assumption.split()[3] for one in found] == ["0.25", "1", "4"]
    assert found[1].classes == tuple(one for one in usual.classes if one.load == "bursty")
    for variant in found:
        assert [one.load for one in variant.classes] == ["bursty"]
    assert {one.name for one in found[0].classes[0].batch.controllers} == {RULE, "hpa", POLICY}
    spot = TwinConfig().pools[1].spot_reclaims_per_node_hour
    rates = [cast.config.pools[1].spot_reclaims_per_node_hour for cast in casts]
    assert rates == [0.25 * spot, 4.0 * spot]


def test_everyone_is_entered_at_all_settings_and_the_policy_at_what_it_earned():
    found = field_of(NEW, TwinConfig(), Path())
    kept = tuning.load()
    assert set(found.places) == {*CONTROLLERS, POLICY}
    places = [place for seeds in found.places.values() for one in seeds for place in one]
    assert sorted(places) == list(range(len(found.entrants)))
    assert found.tuned[POLICY] == kept[RULE].best
    assert found.alphas[0] == shipped()[0].alphas
    assert len(found.places[POLICY]) == len(policies()) == 5
    for name, seeds in found.places.items():
        for places in seeds:
            told = [found.entrants[place].setting for place in places]
            assert told == list(found.settings[name])
    assert [one.name for one in found.usual] == list(found.places)


def test_nothing_but_a_schedule_comes_from_the_traces():
    for name in CONTROLLERS:
        assert untuned(name, NEW, TwinConfig(), Path()) == {}


def test_a_folder_with_nothing_to_score_is_refused_in_words(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "control.py", "--quick", "--traces", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "nothing to score" in done.stderr
