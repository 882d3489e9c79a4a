"""The contracts: checked-in schemas are current, incompatible changes are refused."""

import copy
import json

import pytest

from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.export import (
    GENERATED,
    BreakingChange,
    asyncapi,
    documents,
    export,
    incompatibilities,
    json_schema,
    message_types,
)
from gpuloop.schemas.messages import Approval, Fault, JobEvent

JOB = json_schema(JobEvent)


def test_checked_in_schemas_are_what_the_classes_generate():
    for path, text in documents().items():
        assert (GENERATED / path).read_text() == text, f"run: gpuloop schemas export ({path})"
    on_disk = {str(path.relative_to(GENERATED)) for path in GENERATED.rglob("*.json")}
    assert on_disk == set(documents())


def test_every_type_name_is_unique_and_on_some_topic():
    kinds = [kind for topic in CATALOGUE.values() for kind in topic.messages]
    assert len({kind.TYPE for kind in kinds}) == len(set(kinds)) == len(message_types())


def test_an_unchanged_schema_is_compatible():
    assert incompatibilities(JOB, copy.deepcopy(JOB)) == []


def _changed(change):
    new = copy.deepcopy(JOB)
    change(new["$defs"]["JobEvent"])
    return incompatibilities(JOB, new)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("removed", lambda d: d["properties"].pop("reason")),
        ("new and required", lambda d: (d["properties"].update(x={}), d["required"].append("x"))),
        ("became required", lambda d: d["required"].append("reason")),
        ("no longer always there", lambda d: d["required"].remove("job")),
        ("type went", lambda d: d["properties"]["attempt"].update(type="string")),
        ("maximum went", lambda d: d["properties"]["gpus"].update(maximum=8)),
        ("enum went", lambda d: d["properties"]["kind"]["enum"].append("paused")),
        ("maxItems went", lambda d: d["properties"]["nodes"].update(maxItems=1)),
    ],
)
def test_an_incompatible_change_is_named(what, change):
    assert any(what in line for line in _changed(change)), _changed(change)


def test_a_new_optional_field_is_compatible_for_telemetry_and_not_for_strict_messages():
    assert _changed(lambda d: d["properties"].update(note={"type": "string"})) == []
    old, new = json_schema(Approval), json_schema(Approval)
    new["$defs"]["Approval"]["properties"]["note"] = {"type": "string"}
    assert incompatibilities(old, new) != []


def test_export_refuses_to_overwrite_a_contract_with_an_incompatible_one(tmp_path):
    export(tmp_path)
    path = tmp_path / "json" / f"{Fault.TYPE}.json"
    old = json.loads(path.read_text())
    old["$defs"]["Fault"]["properties"]["severity"] = {"type": "integer"}
    path.write_text(json.dumps(old))
    with pytest.raises(BreakingChange, match="severity: removed"):
        export(tmp_path)
    assert export(tmp_path, allow_breaking=True) == [path]
    assert export(tmp_path) == []


def test_every_reference_of_the_asyncapi_document_resolves():
    document = asyncapi()

    def references(node):
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    for reference in references(document):
        if not reference.startswith("#"):
            assert (GENERATED / reference).is_file(), reference
            continue
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]


def test_operations_name_each_producer_and_consumer_once():
    document = asyncapi()
    expected = sum(len(t.producers) + len(t.consumers) for t in CATALOGUE.values())
    assert len(document["operations"]) == expected
