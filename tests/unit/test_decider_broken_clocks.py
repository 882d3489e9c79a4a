"""News that a broken clock dated: nothing it says may outlast the clock's repair."""

import pytest

from builders import FLEET, at, offer, pool_state, received
from decider_loop import Loop, decisions, replace
from gpuloop.loop.decide.state import best_offers
from gpuloop.loop.decide.suspects import SUSPICION_US
from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.component import load, save
from gpuloop.schemas.messages import Cause, Fault, Forecast, Message
from gpuloop.schemas.messages.insight import Suspect
from gpuloop.schemas.messages.state import Feature
from gpuloop.schemas.units import HOUR_US, INT64_MAX, MINUTE_US

CALM = pool_state(allocated=190, running_jobs=40)
NODE = "a100-d001"


def ready() -> Loop:
    loop = Loop()
    loop.minute(CALM)
    loop.running("j1", node=NODE)
    return loop


def fault(at_us: int, kind: str = "lost") -> Fault:
    return Fault(fleet=FLEET, node=NODE, pool="a100", kind=kind, event_time_us=at_us, boot=1, seq=1)


def cause(at_us: int) -> Cause:
    return Cause(
        fleet=FLEET,
        cause_id="0" * 64,
        anomaly_id="1" * 64,
        symptom="j1",
        pool="a100",
        symptom_metric="progress",
        event_time_us=at_us,
        suspects=(Suspect(subject=NODE, metric="temperature", score=0.8),),
        tier="fast",
        method="graph",
        elapsed_us=1000,
        timed_out=False,
        summary="",
    )


def forecast(at_us: int) -> Forecast:
    return Forecast(
        fleet=FLEET,
        forecast_id="f",
        pool="a100",
        metric="gpus_demanded",
        tick_us=at_us,
        horizons=(),
        model="m",
        rival="r",
        skill=0.0,
        samples=0,
    )


@pytest.mark.parametrize("ahead_us", [4 * HOUR_US, INT64_MAX])
@pytest.mark.parametrize(
    ("topic", "make"),
    [
        ("telemetry.faults", fault),
        ("insight.causes", cause),
        ("insight.forecasts", forecast),
        ("market.offers", lambda at_us: offer(at_us=at_us)),
    ],
)
def test_news_of_the_far_future_is_refused_whole_and_changes_nothing(topic, make, ahead_us: int):
    loop = ready()
    before = save(loop.state)
    one: Message = make(min(loop.now_us + ahead_us, INT64_MAX))
    with pytest.raises(BadInput, match="ahead of the fleet clock"):
        loop.send(received(topic, one))
    assert save(loop.state) == before


def test_a_refusal_at_a_start_costs_no_claim():
    loop = ready()
    context = replace_run(at(loop.now_us, loop.wall_us), "second start")
    with pytest.raises(BadInput):
        loop.decider.step(loop.state, received("telemetry.faults", fault(INT64_MAX)), context)
    _, outputs = loop.decider.step(loop.state, received("telemetry.faults", fault(0)), context)
    assert [one.topic for one in outputs] == ["controls"]


def replace_run(context, run: str):
    return type(context)(now_us=context.now_us, wall_us=context.wall_us, seed=context.seed, run=run)


def test_a_fault_dated_ahead_counts_from_now():
    loop = ready()
    loop.send(received("telemetry.faults", fault(loop.now_us + HOUR_US)))
    assert loop.state.suspects.nodes[NODE].until_us == loop.now_us + SUSPICION_US
    assert loop.state.pools["a100"].last_reflex_us == loop.now_us
    assert decisions(loop.outputs)[-1].tick_us == loop.now_us


def test_a_cause_dated_ahead_counts_from_now():
    loop = ready()
    loop.send(received("insight.causes", cause(loop.now_us + HOUR_US)))
    assert loop.state.suspects.nodes[NODE].until_us == loop.now_us + SUSPICION_US


def test_an_offer_dated_ahead_gives_way_to_the_next_one():
    loop = ready()
    for usd, at_us in ((0.1, loop.now_us + HOUR_US), (3.6, loop.now_us)):
        loop.send(received("market.offers", offer("on_demand", usd, at_us)))
    best = best_offers(loop.state, loop.now_us)["a100", "on_demand"]
    assert best.usd_micros_per_gpu_hour == 3_600_000


def test_an_age_that_no_number_holds_is_written_as_very_old():
    loop = ready()
    ancient = Feature(value=0.5, age_us=INT64_MAX, quality=1.0)
    made = decisions(loop.minute(replace(CALM, features={"utilisation": ancient})))
    assert max(made[0].feature_ages_us) > 100 * 365 * 24 * 60 * MINUTE_US
    assert min(made[0].feature_ages_us) >= 0
    assert load(type(loop.state), save(loop.state)) == loop.state
