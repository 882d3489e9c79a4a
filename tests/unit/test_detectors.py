"""Detectors: what they notice, once, and what a restart or an illness does to what they know."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("river", reason="river is not installed: make setup EXTRAS=causes")


from builders import FLEET, START_US, at, pool_state, received
from gpuloop.reasoning.detectors import drift, episodes, fold, forest, peers
from gpuloop.reasoning.detectors.behaviour import METRICS, Law
from gpuloop.reasoning.detectors.drift import Mean
from gpuloop.reasoning.detectors.episodes import Episode, Finding, Rule
from gpuloop.reasoning.detectors.fold import Detectors, DetectorsState
from gpuloop.reasoning.detectors.forest import Forest
from gpuloop.reasoning.detectors.peers import Peers
from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.component import Output, load, save
from gpuloop.schemas.messages import Anomaly, NodeState
from gpuloop.schemas.messages.state import Feature
from gpuloop.schemas.units import HOUR_US, MINUTE_US

RULE = Rule(
    kind="peer", detector="test", enter=5.0, leave=3.0, minutes=3, within=4, quiet_minutes=5
)


def finding(score: float, subject: str = "n1") -> Finding:
    return Finding(
        subject=subject, pool="a100", metric="power", score=score, value=score, expected=0.0,
        evidence="because",
    )  # fmt: skip


def said(scores: Iterable[float], rule: Rule = RULE) -> list[tuple[int, str]]:
    """Return at which minute something was said about a series of scores, and what."""
    known: dict[str, Episode] = {}
    found = []
    for minute, score in enumerate(scores, 1000):
        anomaly = episodes.follow(known, rule, finding(score), minute, FLEET)
        if anomaly is not None:
            found.append((minute - 1000, anomaly.state))
    return found


def test_an_anomaly_opens_when_the_score_holds_and_closes_when_it_stays_low() -> None:
    assert said([0, 9, 9, 9, 9, 0, 0, 0, 0, 0]) == [(3, "open"), (9, "closed")]


def test_a_single_high_minute_is_no_anomaly() -> None:
    assert said([0, 9, 0, 0, 0, 9, 0, 0, 0]) == []


def test_a_score_between_the_thresholds_neither_opens_nor_closes() -> None:
    assert said([4] * 20) == []
    assert said([9, 9, 9, *[4] * 20]) == [(2, "open")]


def test_what_returns_within_the_quiet_minutes_is_still_the_same_anomaly() -> None:
    assert said([9, 9, 9, 0, 0, 0, 0, 9, 9, 9, 0, 0, 0, 0]) == [(2, "open")]


def test_an_anomaly_says_what_it_rests_on_and_closes_under_its_own_id() -> None:
    known: dict[str, Episode] = {}
    made = [
        episodes.follow(known, RULE, finding(score), minute, FLEET)
        for minute, score in enumerate([6.0, 7.0, 8.0, *[0.0] * 5], 1000)
    ]
    opened, closed = (one for one in made if one is not None)
    assert (opened.kind, opened.detector, opened.threshold) == ("peer", "test", 5.0)
    assert (opened.since_us, opened.score, opened.evidence) == (1000 * MINUTE_US, 8.0, "because")
    assert (closed.anomaly_id, closed.state) == (opened.anomaly_id, "closed")
    assert known == {}


def test_a_subject_that_is_gone_is_closed_and_forgotten() -> None:
    known: dict[str, Episode] = {}
    for minute in range(3):
        episodes.follow(known, RULE, finding(9.0), minute, FLEET)
    assert episodes.forget_silent(known, "a100", 20) == []
    assert [one.state for one in episodes.forget_silent(known, "a100", 40)] == ["closed"]
    assert known == {}


def test_episodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "MAX_EPISODES", 3)
    known: dict[str, Episode] = {}
    for number in range(9):
        episodes.follow(known, RULE, finding(9.0, f"n{number}"), 0, FLEET)
    assert len(known) == 3


def test_a_law_is_the_line_through_its_points() -> None:
    rng, law = np.random.default_rng(1), Law()
    for _ in range(60):
        x = rng.uniform(0, 1, 5)
        law.learn(x, 70 + 500 * x)
    assert law.known
    np.testing.assert_allclose(law.expect(np.array([0.0, 0.5])), [70, 320], rtol=1e-6)


def test_a_law_of_one_load_only_is_not_known() -> None:
    law = Law()
    for _ in range(60):
        law.learn(np.full(5, 0.5), np.full(5, 300.0))
    assert not law.known


def population(rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    usual, width = np.array([0.6, 0.3, 0.0, 0.0]), np.array([0.08, 0.04, 0.02, 1.5])
    return usual + width * rng.uniform(-1.5, 1.5, (rows, len(METRICS)))


def test_a_node_is_far_from_its_peers_only_in_the_metric_that_departs() -> None:
    known = Peers.empty()
    peers.learn(known, population(3_000))
    ill = np.array([[0.6, 0.3, -0.5, 0.0]])
    scores, usual = peers.judge(known, ill)
    assert scores[0, 2] < -5
    assert (np.abs(scores[0, [0, 1, 3]]) < 1).all()
    np.testing.assert_allclose(usual, [0.6, 0.3, 0.0, 0.0], atol=0.2)


def test_nobody_is_far_from_peers_that_are_hardly_known() -> None:
    known = Peers.empty()
    peers.learn(known, population(peers.ENOUGH - 1))
    assert not peers.judge(known, np.full((1, 4), 99.0))[0].any()


def grown(rows: int = 3 * forest.WINDOW) -> Forest:
    trees = Forest.empty()
    for chunk in np.split(population(rows), rows // 64):
        forest.judge_and_learn(trees, chunk, [True] * len(chunk))
    return trees


def test_a_rare_combination_scores_high_and_a_usual_one_low() -> None:
    hung, usual = np.array([[0.02, 0.0, -0.6, 0.0]]), population(200, seed=5)
    trees = grown()
    scores = forest.judge_and_learn(trees, np.vstack([hung, usual]), [False] * 201)
    assert scores[0] > 0.8
    assert max(scores[1:]) < 0.6


def test_a_forest_says_nothing_before_it_has_seen_a_window() -> None:
    trees = Forest.empty()
    assert forest.judge_and_learn(trees, np.full((1, 4), 9.0), [True]) == [0.0]


def test_what_is_not_normal_is_not_learned() -> None:
    trees = grown()
    before = bytes(trees.masses)
    forest.judge_and_learn(trees, population(50), [False] * 50)
    assert bytes(trees.masses) == before


def test_two_forests_in_turn_and_one_that_is_loaded_do_not_mix() -> None:
    alone, other = grown(1024), Forest.empty()
    turns = load(Forest, save(alone))
    for seed in range(20):
        rows = population(64, seed)
        first = forest.judge_and_learn(alone, rows, [True] * 64)
        forest.judge_and_learn(other, rows * 0.5, [True] * 64)
        turns = load(Forest, save(turns))
        assert forest.judge_and_learn(turns, rows, [True] * 64) == first
    assert save(turns) == save(alone)


def moved(values: Iterable[float], restart_at: int = -1) -> list[float]:
    mean, found = Mean(), []
    for minute, value in enumerate(values):
        if minute == restart_at:
            mean = load(Mean, save(mean))
        found.append(drift.follow(mean, value))
    return found


def noise(minutes: int, level: float, seed: int = 0) -> list[float]:
    return (level + np.random.default_rng(seed).normal(0, 0.1, minutes)).tolist()


def test_a_mean_that_stays_does_not_drift() -> None:
    assert max(map(abs, moved(noise(3_000, 0.4)))) < 0.1


def test_a_mean_that_moves_is_noticed_by_how_far_it_moved() -> None:
    found = moved([*noise(400, 0.4), *noise(200, 1.6, seed=1)])
    assert max(map(abs, found[:400])) < 0.1
    assert found[-1] == pytest.approx(1.2, abs=0.15)


def test_a_mean_that_creeps_is_noticed_too() -> None:
    creep = (np.linspace(0, 1.5, 600) + noise(600, 0.4, seed=2)).tolist()
    assert moved([*noise(400, 0.4), *creep])[-1] > 1.0


def test_what_lasts_for_a_day_is_the_new_normal() -> None:
    assert moved([*noise(300, 0.4), *noise(2_000, 1.6, seed=1)])[-1] == 0.0


@pytest.mark.parametrize("restart_at", [50, 390, 410, 500])
def test_a_restart_does_not_change_a_drift(restart_at: int) -> None:
    series = [*noise(400, 0.4), *noise(200, 1.6, seed=1)]
    assert moved(series, restart_at) == moved(series)


# The component.


def node(name: str, minute: int, *, rng: np.random.Generator, **changes: Any) -> NodeState:
    used = 0.3 + 0.6 * (hash_of(name) % 97) / 97
    sensed = {
        "utilisation": used * rng.uniform(0.99, 1.01),
        "sm_active": 0.6 * used * rng.uniform(0.95, 1.05),
        "tensor_active": 0.2 * used * rng.uniform(0.95, 1.05),
        "power_watts": 70 + 500 * used * rng.uniform(0.99, 1.01),
        "temperature_celsius": 30 + 30 * used + rng.normal(0, 0.4),
    } | changes.pop("sensed", {})
    return NodeState(
        fleet=FLEET, node=name, pool="a100", rack="r1", gpu_model="a100", billing="spot", gpus=8,
        event_time_us=START_US + minute * MINUTE_US, boot=1, seq=minute,
        features={n: Feature(value=v, age_us=0, quality=1.0) for n, v in sensed.items()},
        **changes,
    )  # fmt: skip


def hash_of(name: str) -> int:
    return sum(ord(letter) * (place + 7) for place, letter in enumerate(name))


@pytest.mark.parametrize("speaks", ["all", "late ones only"])
def test_of_more_nodes_than_there_is_room_for_some_are_followed_for_long(
    monkeypatch: pytest.MonkeyPatch, speaks: str
) -> None:
    monkeypatch.setattr(fold, "MAX_NODES", 4)
    rng = np.random.Generator(np.random.Philox(1))
    component, names = Detectors(FLEET), [f"n{number}" for number in range(6)]
    state = component.initial()
    for minute in range(12):
        for name in names[4:] if speaks == "late ones only" and minute > 5 else names:
            said = received("state.nodes", node(name, minute, rng=rng))
            state, _ = component.step(state, said, at(START_US + minute * MINUTE_US))
    assert len(state.nodes) == 4
    followed = {name for name, memory in state.nodes.items() if len(memory.powers) == 4}
    assert followed >= (set(names[:4]) if speaks == "all" else set(names[4:]))


NODES = [f"a100-d{number:02}" for number in range(24)]


def live(
    first: int,
    minutes: int,
    state: DetectorsState | None = None,
    *,
    ill: dict[str, Any] | None = None,
    patients: int = 1,
    silent: bool = False,
) -> tuple[DetectorsState, list[Anomaly], list[Output]]:
    """Let a pool of nodes live: the first may be silent, the first `patients` may be ill."""
    component = Detectors(FLEET)
    state = component.initial() if state is None else state
    written: list[Output] = []
    for minute in range(first, first + minutes):
        rng = np.random.default_rng(minute)
        for number, name in enumerate(NODES):
            if silent and number == 0:
                continue
            changes = dict(ill) if ill and number < patients else {}
            one = node(name, minute, rng=rng, **changes)
            state, outputs = component.step(
                state, received("state.nodes", one), at(one.event_time_us)
            )
            written += outputs
        pool = pool_state(tick_us=START_US + minute * MINUTE_US, nodes_heard=len(NODES) - silent)
        state, outputs = component.step(state, received("state.pools", pool), at(pool.tick_us))
        written += outputs
    return state, [o.message for o in written if isinstance(o.message, Anomaly)], written


@pytest.fixture(scope="module")
def healthy() -> bytes:
    state, found, _ = live(0, 240)
    assert found == []
    return save(state)


def after(healthy: bytes, minutes: int = 15, **changes: Any) -> list[tuple[str, str, str]]:
    _, found, _ = live(240, minutes, load(DetectorsState, healthy), **changes)
    return [(one.kind, one.subject, one.metric) for one in found if one.state == "open"]


def test_a_healthy_pool_is_silent(healthy: bytes) -> None:
    assert after(healthy, 120) == []


def test_a_node_that_draws_too_little_for_its_work_departs_from_its_peers(healthy: bytes) -> None:
    assert after(healthy, ill={"sensed": {"power_watts": 90.0}}) == [
        ("peer", NODES[0], "power_excess")
    ]


def test_a_doubted_sensor_is_an_anomaly_at_once_and_until_it_is_believed_for_a_while(
    healthy: bytes,
) -> None:
    state = load(DetectorsState, healthy)
    state, found, _ = live(240, 3, state, ill={"doubts": {"power_watts": "frozen"}})
    assert [(a.kind, a.metric, a.state, a.evidence) for a in found] == [
        ("sensor", "power_watts", "open", "power_watts is frozen")
    ]
    _, later, _ = live(243, 10, state)
    assert [(a.anomaly_id, a.state) for a in later] == [(found[0].anomaly_id, "closed")]


def test_a_rented_node_that_is_not_heard_is_named(healthy: bytes) -> None:
    state = load(DetectorsState, healthy)
    _, found, _ = live(240, 6, state, silent=True)
    (one,) = found
    assert (one.kind, one.subject, one.metric, one.state) == (
        "level",
        "a100",
        "nodes_heard",
        "open",
    )
    assert one.evidence == f"silent: {NODES[0]}"


@pytest.mark.parametrize(("minutes", "opened"), [(10, 0), (20, 1)])
def test_a_pool_of_which_nobody_is_heard_is_silent_only_after_a_while(
    healthy: bytes, minutes: int, opened: int
) -> None:
    component, state, found = Detectors(FLEET), load(DetectorsState, healthy), 0
    for minute in range(240, 240 + minutes):
        pool = pool_state(tick_us=START_US + minute * MINUTE_US, nodes_heard=0)
        state, outputs = component.step(state, received("state.pools", pool), at(pool.tick_us))
        found += len(outputs)
    assert found == opened


def test_a_restart_changes_no_anomaly(healthy: bytes) -> None:
    ill = {"sensed": {"power_watts": 90.0}}
    whole, _, expected = live(240, 12, load(DetectorsState, healthy), ill=ill)
    state, _, first = live(240, 2, load(DetectorsState, healthy), ill=ill)
    rest, _, second = live(242, 10, load(DetectorsState, save(state)), ill=ill)
    assert [*first, *second] == expected
    assert save(rest) == save(whole)


def test_a_node_that_was_said_twice_or_late_changes_nothing(healthy: bytes) -> None:
    component, state = Detectors(FLEET), load(DetectorsState, healthy)
    again = node(NODES[3], 239, rng=np.random.default_rng(239), sensed={"power_watts": 9.0})
    state, outputs = component.step(
        state, received("state.nodes", again), at(START_US + 5 * HOUR_US)
    )
    assert outputs == ()
    assert save(state) == healthy


def test_a_node_from_the_far_future_is_refused() -> None:
    component = Detectors(FLEET)
    far = node("n1", 600, rng=np.random.default_rng(0))
    with pytest.raises(BadInput):
        component.step(component.initial(), received("state.nodes", far), at(START_US))


@pytest.mark.parametrize("absurd", [1e308, -1e308, 1e20])
def test_a_pool_full_of_absurd_readings_teaches_nothing(healthy: bytes, absurd: float) -> None:
    state, wrong = load(DetectorsState, healthy), {"sensed": {"power_watts": absurd}}
    state, found, _ = live(240, 10, state, ill=wrong, patients=len(NODES))
    assert found == []
    assert abs(state.pools["a100"].laws.power.xy) < 1e9


WORN = 0.3 + 0.6 * (hash_of(NODES[0]) % 97) / 97
WEAR = {"sensed": {
    "sm_active": 0.42 * WORN, "tensor_active": 0.09 * WORN,
    "power_watts": 0.75 * (70 + 500 * WORN), "temperature_celsius": 33 + 24 * WORN,
}}  # fmt: skip


def test_what_is_ill_for_hours_does_not_become_normal(healthy: bytes) -> None:
    draws_little = {"sensed": {"power_watts": 90.0}}
    state = load(DetectorsState, healthy)
    _, found, _ = live(240, 120, state, ill=draws_little, patients=12)
    peer = [one for one in found if one.kind == "peer"]
    assert sorted(one.subject for one in peer) == NODES[:12]
    assert {one.state for one in peer} == {"open"}


def test_small_departures_together_are_rare_where_none_alone_is(healthy: bytes) -> None:
    assert after(healthy, ill=WEAR) == [("joint", NODES[0], "behaviour")]


def test_memory_is_bounded(healthy: bytes) -> None:
    assert len(healthy) < 100_000
