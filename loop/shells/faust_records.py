"""Records as Faust's client reads them, one door wider: header names that are not UTF-8.

The broker takes any bytes for a name. The client raises at such a record whenever it is fetched, so
one of them would stop a worker for good; here such a name is read with marks for what is no text.
"""

from collections.abc import Iterator
from typing import Any, Final

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy


def tolerate_any_header() -> None:
    """Have the client read what is fetched from now on as said above."""
    fetcher.MemoryRecords = _Records


class _Text(bytearray):
    """Bytes whose parts are text, whatever they hold."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Text(found) if isinstance(at, slice) else found

    def decode(self, *_: object) -> str:
        return super().decode("utf-8", "replace")


class _Batch:
    """A batch of records, all read when the first is asked for."""

    def __init__(self, batch: Any, piece: memoryview) -> None:
        self._batch: Final = batch
        self._piece: Final = piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            slowly = _DefaultRecordBatchPy(self._piece)
            slowly._maybe_uncompress()
            slowly._buffer = _Text(slowly._buffer)
            return iter(list(slowly))


class _Records(_MemoryRecordsPy):  # type: ignore[misc]
    """What one answer holds of a partition."""

    def next_batch(self) -> Any:
        piece = self._next_slice
        batch = super().next_batch()
        return _Batch(batch, piece) if isinstance(batch, DefaultRecordBatch) else batch
