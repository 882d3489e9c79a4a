"""Blocks of nodes: who wins, what is told at a tick, and what a restart finds."""

from collections.abc import Iterable

import msgspec
import numpy as np

from gpuloop.schemas.messages import GpuSample, NodeState
from gpuloop.streams import node_rows, node_ticks, nodes
from gpuloop.streams.frames import pack, unpack
from gpuloop.streams.node_ticks import NodeTick
from gpuloop.streams.nodes import Absorbed, NodeShard
from observed import gpu_sample

MINUTE = 60_000_000
HOUR = 60 * MINUTE
T0 = 1_000 * HOUR


def sample(
    node: str = "n1",
    *,
    seq: int = 1,
    boot: int = 1,
    at: int = T0,
    load: float | None = 0.5,
    throttle: int = 0,
    pool: str = "h100",
) -> GpuSample:
    said = {"utilisation": (load, load), "throttle_reasons": (throttle, 0)}
    return gpu_sample(node, seq=seq, at=at, boot=boot, pool=pool, **said)


def absorb(shard: NodeShard, *samples: GpuSample) -> Absorbed:
    return nodes.absorb(shard, unpack(pack("local", 0, samples)))


def tick(shard: NodeShard, at: int) -> NodeTick:
    return node_ticks.at_tick(shard, "local", at)


def told(outcome: NodeTick) -> list[tuple[str, int]]:
    messages = [output.message for output in outcome.states]
    return [(m.node, m.seq) for m in messages if isinstance(m, NodeState)]


def table(shard: NodeShard, changed: Iterable[int] | None = None) -> dict[bytes, bytes]:
    numbers = range(1 << shard.depth) if changed is None else changed
    return {key: row for key, row in node_rows.rows_of(shard, 0, numbers).items() if row}


def test_the_highest_boot_and_seq_of_a_node_wins_and_the_rest_is_counted() -> None:
    shard = NodeShard()
    absorb(shard, sample(seq=5))
    done = absorb(shard, sample(seq=5), sample(seq=4), sample(seq=1, boot=2, load=0.9))
    again = absorb(shard, sample(seq=9), sample(seq=1, boot=2))
    assert done.dropped == {"late": 2}
    assert again.dropped == {"late": 1, "duplicate": 1}
    assert again.changed == set()
    (output,) = tick(shard, T0).states
    state = output.message
    assert isinstance(state, NodeState)
    assert (state.boot, state.seq, round(state.features["utilisation"].value or 0, 6)) == (
        2,
        1,
        0.9,
    )


def test_a_state_goes_out_on_change_and_otherwise_once_a_minute() -> None:
    shard = NodeShard()
    sent = []
    for second in range(0, 240, 10):
        at = T0 + second * 1_000_000
        absorb(shard, sample(seq=second, at=at, throttle=0x40 if second == 100 else 0))
        sent += [seq for _, seq in told(tick(shard, at))]
    assert sent == [0, 10, 70, 100, 110, 170, 230]


def test_nodes_that_come_at_once_are_told_again_at_times_of_their_own() -> None:
    shard = NodeShard()
    names = [f"node-{n}" for n in range(60)]
    counts = []
    for second in range(120):
        at = T0 + second * 1_000_000
        absorb(shard, *(sample(name, seq=second, at=at) for name in names))
        counts.append(len(told(tick(shard, at))))
    assert counts[0] == 60
    assert sum(counts[1:61]) == 60
    assert max(counts[1:]) <= 10


def test_nothing_is_told_of_a_node_that_said_nothing_new() -> None:
    shard = NodeShard()
    absorb(shard, sample())
    assert told(tick(shard, T0)) == [("n1", 1)]
    assert told(tick(shard, T0 + 5 * MINUTE)) == []


def test_a_silent_node_leaves_the_mean_and_stays_expected_with_its_age() -> None:
    shard = NodeShard()
    absorb(shard, sample("n1", load=0.2), sample("n2", load=0.8, at=T0 + 2 * MINUTE))
    pool = tick(shard, T0 + 2 * MINUTE).pools["h100"]
    load = pool.features["utilisation"]
    assert pool.nodes_heard == 1
    assert (round(load.total, 6), load.present, load.expected) == (1.6, 2, 4)
    silent = tick(shard, T0 + 10 * MINUTE).pools["h100"]
    assert silent.nodes_heard == 0
    assert silent.features["utilisation"].present == 0
    assert silent.features["utilisation"].newest_us == T0 + 2 * MINUTE


def test_missing_values_lower_the_count_present_and_never_the_sum() -> None:
    shard = NodeShard()
    absorb(shard, sample("n1", load=None), sample("n2", load=0.5))
    load = tick(shard, T0).pools["h100"].features["utilisation"]
    assert (load.total, load.present, load.expected) == (1.0, 2, 4)


def test_a_node_that_moves_pool_counts_only_where_it_is() -> None:
    shard = NodeShard()
    absorb(shard, sample(pool="h100"))
    absorb(shard, sample(pool="a100", seq=2))
    assert set(tick(shard, T0).pools) == {"a100"}


def test_a_node_silent_for_an_hour_is_forgotten_and_its_row_emptied() -> None:
    shard = NodeShard()
    absorb(shard, sample())
    tick(shard, T0)
    later = tick(shard, T0 + HOUR + 1)
    assert later.pools == {}
    assert node_rows.rows_of(shard, 0, later.changed) == {b"0/0/0": b""}


def test_blocks_split_before_they_pass_their_size_and_no_node_is_lost() -> None:
    shard = NodeShard()
    names = [f"node-{n}" for n in range(500)]
    absorb(shard, *(sample(name) for name in names))
    assert shard.depth >= 3
    assert np.bincount(shard.blocks).max() <= nodes.BLOCK_NODES
    assert [label.node for label in shard.labels] == sorted(names)
    assert tick(shard, T0).pools["h100"].nodes_heard == 500


def test_a_shard_survives_its_rows() -> None:
    shard = NodeShard()
    absorb(shard, *(sample(f"node-{n}", load=n / 200) for n in range(200)))
    tick(shard, T0)
    rows = table(shard) | {b"1/0/0": b"a row of another partition"}
    again = node_rows.shard_from(rows, 0)
    assert again == shard
    assert table(again) == table(shard)


def test_rows_of_a_version_with_other_records_keep_no_worker_from_starting() -> None:
    shard = NodeShard()
    absorb(shard, *(sample(f"node-{n}") for n in range(200)))
    rows = table(shard)
    wider = np.dtype([("record", nodes.NUMBERS), ("more", "<i8")])
    for key in sorted(rows)[:2]:
        block = msgspec.msgpack.decode(rows[key], type=node_rows.Block)
        block.numbers = np.zeros(len(block.labels), dtype=wider).tobytes()
        rows[key] = msgspec.msgpack.encode(block)
    again = node_rows.shard_from(rows, 0)
    assert 0 < len(again.labels) < 200
    absorb(again, *(sample(f"node-{n}") for n in range(200)))
    assert again == shard


def test_a_crash_in_the_middle_of_a_split_keeps_the_newest_of_each_node() -> None:
    shard = NodeShard()
    absorb(shard, *(sample(f"node-{n}") for n in range(60)))
    before = table(shard)
    absorb(shard, *(sample(f"node-{n}", seq=2) for n in range(80)))
    after = table(shard)
    assert not before.keys() & after.keys()
    half = dict(list(after.items())[: len(after) // 2])
    recovered = node_rows.shard_from(before | half, 0)
    seqs = {
        label.node: int(row["seq"])
        for label, row in zip(recovered.labels, recovered.rows, strict=True)
    }
    assert {f"node-{n}" for n in range(60)} <= seqs.keys()
    absorb(recovered, *(sample(f"node-{n}", seq=2) for n in range(80)))
    assert recovered == shard


def test_a_full_shard_refuses_newcomers_and_counts_them(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(nodes, "MAX_DEPTH", 0)
    shard = NodeShard()
    done = absorb(shard, *(sample(f"node-{n}") for n in range(70)))
    assert done.dropped == {"full": 6}
    assert len(shard.labels) == nodes.BLOCK_NODES


def test_a_node_that_moves_to_another_pool_is_there_in_its_row_as_well() -> None:
    shard = NodeShard()
    absorb(shard, sample("n1"), sample("n2"))
    table(shard)
    absorb(shard, sample("n2", seq=2, pool="a100"))
    (row,) = table(shard).values()
    labels = msgspec.msgpack.decode(row, type=node_rows.Block).labels
    assert [(label.node, label.pool) for label in labels] == [("n1", "h100"), ("n2", "a100")]


def test_a_sample_from_the_far_future_takes_no_place_and_is_counted() -> None:
    shard = NodeShard()
    absorb(shard, sample("n1"))
    view = unpack(pack("local", 0, [sample("n1", seq=2, at=T0 + 2 * HOUR), sample("n2", seq=1)]))
    done = nodes.absorb(shard, view, latest_us=T0 + HOUR)
    assert done.dropped == {"future": 1}
    assert [label.node for label in shard.labels] == ["n1", "n2"]
    assert shard.rows["event_us"].tolist() == [T0, T0]
    unheard = unpack(pack("local", 0, [sample("n3", at=T0 + 2 * HOUR)]))
    assert nodes.absorb(shard, unheard, latest_us=T0 + HOUR).changed == set()
    assert len(shard.labels) == 2
