"""The observe stage as a component."""

import pytest

from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.component import Context, Output, Received, Tick, load, save
from gpuloop.schemas.messages import GpuSample, JobEvent, Message, NodeState, PoolState
from gpuloop.streams.observe import Observe, ObserveState
from observed import gpu_sample

MINUTE = 60_000_000
T0 = 25_000_000 * MINUTE


def context(now: int) -> Context:
    return Context(now_us=now, wall_us=0, seed=0)


def received(message: Message, partition: int = 0, id: str = "i") -> Received:
    return Received(
        topic=message.TYPE, partition=partition, offset=0, key="k", id=id, message=message
    )


def sample(node: str, seq: int, at: int = T0) -> GpuSample:
    return gpu_sample(node, seq=seq, at=at, utilisation=(0.25, 0.5))


def submitted(job: str, at: int = T0) -> JobEvent:
    return JobEvent(
        fleet="local",
        job=job,
        kind="submitted",
        pool="h100",
        tenant="t",
        job_class="c",
        event_time_us=at,
        boot=1,
        seq=1,
        gpus=4,
    )


def feed(fold: Observe, state: ObserveState, *events: Received | Tick) -> list[Output]:
    outputs: list[Output] = []
    for event in events:
        state, written = fold.step(state, event, context(T0))
        outputs += written
    return outputs


def test_a_job_is_told_at_once_and_nodes_and_pools_at_the_tick() -> None:
    fold = Observe("local")
    state = fold.initial()
    (job,) = feed(fold, state, received(submitted("j1")))
    assert (job.topic, job.key) == ("state.jobs", "j1")
    samples = [received(sample("n1", seq)) for seq in (1, 3, 2)]
    assert feed(fold, state, *samples) == []
    node, pool = feed(fold, state, Tick(tick_us=T0))
    assert isinstance(node.message, NodeState)
    assert node.message.seq == 3
    assert isinstance(pool.message, PoolState)
    assert pool.message.queues[0].gpus == 4
    assert pool.message.features["utilisation"].value == 0.375


def test_the_partition_of_an_event_changes_no_state() -> None:
    def told(partitions: tuple[int, int]) -> list[Message | None]:
        fold = Observe("local")
        state = fold.initial()
        events = [
            event
            for n, partition in enumerate(partitions)
            for event in (
                received(sample(f"n{n}", 1), partition),
                received(submitted(f"j{n}"), partition, str(n)),
            )
        ]
        return [output.message for output in feed(fold, state, *events, Tick(tick_us=T0))]

    assert told((0, 0)) == told((1, 3))


def test_a_fold_goes_on_from_its_saved_state() -> None:
    fold = Observe("local")
    state = fold.initial()
    feed(fold, state, received(sample("n1", 1)), received(submitted("j1")), Tick(tick_us=T0))
    feed(fold, state, received(sample("n1", 2, T0 + MINUTE)))
    saved = save(state)
    straight = feed(fold, state, Tick(tick_us=T0 + MINUTE))
    assert feed(fold, load(ObserveState, saved), Tick(tick_us=T0 + MINUTE)) == straight
    assert fold.initial() == Observe("local").initial()


def test_telemetry_from_the_far_future_is_refused() -> None:
    fold = Observe("local")
    with pytest.raises(BadInput, match="out_of_range"):
        feed(fold, fold.initial(), received(submitted("j1", T0 + 90 * MINUTE)))
