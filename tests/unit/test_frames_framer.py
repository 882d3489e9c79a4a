"""The framer on a broker in memory."""

import itertools

import pytest

from gpuloop.loop.shells import framer as shell
from gpuloop.loop.shells.broker import Partition
from gpuloop.loop.shells.framer import FRAMED_THROUGH, Framer, Round, tick_step_us
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.schemas.codec import Encoded, decode, encode
from gpuloop.schemas.messages import ClockAnchor, DeadLetter, Frame
from gpuloop.schemas.messages.telemetry import GPU_ARRAYS
from gpuloop.schemas.units import MAX_GPUS_PER_NODE
from observed import gpu_sample

START = 1_500_000_000_000_000
MINUTE = 60_000_000


class Wall:
    def __init__(self) -> None:
        self.us = 0

    def __call__(self) -> int:
        return self.us


def anchored(wall: Wall) -> MemoryBroker:
    broker = MemoryBroker(wall=wall)
    anchor = ClockAnchor(fleet="local", world="w", anchor_us=START, anchor_wall_us=0, speed=60.0)
    broker.produce([encode("telemetry.clock", "local", anchor, event_id="c", source="test")])
    return broker


def sample(node: str, seq: int, *, at: int = START, fleet: str = "local") -> Encoded:
    message = gpu_sample(node, seq=seq, at=at, fleet=fleet, power_watts=(300.0, None))
    return encode("telemetry.gpu", node, message, event_id=f"{node}/{seq}", source="test")


def until_dry(framer: Framer) -> list[Round]:
    """Return the turns until one found nothing: how many they are is the machine's affair."""
    return list(itertools.takewhile(lambda done: done.samples, iter(framer.advance, None)))


def framed(broker: MemoryBroker) -> list[Frame]:
    logs = [broker.logs[Partition("internal.frames", n)] for n in range(4)]
    frames = [decode(record) for log in logs for record in log]
    assert all(isinstance(frame, Frame) for frame in frames)
    return [frame for frame in frames if isinstance(frame, Frame)]


def names(broker: MemoryBroker) -> list[tuple[str, int]]:
    return sorted(
        (node, seq)
        for frame in framed(broker)
        for node, seq in zip(frame.nodes, frame.seqs, strict=True)
    )


def test_samples_keep_their_partition_and_none_is_lost_over_a_restart() -> None:
    wall = Wall()
    broker = anchored(wall)
    sent = [sample(f"n{i}", 1) for i in range(20)]
    placed = broker.produce(sent)
    first = Framer(broker, "local", wall=wall)
    first.open()
    assert first.advance().samples == 20
    broker.produce([sample(f"n{i}", 2) for i in range(20)])
    second = Framer(broker, "local", wall=wall)
    second.open()
    second.advance()
    assert names(broker) == sorted((f"n{i}", seq) for i in range(20) for seq in (1, 2))
    home = {
        record.key.decode(): at.partition.number for record, at in zip(sent, placed, strict=True)
    }
    assert all(home[node] == frame.partition for frame in framed(broker) for node in frame.nodes)


def test_no_sample_is_read_before_a_clock_is_known() -> None:
    wall = Wall()
    broker = MemoryBroker(wall=wall)
    broker.produce([sample("n1", 1)])
    framer = Framer(broker, "local", wall=wall)
    framer.open()
    framer.advance()
    assert not framer.has_clock
    assert framed(broker) == []
    anchor = ClockAnchor(fleet="local", world="w", anchor_us=START, anchor_wall_us=0, speed=60.0)
    broker.produce([encode("telemetry.clock", "local", anchor, event_id="c", source="test")])
    framer.advance()
    framer.advance()
    assert names(broker) == [("n1", 1)]


def test_bad_samples_go_whole_to_deadletters_and_the_rest_goes_on() -> None:
    wall = Wall()
    broker = anchored(wall)
    broken = Encoded(topic="telemetry.gpu", key=b"n1", headers=(), value=b'{"node": ', partition=0)
    broker.produce(
        [
            broken,
            sample("n2", 1, fleet="elsewhere"),
            sample("n3", 1, at=START + 100 * MINUTE),
            sample("n4", 1),
        ]
    )
    framer = Framer(broker, "local", wall=wall)
    framer.open()
    done = framer.advance()
    assert done.samples == 1
    assert names(broker) == [("n4", 1)]
    letters = [decode(r) for r in broker.logs[Partition("deadletters", 0)]]
    reasons = sorted(letter.reason for letter in letters if isinstance(letter, DeadLetter))
    assert reasons == ["out_of_range", "unknown_type", "wrong_fleet"]


def test_every_fleet_minute_has_its_tick_on_every_partition() -> None:
    wall = Wall()
    broker = anchored(wall)
    framer = Framer(broker, "local", wall=wall)
    framer.open()
    for second in range(1, 4):
        wall.us = second * 1_000_000
        framer.advance()
    ticks = [(f.partition, f.tick_us) for f in framed(broker)]
    expected = [(p, START + k * MINUTE) for p in range(4) for k in (1, 2, 3)]
    assert ticks == expected


def test_a_clock_years_ahead_moves_no_tick_whether_the_framer_runs_or_starts() -> None:
    wall = Wall()
    broker = anchored(wall)
    running = Framer(broker, "local", wall=wall)
    running.open()
    forged = ClockAnchor(
        fleet="local", world="w", anchor_us=START + 10**15, anchor_wall_us=0, speed=60.0
    )
    broker.produce([encode("telemetry.clock", "local", forged, event_id="f", source="test")])
    wall.us = 1_000_000
    done = running.advance()
    assert (done.anchors_passed_over, done.ticks_us) == (1, (START + MINUTE,))
    started = Framer(broker, "local", wall=wall)
    started.open()
    wall.us = 2_000_000
    assert started.advance().ticks_us == (START + 2 * MINUTE,)


def test_steps_between_ticks_are_parts_of_a_minute_and_at_most_one_wall_second() -> None:
    speeds = (0.01, 0.5, 1, 7, 45, 60, 600, 100_000)
    steps = [tick_step_us(speed) for speed in speeds]
    assert steps == [10_000, 500_000, 1_000_000, 6_000_000, 30_000_000, MINUTE, MINUTE, MINUTE]
    assert all(MINUTE % step == 0 for step in steps)


@pytest.mark.parametrize("value", [b"{", b"null", b'{"fleet":"local"}', b""])
def test_what_is_no_anchor_goes_whole_to_the_dead_letters(value: bytes) -> None:
    wall = Wall()
    broker = anchored(wall)
    framer = Framer(broker, "local", wall=wall)
    framer.open()
    [honest] = broker.logs[Partition("telemetry.clock", 0)]
    broker.produce(
        [Encoded(topic="telemetry.clock", key=b"local", headers=honest.headers, value=value)]
    )
    wall.us = 1_000_000
    done = framer.advance()
    assert done.ticks_us == (START + MINUTE,)
    letters = [decode(record) for record in broker.logs[Partition("deadletters", 0)]]
    [letter] = [one for one in letters if isinstance(one, DeadLetter)]
    assert (letter.topic, letter.offset, len(done.refused)) == ("telemetry.clock", 1, 1)


def everything(node: str, seq: int) -> Encoded:
    """Return a sample of as many GPUs as a node may have, under names as long as they may be."""
    words = {name: f"{name}-{'x' * 180}" for name in ("pool", "rack", "gpu_model")}
    said = dict.fromkeys(GPU_ARRAYS, (1.0,) * MAX_GPUS_PER_NODE)
    said |= dict.fromkeys(
        ("throttle_reasons", "ecc_corrected", "ecc_uncorrected"), (1,) * MAX_GPUS_PER_NODE
    )
    ids = tuple(f"gpu-{n}" for n in range(MAX_GPUS_PER_NODE))
    message = gpu_sample(node, seq=seq, at=START, gpu_ids=ids, **words, **said)
    return encode("telemetry.gpu", node, message, event_id=f"{node}/{seq}", source="test")


def test_a_frame_is_closed_before_a_broker_would_refuse_it_and_order_is_kept() -> None:
    wall = Wall()
    broker = anchored(wall)
    framer = Framer(broker, "local", wall=wall)
    framer.open()
    broker.produce([everything("n1", seq) for seq in range(1, 401)])
    assert sum(done.frames for done in until_dry(framer)) > 1
    logs = [broker.logs[Partition("internal.frames", n)] for n in range(4)]
    assert max(len(record.value or b"") for log in logs for record in log) < 1_000_000
    assert [seq for frame in framed(broker) for seq in frame.seqs] == list(range(1, 401))


def test_a_round_takes_no_more_samples_than_memory_is_meant_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shell, "MAX_SAMPLES", 10)
    monkeypatch.setattr(shell, "HANDFUL", 4)
    wall = Wall()
    broker = anchored(wall)
    framer = Framer(broker, "local", wall=wall)
    framer.open()
    broker.produce([sample(f"n{n}", 1) for n in range(25)])
    taken = [done.samples for done in until_dry(framer)]
    assert max(taken) <= 10
    assert sum(taken) == 25


def test_samples_that_never_pause_wait_no_longer_than_the_linger_for_their_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shell, "HANDFUL", 1)
    wall = Wall()
    broker = anchored(wall)
    framer = Framer(broker, "local", wall=wall)
    framer.open()
    broker.produce([sample(f"n{n}", 1) for n in range(200)])
    ticking = itertools.count(0, shell.LINGER_US // 10)
    monkeypatch.setattr(shell.clock, "monotonic_us", lambda: next(ticking))
    assert 1 <= framer.advance().samples <= 11


@pytest.mark.parametrize("stated", [b"", b"soon", b"-1", b"9" * 5_000, b"9" * 19, b"\xff"])
def test_a_position_that_nobody_can_have_written_is_none_to_start_from(stated: bytes) -> None:
    wall = Wall()
    broker = anchored(wall)
    broker.produce([sample(f"n{n}", 1) for n in range(8)])
    framer = Framer(broker, "local", wall=wall)
    framer.open()
    framer.advance()
    forged = Encoded(topic="internal.frames", key=b"0", headers=((FRAMED_THROUGH, stated),),
                     value=b"x", partition=0)  # fmt: skip
    broker.produce([forged])
    again = Framer(broker, "local", wall=wall)
    again.open()
    first = Partition("telemetry.gpu", 0)
    assert again.positions[first] in (0, framer.positions[first])
