"""What an agent of the observe stage keeps of the records it has handled."""

import asyncio
import weakref
from types import SimpleNamespace
from typing import Any, cast

from builders import START_US
from faults.agent import Observing
from faults.loops import FLEET
from gpuloop.loop.shells.broker import Partition
from gpuloop.schemas.codec import Encoded, encode
from gpuloop.schemas.messages import Frame
from gpuloop.schemas.units import HOUR_US
from gpuloop.streams import frames
from observed import gpu_sample

FRAMES = "internal.frames"


class Message(SimpleNamespace):
    """A record as the library hands it over, whose end can be seen."""


def told(frame: Frame) -> Encoded:
    return encode(FRAMES, "0", frame, event_id="f", source="test", partition=0)


def data(seq: int, at_us: int = START_US) -> Encoded:
    return told(frames.pack(FLEET, 0, [gpu_sample("n1", seq=seq, at=at_us, fleet=FLEET)]))


def handle(observing: Observing, *records: Encoded) -> list[weakref.ref[Message]]:
    """Let one life of the process handle records, and see which of them it still holds."""
    observing.broker.produce(records)

    async def live() -> list[weakref.ref[Message]]:
        agent, seen = observing._agents([FRAMES])[FRAMES], []
        for at in range(len(records)):
            message = Message(**vars(observing._event(FRAMES, at).message))
            seen.append(weakref.ref(message))
            await agent._handle(cast(Any, observing), cast(Any, SimpleNamespace(message=message)))
            del message
        return [one for one in seen if one() is not None]

    return asyncio.run(live())


def test_records_that_wait_for_a_tick_are_not_kept_in_memory_until_it_comes() -> None:
    observing = Observing()
    assert handle(observing, *(data(seq) for seq in range(1, 20))) == []
    assert observing.positions.settled == {}


def test_a_tick_settles_all_records_that_waited_for_it() -> None:
    observing = Observing()
    handle(observing, data(1), data(2), told(frames.tick(FLEET, 0, START_US)), data(3))
    assert observing.positions.settled == {(FRAMES, 0): 3}


def test_a_frame_of_a_source_with_a_broken_clock_makes_no_row() -> None:
    observing = Observing()
    late = told(frames.tick(FLEET, 0, START_US))
    handle(observing, data(1, START_US + 3 * HOUR_US), late)
    assert observing.rows["nodes"] == {}


def test_a_frame_on_a_partition_that_is_not_its_own_makes_no_row_and_is_kept_for_people() -> None:
    observing = Observing()
    frame = frames.pack(FLEET, 3, [gpu_sample("n1", at=START_US, fleet=FLEET)])
    handle(observing, told(frame), told(frames.tick(FLEET, 0, START_US)))
    assert observing.rows["nodes"] == {}
    assert len(observing.broker.logs[Partition("deadletters", 0)]) == 1
