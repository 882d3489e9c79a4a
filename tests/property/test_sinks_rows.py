"""Any message that its topic's contract allows makes rows of the declared kinds, or has no date."""

from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from gpuloop.schemas.codec import BadInput, encode_value
from gpuloop.schemas.messages import Message
from gpuloop.schemas.units import INT64_MAX
from gpuloop.streams.sinks.analysis import ANALYSIS
from gpuloop.streams.sinks.history import HISTORY
from gpuloop.streams.sinks.tables import Catalogue, Column, Table, Value

KINDS: dict[str, type] = {
    "text": str, "word": str, "int": int, "float": float, "bool": bool, "time": datetime,
    "texts": list, "ints": list, "floats": list, "measures": list,
}  # fmt: skip
CASES = [
    pytest.param(catalogue, table, topic, id=f"{table.name}-{topic}")
    for catalogue in (HISTORY, ANALYSIS)
    for table in catalogue.tables
    for topic in table.topics
]
FAR_US = 8_000_000_000_000_000
"""Later than any store's calendar, as some drawn times are."""


def built(kind: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Return how to draw what a field may hold, by its own declaration."""
    match kind:
        case msgspec.inspect.Metadata(type=inner):
            return built(inner)
        case msgspec.inspect.IntType(ge=low, le=high):
            low, high = low or 0, high if high is not None else INT64_MAX
            return st.integers(low, high) | st.integers(low, min(high, max(low, FAR_US)))
        case msgspec.inspect.FloatType(ge=low, le=high):
            return st.floats(low, high, allow_nan=False, allow_infinity=False)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.StrType(pattern=str()):
            return st.text("0123456789abcdef", min_size=64, max_size=64)
        case msgspec.inspect.StrType(min_length=shortest):
            return st.text(min_size=shortest or 0, max_size=8)
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(*map(built, types))
        case msgspec.inspect.VarTupleType(item_type=item, max_length=most):
            return st.lists(built(item), max_size=min(most or 3, 3)).map(tuple)
        case msgspec.inspect.TupleType(item_types=items):
            return st.tuples(*map(built, items))
        case msgspec.inspect.DictType(key_type=key, value_type=of):
            return st.dictionaries(built(key), built(of), max_size=3)
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: built(field.type) for field in fields})
    raise AssertionError(f"nothing is drawn for {kind}")


def fits(column: Column, value: Value) -> bool:
    """Say whether a column may hold a value."""
    if value is None:
        return column.nullable
    if column.kind == "int":
        return type(value) is int and -INT64_MAX - 1 <= value <= INT64_MAX
    if column.kind == "float":
        return type(value) in (int, float)
    return isinstance(value, KINDS[column.kind])


@pytest.mark.parametrize(("catalogue", "table", "topic"), CASES)
@settings(max_examples=25, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(data=st.data())
def test_any_valid_message_maps(
    catalogue: Catalogue, table: Table, topic: str, data: st.DataObject
) -> None:
    message: Message = data.draw(built(msgspec.inspect.type_info(table.message)))
    decoded = msgspec.json.decode(encode_value(topic, message), type=table.message)
    try:
        rows = catalogue.rows(topic, decoded, "e")
    except BadInput as error:
        event(error.reason)
        if error.reason != "out_of_range":
            raise
        rows = {}
    else:
        assert rows == catalogue.rows(topic, message, "e")
    for name, made in rows.items():
        columns = catalogue[name].columns
        for row in made:
            assert [c.name for c, v in zip(columns, row, strict=True) if not fits(c, v)] == []
