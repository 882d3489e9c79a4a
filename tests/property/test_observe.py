"""Telemetry in any order and any number of times, and agents that crash between any two acts."""

from typing import TypeVar

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpuloop.schemas.component import Output, load, save
from gpuloop.schemas.messages import (
    Frame,
    GpuSample,
    JobEvent,
    Partial,
)
from gpuloop.schemas.messages.internal import FRAME_COLUMNS, FeatureSum
from gpuloop.schemas.messages.state import FEATURES
from gpuloop.streams import jobs, nodes, pools
from gpuloop.streams.frames import pack, unpack
from gpuloop.streams.nodes import NodeShard
from gpuloop.streams.observe import ObserveState
from observed import belief

MINUTE = 60_000_000
T0 = 25_000_000 * MINUTE
T = TypeVar("T")
SEEDS = st.integers(0, 2**32 - 1)

ratios = st.none() | st.floats(0, 1, width=32)
watts = st.none() | st.floats(0, 2000, width=32)
bits = st.none() | st.sampled_from([0, 0x1, 0x4, 0x8, 0x20, 0x40, 0x80, 0x44])


@st.composite
def samples(draw: st.DrawFn) -> GpuSample:
    gpus = draw(st.integers(1, 4))

    def column(values: st.SearchStrategy[float | None]) -> tuple[float | None, ...]:
        return draw(st.just(()) | st.tuples(*[values] * gpus))

    return GpuSample(
        fleet="local",
        node=f"n{draw(st.integers(0, 5))}",
        pool=draw(st.sampled_from(["h100", "a100"])),
        rack="r",
        gpu_model="H100",
        billing="spot",
        event_time_us=T0 + draw(st.integers(0, MINUTE)),
        boot=draw(st.integers(1, 2)),
        seq=draw(st.integers(1, 4)),
        gpu_ids=tuple(f"g{i}" for i in range(gpus)),
        utilisation=column(ratios),  # type: ignore[arg-type]
        power_watts=column(watts),  # type: ignore[arg-type]
        throttle_reasons=column(bits),  # type: ignore[arg-type]
    )


@given(st.lists(samples(), max_size=8))
def test_packing_and_unpacking_keeps_every_value_and_every_gap(sent: list[GpuSample]) -> None:
    frame = pack("local", 3, sent)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=Frame)
    view = unpack(again)
    assert again == frame
    assert frame.columns.keys() <= set(FRAME_COLUMNS)
    power = FEATURES.index("power_watts")
    for sample, total, present in zip(sent, view.totals, view.present, strict=True):
        known = [w for w in sample.power_watts if w is not None]
        assert present[power] == len(known)
        np.testing.assert_allclose(total[power], sum(known), rtol=1e-6)


def one_per_version(sent: list[GpuSample]) -> list[GpuSample]:
    """Keep one sample per (node, boot, seq), as a source that numbers its samples does."""
    return list({(s.node, s.boot, s.seq): s for s in sent}.values())


def repeated(sent: list[T], rng: np.random.Generator) -> list[T]:
    """Return everything at least once, some of it twice, in any order."""
    places = [*range(len(sent)), *rng.integers(0, len(sent), size=5 if sent else 0)]
    return [sent[place] for place in rng.permutation(places).astype(int)]


@given(st.lists(samples(), max_size=20), SEEDS)
def test_order_repeats_and_framing_of_samples_do_not_change_the_nodes(
    sent: list[GpuSample], seed: int
) -> None:
    sent, rng = one_per_version(sent), np.random.default_rng(seed)
    straight, other = NodeShard(), NodeShard()
    nodes.absorb(straight, unpack(pack("local", 0, sent)))
    shuffled = repeated(sent, rng)
    while shuffled:
        size = int(rng.integers(1, 5))
        nodes.absorb(other, unpack(pack("local", 0, shuffled[:size])))
        shuffled = shuffled[size:]
    assert belief(other) == belief(straight)


@st.composite
def job_events(draw: st.DrawFn) -> JobEvent:
    kind, number = draw(st.sampled_from([*jobs._PHASE, "migrated"])), draw(st.integers(0, 3))
    return JobEvent(
        fleet="local",
        job=f"j{number}",
        kind=kind,  # type: ignore[arg-type]
        pool=draw(st.sampled_from(["h100", "a100"])) if kind != "submitted" else "h100",
        tenant="t",
        job_class="xy"[number % 2],  # Whoever submits a job names its class, once.
        event_time_us=T0 + draw(st.integers(0, MINUTE)),
        boot=1,
        seq=draw(st.integers(1, 50)),
        gpus=8,
        nodes=draw(st.sampled_from([(), ("n1",), ("n2",)])),
        submitted_us=T0,
        gpu_us_done=draw(st.integers(0, 9)),
        attempt=draw(st.integers(0, 2)),
    )


@given(st.lists(job_events(), max_size=20), SEEDS)
def test_order_and_repeats_of_job_events_do_not_change_rows_or_sums(
    sent: list[JobEvent], seed: int
) -> None:
    sent = list({(e.job, e.boot, e.seq): e for e in sent}.values())
    straight, other = jobs.JobShard(), jobs.JobShard()
    for event in sent:
        jobs.absorb(straight, event, "id")
    for event in repeated(sent, np.random.default_rng(seed)):
        jobs.absorb(other, event, "id")
    assert [b.jobs for b in other.blocks] == [b.jobs for b in straight.blocks]
    assert jobs.partials(other, "f", "s", T0) == jobs.partials(straight, "f", "s", T0)


@st.composite
def partials(draw: st.DrawFn) -> Partial:
    shard = draw(st.sampled_from(["gpu/0", "gpu/1", "resources/0"]))
    tick_us = T0 + draw(st.integers(0, 3)) * MINUTE
    total = float(draw(st.integers(0, 8)))
    return Partial(
        fleet="local",
        pool=draw(st.sampled_from(["h100", pools.EVERY_POOL])) if shard[0] == "g" else "h100",
        shard=shard,
        tick_us=tick_us,
        nodes_heard=1,
        features={"utilisation": FeatureSum(total=total, present=8, expected=8, newest_us=T0)},
    )


@given(st.lists(partials(), max_size=20))
def test_receiving_all_partials_again_changes_nothing_and_tells_nothing(
    sent: list[Partial],
) -> None:
    sent = list({(p.pool, p.shard, p.tick_us): p for p in sent}.values())
    ticking, book = frozenset({"gpu/0", "gpu/1"}), pools.PoolBook()

    def feed() -> list[Output]:
        told: list[Output] = []
        for partial in sent:
            pools.receive(book, partial, ticking)
            while (at := pools.next_tick(book, ticking)) is not None:
                told += pools.tell(book, "local", at, ticking)
        return told

    feed()
    book.ahead.clear()
    before = msgspec.msgpack.encode(book)
    told_us = book.told_us
    sent = [p for p in sent if p.tick_us <= told_us]
    assert feed() == []
    assert msgspec.msgpack.encode(book) == before


@given(st.lists(samples(), max_size=6), st.lists(job_events(), max_size=6))
def test_a_saved_fold_is_the_same_after_loading(
    sent: list[GpuSample], events: list[JobEvent]
) -> None:
    state = ObserveState()
    state.nodes["gpu/0"] = NodeShard()
    nodes.absorb(state.nodes["gpu/0"], unpack(pack("local", 0, sent)))
    state.jobs["jobs/0"] = jobs.JobShard()
    for event in events:
        jobs.absorb(state.jobs["jobs/0"], event, "id")
    again = load(ObserveState, save(state))
    assert again == state
    assert save(again) == save(state)
