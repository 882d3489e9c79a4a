"""Recognise events that come twice, in bounded memory: a sliding window of sequence numbers.

The window is that of IPsec's anti-replay check (RFC 4303, section 3.4.3), kept per source and boot:
numbers within it are known exactly, in any order; older ones count as duplicates.
"""

from typing import Final

import msgspec

WINDOW: Final = 4096
MAX_STREAMS: Final = 256
MAX_DIGITS: Final = 18
_ALL: Final = (1 << WINDOW) - 1


class Stream(msgspec.Struct, array_like=True):
    """One source's boot: highest number, a bit per number below it, and when last heard of."""

    top: int
    seen: bytes
    used: int


class Duplicates(msgspec.Struct):
    """The windows of the streams heard of last."""

    streams: dict[str, Stream] = {}
    heard: int = 0

    def is_new(self, event_id: str) -> bool:
        """Say whether a source event's id, `fleet/source/boot/seq`, comes for the first time.

        An id of another form carries no number to go by and is always new.
        """
        name, _, text = event_id.rpartition("/")
        if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
            return True
        seq = int(text)
        self.heard += 1
        stream = self.streams.get(name)
        if stream is None:
            self._make_room()
            self.streams[name] = Stream(seq, _pack(1), self.heard)
            return True
        stream.used = self.heard
        seen = int.from_bytes(stream.seen, "little")
        behind = stream.top - seq
        if behind < 0:
            stream.top = seq
            stream.seen = _pack(1 if -behind >= WINDOW else ((seen << -behind) | 1) & _ALL)
            return True
        if behind >= WINDOW or seen >> behind & 1:
            return False
        stream.seen = _pack(seen | 1 << behind)
        return True

    def _make_room(self) -> None:
        if len(self.streams) >= MAX_STREAMS:
            # By time and name, so that a state that was saved and loaded forgets the same one.
            oldest = min(self.streams, key=lambda name: (self.streams[name].used, name))
            del self.streams[oldest]


def _pack(bits: int) -> bytes:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")
