"""Credit: which decision a pool's flow belongs to, and what is said when that is in doubt."""

import msgspec
import pytest

from gpuloop.loop.evaluate.evaluator import (
    HORIZON_US,
    MAX_OPEN_WINDOWS,
    MAX_TOUCHES,
    SETTLING_US,
    Evaluator,
    EvaluatorState,
)
from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.component import Context, Event, Output, Received, Tick, load, save
from gpuloop.schemas.identity import decision_id, source_event_id
from gpuloop.schemas.messages import Decision, JobEvent, Message, Outcome, ResourceSample, Reward
from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.schemas.messages.telemetry import Tranche
from gpuloop.schemas.units import HOUR_US, MINUTE_US, SECOND_US

USD = 1_000_000


class Loop:
    """An evaluator that is told what happens, minute by minute of fleet time."""

    def __init__(self, settling_us: int = SETTLING_US) -> None:
        self.evaluator = Evaluator(settling_us=settling_us)
        self.state = self.evaluator.initial()
        self.rewards: list[Reward] = []
        self.outputs: list[Output] = []
        self.now_us = 0
        self._seq = 0

    def tell(self, event: Event, now_us: int = 0) -> None:
        context = Context(now_us=now_us, wall_us=now_us, seed=0)
        self.state, outputs = self.evaluator.step(self.state, event, context)
        self.outputs += outputs
        self.rewards += [o.message for o in outputs if isinstance(o.message, Reward)]

    def hear(self, message: Message) -> "Loop":
        self._seq += 1
        event_id = source_event_id("local", message.TYPE, 1, self._seq)
        self.tell(
            Received(
                topic=message.TYPE, partition=0, offset=0, key="", id=event_id, message=message
            ),
            now_us=self.now_us or getattr(message, "event_time_us", 0),
        )
        return self

    def tick(self, minute: int) -> "Loop":
        self.tell(Tick(tick_us=minute * MINUTE_US), minute * MINUTE_US)
        return self

    def capacity(self, minute: int, usd_per_hour: float = 60.0, pool: str = "p") -> "Loop":
        tranche = Tranche(
            billing="spot", nodes_ready=1, usd_micros_per_node_hour=round(usd_per_hour * USD)
        )
        return self.hear(
            ResourceSample(
                fleet="local",
                resource=pool,
                kind="capacity",
                pool=pool,
                event_time_us=minute * MINUTE_US,
                boot=1,
                seq=self._seq,
                load=0.0,
                capacity=8.0,
                tranches=(tranche,),
            )
        )

    def job(self, kind: str, minute: int, pool: str = "p") -> "Loop":
        return self.hear(
            JobEvent(
                fleet="local",
                job="j",
                kind=kind,  # type: ignore[arg-type]
                pool=pool,
                tenant="t",
                job_class="batch",
                event_time_us=minute * MINUTE_US,
                boot=1,
                seq=self._seq,
                gpus=2,
                nodes=("n",),
                price_usd_micros_per_gpu_hour=60 * USD,
            )
        )

    def decide(self, minute: int, pool: str = "p", level: str = "cluster", epoch: int = 1) -> str:
        name = decision_id("local", pool, level, epoch, minute * MINUTE_US)
        self.hear(a_decision(name, pool, level, epoch, minute * MINUTE_US))
        return name

    def applied(self, minute: float, decision: str, status: str = "applied") -> "Loop":
        return self.hear(
            Outcome(
                fleet="local",
                command_id="0" * 64,
                decision_id=decision,
                actuator="scaling",
                target="p",
                pool="p",
                status=status,  # type: ignore[arg-type]
                reason="ok",
                generation=1,
                epoch=1,
                event_time_us=round(minute * MINUTE_US),
            )
        )

    def minutes(self, first: int, last: int) -> "Loop":
        """Live through whole minutes with one decision each and capacity at USD 60 an hour."""
        for minute in range(first, last + 1):
            self.capacity(minute).decide(minute)
            self.tick(minute)
        return self


def test_telemetry_from_the_far_future_is_refused_and_leaves_no_trace() -> None:
    loop = Loop()
    loop.now_us = 10 * MINUTE_US
    with pytest.raises(BadInput, match="ahead of the fleet clock"):
        loop.capacity(10_000)
    assert loop.state == loop.evaluator.initial()


def a_decision(name: str, pool: str, level: str, epoch: int, tick_us: int) -> Decision:
    """Return a decision of which only what the evaluator looks at is filled in."""
    digest = "0" * 64
    empty = {field.name: () for field in msgspec.structs.fields(Decision) if field.required}
    seen = {
        "fleet": "local", "decision_id": name, "pool": pool, "level": level, "epoch": epoch,
        "tick_us": tick_us, "feature_version": "pool/1", "alpha": 0.0, "log_probability": 0.0,
        "policy_id": "rule", "policy_digest": digest, "normaliser_digest": digest,
        "envelope_digest": digest, "arm": "rule", "assignment_probability": 1.0,
        "forecast_id": "", "modes": {}, "summary": "", "why_not": "",
    }  # fmt: skip
    return msgspec.convert(empty | seen, Decision)


def test_a_decision_is_paid_what_its_pool_earned_until_the_next() -> None:
    loop = Loop().minutes(10, 13)
    assert [r.decision_id for r in loop.rewards] == ["local/p/cluster/1/600000000"]
    (reward,) = loop.rewards
    assert (reward.start_us, reward.end_us) == (10 * MINUTE_US, 11 * MINUTE_US)
    assert reward.components == {**dict.fromkeys(COMPONENTS, 0), "capacity_cost": -USD}
    assert reward.total_usd_micros == -USD
    assert (reward.overlap, reward.censored, reward.definition) == (0, False, "ledger/1")
    (output,) = loop.outputs
    assert (output.topic, output.key, output.time_us) == ("rewards", "p", 11 * MINUTE_US)


def test_a_window_closes_two_minutes_after_its_end_and_not_before() -> None:
    loop = Loop().minutes(10, 11)
    loop.capacity(12).tick(12)
    assert loop.rewards == []
    assert len(loop.capacity(13).tick(13).rewards) == 1


def test_the_same_events_give_the_same_ids() -> None:
    first, second = Loop().minutes(10, 20), Loop().minutes(10, 20)
    assert first.outputs == second.outputs
    assert len({output.event_id for output in first.outputs}) == len(first.outputs)


def test_telemetry_late_by_less_than_two_minutes_lands_in_its_own_window() -> None:
    loop = Loop().minutes(10, 12)
    loop.job("started", 10)
    loop.capacity(13).tick(13)
    assert loop.rewards[0].components["revenue"] == 2 * USD
    assert not loop.rewards[0].censored


def test_telemetry_later_than_that_is_paid_later_and_censors_what_it_lands_in() -> None:
    loop = Loop().minutes(10, 13)
    loop.job("started", 10)
    loop.minutes(14, 20)
    paid = {r.start_us // MINUTE_US: (r.components["revenue"], r.censored) for r in loop.rewards}
    assert paid[10] == (0, False)
    assert paid[11] == (4 * USD, True)
    assert paid[12] == (2 * USD, False)


def test_windows_lie_end_to_end_across_a_missing_decision() -> None:
    loop = Loop().minutes(10, 12)
    loop.capacity(13).tick(13)
    loop.minutes(14, 20)
    ends = [(r.start_us // MINUTE_US, r.end_us // MINUTE_US) for r in loop.rewards]
    assert ends[:4] == [(10, 11), (11, 12), (12, 14), (14, 15)]
    assert not any(r.censored for r in loop.rewards)


def test_a_window_longer_than_five_minutes_is_censored_and_still_pays_everything() -> None:
    loop = Loop().minutes(10, 11)
    for minute in range(12, 20):
        loop.capacity(minute).tick(minute)
    loop.minutes(20, 25)
    long = next(r for r in loop.rewards if r.start_us == 11 * MINUTE_US)
    assert long.censored
    assert long.end_us == 20 * MINUTE_US
    assert long.total_usd_micros == -9 * USD


def test_silence_about_capacity_censors_and_delays_until_the_horizon() -> None:
    loop = Loop().minutes(10, 12)
    for minute in range(13, 30):
        loop.decide(minute)
        loop.tick(minute)
    assert [r.start_us // MINUTE_US for r in loop.rewards] == [10]
    for minute in range(30, 30 + HORIZON_US // MINUTE_US):
        loop.decide(minute)
        loop.tick(minute)
    censored = {r.start_us // MINUTE_US: r.censored for r in loop.rewards}
    assert not censored[15]
    assert censored[18]


def test_what_came_before_the_first_decision_belongs_to_nobody() -> None:
    loop = Loop()
    for minute in range(10):
        loop.capacity(minute).tick(minute)
    loop.minutes(10, 13)
    assert loop.rewards[0].total_usd_micros == -USD


def test_each_pool_is_paid_its_own() -> None:
    loop = Loop()
    for minute in range(10, 14):
        loop.capacity(minute).capacity(minute, 30.0, pool="q")
        loop.decide(minute, "q")
        loop.decide(minute, "p")
        loop.tick(minute)
    assert {r.pool: r.total_usd_micros for r in loop.rewards} == {"p": -USD, "q": -USD // 2}


def test_commands_of_other_decisions_inside_a_window_are_overlap() -> None:
    loop = Loop().minutes(10, 11)
    own, other = decision_id("local", "p", "cluster", 1, 10 * MINUTE_US), "another"
    loop.applied(10.2, own).applied(10.3, other).applied(10.4, other).applied(10.5, "third")
    loop.applied(10.6, "refused", status="rejected").applied(11.5, "next window's")
    loop.decide(10, level="node")
    loop.minutes(12, 14)
    assert [r.overlap for r in loop.rewards] == [3, 1]


def test_node_level_decisions_open_no_window() -> None:
    loop = Loop()
    for minute in range(10, 20):
        loop.capacity(minute).decide(minute, level="node")
        loop.tick(minute)
    assert loop.rewards == []


def test_of_two_decisions_at_one_tick_the_higher_epoch_owns_the_window() -> None:
    loop = Loop()
    for minute in range(10, 14):
        loop.capacity(minute)
        for epoch in (2, 3, 1):
            loop.decide(minute, epoch=epoch)
        loop.decide(minute, level="continuum", epoch=3)
        loop.tick(minute)
    (reward,) = loop.rewards
    assert reward.decision_id == decision_id("local", "p", "cluster", 3, 10 * MINUTE_US)
    assert reward.overlap == 3


def test_a_decision_heard_twice_is_paid_once() -> None:
    loop = Loop()
    for minute in range(10, 20):
        loop.capacity(minute).decide(minute)
        loop.decide(minute)
        loop.decide(max(minute - 4, 10))
        loop.tick(minute)
    starts = [r.start_us // MINUTE_US for r in loop.rewards]
    assert starts == list(range(10, 17))
    assert all(r.overlap == 0 for r in loop.rewards)


def test_a_decision_that_comes_after_its_time_begins_where_the_ledger_stands() -> None:
    loop = Loop().minutes(10, 27)
    for minute in range(28, 61):
        loop.capacity(minute).tick(minute)
    stands = loop.state.ledger.now_us
    assert stands == 60 * MINUTE_US - HORIZON_US
    loop.decide(28)
    loop.decide(32)
    loop.minutes(61, 65)
    paid = {
        r.decision_id: (r.start_us // MINUTE_US, r.end_us // MINUTE_US, r.censored)
        for r in loop.rewards
    }
    before, late = (decision_id("local", "p", "cluster", 1, m * MINUTE_US) for m in (27, 28))
    assert paid[before] == (27, 30, True)
    assert paid[late] == (30, 32, True)
    total = sum(r.total_usd_micros for r in loop.rewards)
    assert total == -(loop.rewards[-1].end_us // MINUTE_US - 10) * USD


def test_state_is_small_bounded_and_survives_a_trip_through_bytes() -> None:
    loop = Loop()
    for minute in range(10, 200):
        loop.capacity(minute).job("submitted" if minute % 2 else "started", minute)
        loop.applied(minute, f"d{minute}").decide(minute)
        loop.tick(minute)
        loop.state = load(EvaluatorState, save(loop.state))
    assert len(save(loop.state)) < 5_000
    plain = Loop()
    for minute in range(10, 200):
        plain.capacity(minute).job("submitted" if minute % 2 else "started", minute)
        plain.applied(minute, f"d{minute}").decide(minute)
        plain.tick(minute)
    assert plain.rewards == loop.rewards


@pytest.mark.parametrize("flood", ["decisions", "outcomes"])
def test_a_flood_meets_a_bound_and_is_counted(flood: str) -> None:
    loop = Loop()
    for number in range(1000):
        if flood == "decisions":
            loop.decide(10 + number)
        else:
            loop.applied(10, f"d{number}")
    pool = loop.state.pools["p"]
    bound = MAX_OPEN_WINDOWS if flood == "decisions" else MAX_TOUCHES
    assert len(pool.coming) + len(pool.touches) == bound
    assert loop.state.refused == 1000 - bound


def test_rewards_add_up_to_the_ledger_under_any_window_length() -> None:
    loop = Loop()
    for minute in range(1, 60):
        loop.capacity(minute, usd_per_hour=61.7)
        if minute % 3 == 0:
            loop.job("started" if minute % 2 else "preempted", minute)
        if minute % 7 in (0, 2, 3):
            loop.decide(minute)
        loop.tick(minute)
    first, last = loop.rewards[0], loop.rewards[-1]
    cost = sum(r.components["capacity_cost"] for r in loop.rewards)
    length_us = last.end_us - first.start_us
    assert abs(cost + 61_700_000 * length_us / HOUR_US) < 1
    assert length_us > 50 * MINUTE_US
    assert first.end_us - first.start_us < SECOND_US * 600
    assert all(msgspec.json.decode(msgspec.json.encode(r), type=Reward) == r for r in loop.rewards)


def test_in_memory_a_window_ends_at_the_tick_before_the_decision_of_that_tick():
    loop = Loop(settling_us=0)
    loop.capacity(1).tick(1)
    first = loop.decide(1)
    loop.capacity(2).tick(2)
    assert [(r.decision_id, r.start_us, r.end_us) for r in loop.rewards] == [
        (first, MINUTE_US, 2 * MINUTE_US)
    ]
    second = loop.decide(2)
    loop.capacity(3).tick(3)
    assert loop.rewards[-1].decision_id == second
    assert loop.rewards[-1].total_usd_micros == -USD


def test_in_memory_a_tick_without_a_decision_is_nobodys():
    loop = Loop(settling_us=0)
    loop.capacity(1).tick(1)
    loop.decide(1)
    for minute in (2, 3, 4):
        loop.capacity(minute).tick(minute)
    last = loop.decide(4)
    loop.capacity(5).tick(5)
    assert [r.start_us // MINUTE_US for r in loop.rewards] == [1, 4]
    assert loop.rewards[-1].decision_id == last
    assert loop.rewards[-1].total_usd_micros == -USD
