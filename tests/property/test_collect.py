"""Whatever an exporter says, what is made of it can be written, read again and believed."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gpuloop.schemas.messages import Fault, GpuSample
from gpuloop.streams.collect import dcgm
from gpuloop.streams.collect.dcgm import Node
from gpuloop.streams.collect.dcgm_names import BY_NAME, XID_COUNT

NAMES = st.sampled_from([*sorted(BY_NAME), XID_COUNT])
NUMBERS = st.one_of(st.floats().map(str), st.integers().map(str), st.text(max_size=6))
WORDS = st.one_of(st.text(max_size=12), st.integers(0, 9).map(str), st.just("1" * 5_000))


@st.composite
def lines(draw: st.DrawFn) -> str:
    """Return a line that looks like an exporter's, more or less."""
    names = ["gpu", "UUID", "modelName", "Hostname", "GPU_I_ID", "GPU_I_PROFILE", "xid"]
    labels = draw(st.dictionaries(st.sampled_from(names), WORDS, max_size=7))
    if draw(st.booleans()):
        labels |= {"gpu": str(draw(st.integers(0, 70))), "Hostname": "n1"}
    written = ",".join(f'{name}="{value}"' for name, value in labels.items())
    stamp = draw(st.one_of(st.just(""), st.integers().map(lambda at: f" {at}")))
    return f"{draw(NAMES)}{{{written}}} {draw(NUMBERS)}{stamp}"


@given(st.lists(st.lists(lines(), max_size=30), max_size=4))
def test_no_scrape_makes_a_message_that_its_reader_refuses(scrapes: list[list[str]]) -> None:
    nodes: dict[str, Node] = {}
    for rows in scrapes:
        found, _ = dcgm.read("\n".join(rows))
        for name, scrape in found.items():
            node = nodes.setdefault(name, Node("f", 1))
            told = node.hear(name, scrape, 5, pool="p", rack="r", billing="spot")
            for fault in told.faults:
                assert msgspec.json.decode(msgspec.json.encode(fault), type=Fault) == fault
            if told.sample is not None:
                written = msgspec.json.encode(told.sample)
                assert msgspec.json.decode(written, type=GpuSample) == told.sample
