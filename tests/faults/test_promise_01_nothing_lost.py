"""Promise 1: no acknowledged event is lost.

What a broker has acknowledged is, whatever dies when: answered by a journaled component or set
aside as a dead letter; packed into a frame if it is a GPU sample; and, once a world has committed
it, said on its topic. Processes die between any two steps and when a write fails, half landed or
whole; they are restarted and, like their brokers, die again. An undisturbed run in memory says what
must be there. With SIGKILL on Kafka: `tests/integration/test_live_shell_kill.py`,
`test_twin_service.py`, `test_faust_observe.py`.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from echo import FLEET, START_US, Echo, EchoState, Silent, anchor, fault_output

from faults.guards import Guard, line, violations
from faults.storm import Died, rage, storm
from gpuloop.loop.shells.broker import BrokerError, Placed
from gpuloop.loop.shells.fold import encode_outputs
from gpuloop.loop.shells.framer import Framer
from gpuloop.loop.shells.live import LiveConfig, LiveShell
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.loop.shells.transactional import TransactionalShell
from gpuloop.schemas.codec import Encoded, decode, encode
from gpuloop.schemas.component import Output
from gpuloop.schemas.messages import DeadLetter, Fault, Frame, GpuSample

WALL_US = 1_700_000_000_000_000
STEPS = ("stepped", "refused", "journaled", "produced", "committed")


class Unlucky(MemoryBroker):
    """A broker whose every so many-th write fails, none, some or all of it having landed."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(wall=lambda: WALL_US)
        self.rng = rng
        self.lucky = 0

    def produce(self, records: Sequence[Encoded]) -> list[Placed]:
        """Write records, or fail."""
        self.lucky -= 1
        if self.lucky == 0:
            super().produce(records[: self.rng.integers(0, len(records) + 1)])
            raise BrokerError("whether the write took place is unknown")
        return super().produce(records)

    def tempt(self) -> None:
        """Let one of the next few writes fail, or none."""
        self.lucky = int(self.rng.integers(-3, 6))

    def messages(self, topic: str) -> list[Any]:
        """Return all messages on a topic."""
        return [decode(r) for part in self.partitions(topic) for r in self.logs[part]]


def check_journaled(seed: int) -> list[str]:
    """Return faults that a component that died again and again neither answered nor set aside."""
    rng = np.random.Generator(np.random.Philox(seed))
    broker = Unlucky(rng)
    broker.produce([anchor(wall_us=WALL_US, speed=0.0)])
    told: list[Output] = []
    doomed = {"step": "", "luck": 0}

    def failpoint(step: str) -> None:
        doomed["luck"] -= step == doomed["step"]
        if step == doomed["step"] and doomed["luck"] == 0:
            raise Died

    for life in range(8):
        last = life == 7
        config = LiveConfig(
            fleet=FLEET, seed=7, run=f"run-{life}", max_records=5, poll_us=0,
            snapshot_every_cuts=int(rng.integers(1, 6)),
        )  # fmt: skip
        shell: LiveShell[EchoState] = LiveShell(
            Echo(), broker, config, Silent(), wall=lambda: WALL_US, failpoint=failpoint
        )
        doomed["step"] = "" if last else str(rng.choice(STEPS))
        doomed["luck"] = int(rng.integers(1, 4))
        broker.lucky = 0
        for _ in range(int(rng.integers(0, 12))):
            detail = "refuse me" if rng.random() < 0.2 else ""
            told.append(fault_output(len(told), node=f"n{rng.integers(3)}", detail=detail))
            broker.produce(encode_outputs(told[-1:], "test"))
        if not last:
            broker.tempt()
        try:
            shell.open()
            for _ in range(30 if last else 12):
                shell.advance()
        except (Died, BrokerError):
            continue
        finally:
            shell.close()
    answered = {one.metric.split("/", 3)[3] for one in broker.messages("insight.anomalies")}
    aside = {one.offset for one in broker.messages("deadletters") if isinstance(one, DeadLetter)}
    lost = []
    for offset, output in enumerate(told):
        assert isinstance(output.message, Fault)
        there = offset in aside if output.message.detail else output.event_id in answered
        if not there:
            lost.append(f"fault {offset} of {len(told)} {output.message.detail} is lost")
    return lost


SAMPLE = GpuSample(
    fleet=FLEET, node="n", pool="p", rack="r", gpu_model="a100", billing="spot",
    event_time_us=START_US, boot=1, seq=0, gpu_ids=("g",), utilisation=(0.5,),
)  # fmt: skip


def check_framed(seed: int) -> list[str]:
    """Return samples that are in no frame though they were on the topic."""
    rng = np.random.Generator(np.random.Philox(seed))
    broker = Unlucky(rng)
    broker.produce([anchor(wall_us=WALL_US, speed=0.0)])
    sent: set[tuple[str, int]] = set()
    for life in range(6):
        broker.lucky = 0
        for _ in range(int(rng.integers(0, 15))):
            sample = msgspec.structs.replace(SAMPLE, node=f"n{rng.integers(5)}", seq=len(sent))
            sent.add((sample.node, sample.seq))
            broker.produce([encode("telemetry.gpu", sample.node, sample, event_id="e", source="s")])
        if life < 5:
            broker.tempt()
        packer = Framer(broker, FLEET, wall=lambda: WALL_US)
        try:
            packer.open()
            packer.advance()
        except BrokerError:
            continue
        finally:
            packer.close()
    framed = {
        pair
        for frame in broker.messages("internal.frames")
        if isinstance(frame, Frame)
        for pair in zip(frame.nodes, frame.seqs, strict=True)
    }
    return [f"sample {seq} of {node} is lost" for node, seq in sorted(sent - framed)]


def check_world(seed: int) -> list[str]:
    """Return what a world that died on the way never said, by its sources' own numbers."""
    with storm(seed) as world:
        rage(world, 40)
        said = {
            record.header("ce_id")
            for part, log in world.broker.logs.items()
            if part.topic.startswith(("telemetry.", "market."))
            for record in log
        }
        wanted = [
            f"local/{source}/1/{number}"
            for source in ("resources", "market")
            for number in range(1, world.shell.state.world.seqs[source] + 1)
        ]
        return [f"{one} is lost" for one in wanted if one not in said]


def test_every_acknowledged_fault_is_answered_or_set_aside() -> None:
    assert violations(check_journaled, range(100, 200)) == []


def test_every_acknowledged_sample_is_framed() -> None:
    assert violations(check_framed, range(20)) == []


def test_everything_that_a_world_has_committed_is_said() -> None:
    assert violations(check_world, range(200, 215)) == []


GUARDS = [
    Guard(
        "the outputs of the last cut are sent again",
        line(LiveShell.open, ("self._broker.produce(found.last_outputs)", "pass")),
        check_journaled,
    ),
    Guard(
        "dead letters leave before the journal names their records",
        line(
            LiveShell._cut,
            (
                "self._broker.produce(encode_dead_letters("
                "executed.refused, stage=name, fleet=config.fleet))",
                "late = encode_dead_letters(executed.refused, stage=name, fleet=config.fleet)",
            ),
            ("self._broker.produce(outputs)", "self._broker.produce([*outputs, *late])"),
        ),
        check_journaled,
    ),
    Guard(
        "a start goes on where the journal ends",
        line(
            LiveShell.open,
            (
                "beginnings = starts(self._broker, self._component.inputs)",
                "beginnings = starts(self._broker, self._component.inputs);"
                " beginnings = self._broker.ends(list(beginnings))",
            ),
        ),
        check_journaled,
    ),
    Guard(
        "the framer goes on at the first sample that is in no frame",
        line(
            Framer.open,
            ("at if at is not None and known else begins[part]", "ends[part]"),
        ),
        check_framed,
    ),
    Guard(
        "a frame names no sample beyond it as framed",
        line(Framer._data_frame, ("through=batch.last + 1", "through=batch.last + 2")),
        check_framed,
    ),
    Guard(
        "what was not sent before a death is sent after it",
        line(TransactionalShell.open, ("self._send(unsent)", "pass")),
        check_world,
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=str)
def test_each_guard_is_needed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.found_without(monkeypatch)
