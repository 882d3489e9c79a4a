import random  # noqa: TID251 - DoWhy draws from it
import threading
from time import monotonic

import numpy as np
import pytest
from msgspec.structs import replace

from gpuloop.loop.services.causal_worker import CausalWorker
from gpuloop.loop.services.causes import DeepTier, DeepTierEnded
from gpuloop.reasoning.analysis import Analysis, Edge, Share, pack
from gpuloop.reasoning.causal import CausalModels
from gpuloop.reasoning.causes import CausesState, Question
from gpuloop.schemas.component import Output
from gpuloop.schemas.messages import Cause
from gpuloop.schemas.messages.insight import Suspect

NODES = ("n0", "n1", "n2")
COLUMNS = tuple(f"{metric}@{node}" for node in NODES for metric in ("heat", "throttled", "link"))


def question_about_pace(seed: int = 1, throttled: float = 1.0) -> Analysis:
    """Return a job's pace that falls because n1 grew hot and throttles."""
    draws = np.random.default_rng(seed)
    normal = draws.normal(0.0, 1.0, (60, 10)) * ([1.0, 0.0, 0.01] * 3 + [0.01])
    anomalous = np.zeros((3, 10))
    anomalous[:, 3], anomalous[:, 4], anomalous[:, 9] = 24.0, throttled, -0.5 * throttled
    edges = [Edge(f"heat@{node}", f"throttled@{node}", 0.0) for node in NODES]
    edges += [Edge(f"throttled@{node}", "progress@job", -0.5) for node in NODES]
    edges += [Edge(f"link@{node}", "progress@job", 0.7) for node in NODES]
    return Analysis(
        target="progress@job",
        columns=(*COLUMNS, "progress@job"),
        edges=tuple(edges),
        scale=(1.0, 0.02, 0.05) * 3 + (0.04,),
        normal=pack(normal),
        anomalous=pack(anomalous),
        seed=seed,
    )


@pytest.fixture(scope="module")
def models() -> CausalModels:
    return CausalModels()


def test_shares_add_up_to_the_departure_and_the_sick_node_has_the_largest(
    models: CausalModels,
) -> None:
    found = models.attribute(question_about_pace())
    assert found.departure == pytest.approx(-0.5, abs=0.01)
    assert sum(share.value for share in found.shares) == pytest.approx(-0.5, abs=0.02)
    assert min(found.shares, key=lambda share: share.value).column == "throttled@n1"


def test_same_question_has_the_same_answer_from_a_fresh_or_a_cached_model(
    models: CausalModels,
) -> None:
    question = question_about_pace(seed=5)
    assert models.attribute(question) == models.attribute(question)
    assert CausalModels().attribute(question) == models.attribute(question)


def test_generators_of_the_process_are_left_as_they_were(models: CausalModels) -> None:
    np.random.seed(3)
    random.seed(3)
    expected = np.random.random(), random.random()
    np.random.seed(3)
    random.seed(3)
    models.attribute(question_about_pace())
    assert (np.random.random(), random.random()) == expected


def test_effect_that_normal_minutes_never_showed_comes_from_the_prior(
    models: CausalModels,
) -> None:
    question = question_about_pace()
    without = replace(
        question,
        edges=tuple(replace(edge, slope=0.0) for edge in question.edges),
    )
    assert _share(models.attribute(question).shares, "throttled@n1") < -0.4
    assert abs(_share(models.attribute(without).shares, "throttled@n1")) < 0.01


def test_missing_value_is_refused(models: CausalModels) -> None:
    question = question_about_pace()
    holed = question.matrix(question.normal).copy()
    holed[4, 4] = np.nan
    with pytest.raises(ValueError, match="missing"):
        models.attribute(replace(question, normal=pack(holed)))


def test_worker_answers_is_killed_at_the_deadline_and_answers_again() -> None:
    question = question_about_pace()
    with CausalWorker(threading.Event()) as worker:
        first = worker.analyse(question, deadline_seconds=60.0)
        assert first is not None
        assert worker.analyse(question, deadline_seconds=0.0) is None
        assert worker.analyse(question, deadline_seconds=60.0) == first


def test_deep_tier_writes_a_late_answer_as_timed_out_and_an_early_one_as_causal() -> None:
    fast = Cause(
        fleet="local",
        cause_id="0" * 64,
        anomaly_id="1" * 64,
        symptom="job",
        pool="a100",
        symptom_metric="progress",
        event_time_us=60_000_000,
        suspects=(Suspect(subject="n0", metric="heat", score=1.0),),
        tier="fast",
        method="fast",
        elapsed_us=0,
        timed_out=False,
        summary="n0",
    )
    question = Question(fast=fast, analysis=question_about_pace(), words={})
    for deadline, leader in ((0.0, "n0"), (60.0, "n1")):
        written: list[Output] = []
        arrived = threading.Event()

        def write(
            output: Output, into: list[Output] = written, done: threading.Event = arrived
        ) -> None:
            into.append(output)
            done.set()

        with DeepTier(write, deadline_seconds=deadline) as deep:
            deep.ask(question)
            assert arrived.wait(120.0)
        [output] = written
        assert isinstance(output.message, Cause)
        assert output.message.tier == "causal"
        assert output.message.timed_out == (deadline == 0.0)
        assert output.message.suspects[0].subject == leader


def test_stop_does_not_wait_for_a_child_that_is_starting() -> None:
    began = monotonic()
    with DeepTier(lambda output: None):
        pass
    assert monotonic() - began < 5.0


def _share(shares: tuple[Share, ...], column: str) -> float:
    return next(share.value for share in shares if share.column == column)


def test_process_of_a_deep_tier_that_died_ends_instead_of_going_on_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(worker: CausalWorker) -> bool:
        raise ValueError("nobody foresaw this")

    ended = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: ended.set())
    monkeypatch.setattr(CausalWorker, "start", start)
    with DeepTier(lambda output: None) as deep:
        assert ended.wait(60.0)
        deep._thread.join()
        with pytest.raises(DeepTierEnded):
            deep.follow(CausesState(), ())
