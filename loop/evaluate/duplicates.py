"""Recognise events that come twice, in bounded memory: which sequence numbers were seen.

Numbers are kept per source and boot, a bit each, in blocks; the blocks used last are kept. Within
them every number is known exactly, in any order. A number far ahead gets a block of its own, so a
forged or mistaken one does not make those that truly come next look old: the block is forgotten
when it is not used again.
"""

from typing import Final

import msgspec

BLOCK: Final = 1024
MAX_BLOCKS: Final = 4
REACH_BLOCKS: Final = 1024
"""How far a stream may truly move on; further ahead is another matter, or a mistake."""

MAX_STREAMS: Final = 256
MAX_DIGITS: Final = 18


class Block(msgspec.Struct, array_like=True):
    """Which of `BLOCK` numbers from `number * BLOCK` on were seen."""

    number: int
    seen: bytes


class Stream(msgspec.Struct, array_like=True):
    """One source's boot: its blocks, the one used last at the end, and when it was heard of.

    Numbers of blocks below `floor` count as duplicates: the stream has moved on from there.
    """

    blocks: list[Block]
    floor: int
    used: int


class Duplicates(msgspec.Struct):
    """The streams heard of last; `leaps` counts numbers that stood far ahead of their stream."""

    sources: dict[str, Stream] = {}
    heard: int = 0
    leaps: int = 0

    def is_new(self, event_id: str) -> bool:
        """Say whether a source event's id, `fleet/source/boot/seq`, comes for the first time.

        An id of another form carries no number to go by and is always new.
        """
        name, _, text = event_id.rpartition("/")
        if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
            return True
        number, place = divmod(int(text), BLOCK)
        self.heard += 1
        stream = self.sources.get(name)
        if stream is None:
            self._make_room()
            stream = self.sources[name] = Stream([], 0, 0)
        stream.used = self.heard
        block = next((block for block in stream.blocks if block.number == number), None)
        if block is not None:
            stream.blocks.remove(block)
        elif number < stream.floor:
            return False
        else:
            last = stream.blocks[-1].number if stream.blocks else number
            self.leaps += number > last + REACH_BLOCKS
            _forget(stream)
            block = Block(number, b"")
        stream.blocks.append(block)
        seen = int.from_bytes(block.seen, "little")
        block.seen = _pack(seen | 1 << place)
        return not seen >> place & 1

    def _make_room(self) -> None:
        if len(self.sources) >= MAX_STREAMS:
            # By time and name, so that a state that was saved and loaded forgets the same one.
            oldest = min(self.sources, key=lambda name: (self.sources[name].used, name))
            del self.sources[oldest]


def _forget(stream: Stream) -> None:
    """Make room for a block. When the stream moved on from the lowest, that is its new floor."""
    if len(stream.blocks) < MAX_BLOCKS:
        return
    oldest = stream.blocks.pop(0).number
    lowest = min(block.number for block in stream.blocks)
    if oldest < lowest <= oldest + REACH_BLOCKS:
        stream.floor = max(stream.floor, oldest + 1)


def _pack(bits: int) -> bytes:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")
