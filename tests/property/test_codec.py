"""The codec: what is encoded decodes to itself, and nothing else gets in or blows up."""

import hashlib
from base64 import b64decode
from typing import get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpuloop.ops.cli.lines import when
from gpuloop.schemas.catalogue import CATALOGUE, MAX_VALUE_BYTES
from gpuloop.schemas.codec import BadInput, Record, dead_letters, decode, encode
from gpuloop.schemas.messages import Approval, ClockAnchor, Fault, GpuSample, JobEvent
from gpuloop.schemas.messages.record import DeadLetterReason
from gpuloop.schemas.units import INT64_MAX

REASONS = set(get_args(DeadLetterReason))


def record(value, *, topic="telemetry.gpu", type_=b"gpuloop.telemetry.gpu", schema=None):
    headers = (("ce_type", type_),) if type_ else ()
    if schema:
        headers += (("ce_dataschema", schema),)
    return Record(
        topic=topic, partition=3, offset=7, timestamp_ms=1, key=b"k", headers=headers, value=value
    )


def stored(encoded):
    return Record(
        topic=encoded.topic,
        partition=0,
        offset=0,
        timestamp_ms=0,
        key=encoded.key,
        headers=encoded.headers,
        value=encoded.value,
    )


ratio = st.none() | st.floats(0, 1)
name = st.text(min_size=1, max_size=20)


@st.composite
def samples(draw):
    gpus = draw(st.integers(1, 8))

    def column(values):
        return draw(st.just(()) | st.lists(values, min_size=gpus, max_size=gpus).map(tuple))

    return GpuSample(
        fleet=draw(name),
        node=draw(name),
        pool=draw(name),
        rack=draw(name),
        gpu_model=draw(name),
        billing=draw(st.sampled_from(["on_demand", "spot"])),
        event_time_us=draw(st.integers(0, 2**53)),
        boot=draw(st.integers(0, 100)),
        seq=draw(st.integers(0, 2**40)),
        gpu_ids=tuple(f"GPU-{i}" for i in range(gpus)),
        utilisation=column(ratio),
        sm_active=column(ratio),
        temperature_celsius=column(st.none() | st.floats(-50, 200)),
        power_watts=column(st.none() | st.floats(0, 2000)),
        ecc_corrected=column(st.none() | st.integers(0, 2**40)),
    )


@given(samples())
def test_a_sample_survives_encoding(sample):
    encoded = encode(
        "telemetry.gpu", sample.node, sample, event_id="e", source="s", time_us=sample.event_time_us
    )
    assert decode(stored(encoded)) == sample


@given(st.binary(max_size=300))
def test_any_bytes_either_decode_or_raise_one_typed_error(value):
    refused = set()
    for topic in CATALOGUE.values():
        for kind in topic.messages:
            try:
                decode(record(value, topic=topic.name, type_=f"gpuloop.{kind.TYPE}".encode()))
            except BadInput as error:
                refused.add(error.reason)
    assert refused <= REASONS


@settings(max_examples=50)
@given(samples(), st.data())
def test_a_cut_or_flipped_sample_never_raises_anything_else(sample, data):
    value = bytearray(msgspec.json.encode(sample))
    position = data.draw(st.integers(0, len(value) - 1))
    value[position] ^= data.draw(st.integers(1, 255))
    refused = set()
    for mutant in (bytes(value), bytes(value[:position])):
        try:
            decode(record(mutant))
        except BadInput as error:
            refused.add(error.reason)
    assert refused <= REASONS


GOOD = msgspec.json.decode(
    msgspec.json.encode(
        GpuSample(
            fleet="f",
            node="n",
            pool="p",
            rack="r",
            gpu_model="H100",
            billing="spot",
            event_time_us=1,
            boot=0,
            seq=0,
            gpu_ids=("a", "b"),
            utilisation=(0.5, None),
        )
    )
)


def changed(**fields):
    return msgspec.json.encode({**GOOD, **fields})


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        ("empty", None),
        ("empty", b""),
        ("truncated", changed()[:-5]),
        ("too_large", b" " * (MAX_VALUE_BYTES + 1)),
        ("too_deep", b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
        ("not_json", b'{"fleet": NaN}'),
        ("not_json", b"\xff\xfe"),
        ("not_json", b'{"fleet":"\xff"}'),
        ("wrong_type", changed(seq="one")),
        ("wrong_type", b"[]"),
        ("out_of_range", changed(utilisation=[1.5, 0.0])),
        ("out_of_range", changed(utilisation=[-0.1, 0.0])),
        ("out_of_range", changed()[:-1] + b',"event_time_us":1e999}'),
        ("out_of_range", changed(event_time_us=-1)),
        ("out_of_range", changed(node="")),
        ("inconsistent", changed(utilisation=[0.5])),
    ],
)
def test_bad_input_is_refused_with_its_reason(reason, value):
    with pytest.raises(BadInput) as refused:
        decode(record(value))
    assert refused.value.reason == reason


def test_an_unknown_version_is_refused_and_the_known_one_accepted():
    with pytest.raises(BadInput, match="unknown_version"):
        decode(record(changed(), schema=b"gpuloop/telemetry.gpu/2"))
    assert decode(record(changed(), schema=b"gpuloop/telemetry.gpu/1"))


def test_a_type_that_does_not_belong_on_the_topic_is_refused():
    with pytest.raises(BadInput, match="unknown_type"):
        decode(record(changed(), type_=b"gpuloop.rewards"))
    with pytest.raises(BadInput, match="unknown_type"):
        decode(record(changed(), type_=None))


def test_telemetry_tolerates_unknown_fields_and_commands_do_not():
    assert decode(record(changed(colour="red")))
    approval = {
        "fleet": "f",
        "command_id": "0" * 64,
        "digest": "1" * 64,
        "approve": True,
        "by": "ada",
    }
    accepted = decode(record(msgspec.json.encode(approval), topic="approvals", type_=None))
    assert isinstance(accepted, Approval)
    misspelt = msgspec.json.encode({**approval, "aprove": False})
    with pytest.raises(BadInput) as refused:
        decode(record(misspelt, topic="approvals", type_=None))
    assert refused.value.reason == "unknown_field"


def test_a_refused_record_is_kept_whole_in_chunks():
    value = bytes(range(256)) * 5000
    bad = record(value)
    with pytest.raises(BadInput) as refused:
        decode(bad)
    letters = dead_letters(bad, refused.value, stage="framer", fleet="f")
    assert len(letters) == letters[0].chunks == 3
    assert b"".join(b64decode(letter.value) for letter in letters) == value
    assert {letter.value_sha256 for letter in letters} == {hashlib.sha256(value).hexdigest()}
    assert all(len(msgspec.json.encode(letter)) < MAX_VALUE_BYTES for letter in letters)
    assert letters[0].reason == "too_large"


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (b"k" * 700_000, ()),
        (b"k", (("h", b"v" * 500_000),)),
        (b"k", (("\x01" * 300_000, b"v"),)),
        (b"k", tuple((f"h{n}", b"v") for n in range(65))),
    ],
)
def test_a_dead_letter_can_be_written_whatever_stood_around_the_value(key, headers):
    bad = msgspec.structs.replace(record(b"{" * 500_000), key=key, headers=headers)
    with pytest.raises(BadInput) as refused:
        decode(bad)
    [letter] = dead_letters(bad, refused.value, stage="framer", fleet="f")
    encoded = encode("deadletters", bad.topic, letter, event_id="e", source="s")
    assert len(encoded.value) < MAX_VALUE_BYTES
    assert decode(stored(encoded)) == letter
    told = letter.key + "".join(value for _, value in letter.headers)
    assert "sha256:" in told


AT = 1_508_112_000_123_457


def test_times_are_rendered_exactly():
    fault = Fault(
        fleet="f",
        node="n",
        pool="p",
        kind="xid",
        event_time_us=1_508_112_000_123_457,
        boot=0,
        seq=0,
    )
    encoded = encode(
        "telemetry.faults", "n", fault, event_id="e", source="s", time_us=fault.event_time_us
    )
    assert dict(encoded.headers)["ce_time"] == b"2017-10-16T00:00:00.123457+00:00"


def test_field_order_is_that_of_the_class_so_equal_messages_have_equal_bytes():
    event = JobEvent(
        fleet="f",
        job="j",
        kind="submitted",
        pool="p",
        tenant="t",
        job_class="c",
        event_time_us=0,
        boot=0,
        seq=0,
        gpus=1,
    )
    assert msgspec.json.encode(event).startswith(b'{"fleet":"f","job":"j","kind":"submitted"')


@given(st.integers(0, INT64_MAX))
@example(INT64_MAX)
@example(253_402_300_799_999_999)
@example(253_402_300_800_000_000)
def test_a_time_of_any_year_can_be_written_and_told_to_people(time_us):
    anchor = ClockAnchor(fleet="f", world="w", anchor_us=time_us, anchor_wall_us=0, speed=1.0)
    written = stored(
        encode("telemetry.clock", "f", anchor, event_id="1", source="w", time_us=time_us)
    )
    assert decode(written) == anchor
    assert (written.header("ce_time") is None) == (time_us >= 253_402_300_800_000_000)
    assert when(time_us)


def test_the_time_of_an_event_is_written_to_the_microsecond():
    anchor = ClockAnchor(fleet="f", world="w", anchor_us=0, anchor_wall_us=0, speed=1.0)
    written = encode("telemetry.clock", "f", anchor, event_id="1", source="w", time_us=1_000_001)
    assert stored(written).header("ce_time") == "1970-01-01T00:00:01.000001+00:00"
