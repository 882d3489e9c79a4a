"""JSON Schema and AsyncAPI 3 from the message classes, and a judge of changes to them.

The generated files under `schemas/generated/` are checked in, so that a consumer in any language
reads them without Python, and a change of a contract is seen in review as a change of these files.
"""

import inspect
import json
from pathlib import Path
from typing import Any, Final

import msgspec

from gpuloop.schemas.catalogue import CATALOGUE, Topic
from gpuloop.schemas.codec import CONTENT_TYPES
from gpuloop.schemas.messages import Message, dataschema

JSON_SCHEMA: Final = "https://json-schema.org/draft/2020-12/schema"
GENERATED: Final = Path(__file__).resolve().parent / "generated"

Json = dict[str, Any]


def message_types() -> list[type[Message]]:
    """Return every message class of the catalogue, by type name."""
    kinds = {kind.TYPE: kind for topic in CATALOGUE.values() for kind in topic.messages}
    return [kinds[name] for name in sorted(kinds)]


def json_schema(kind: type[Message]) -> Json:
    """Return the JSON Schema of a message class."""
    (reference,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    return {
        "$schema": JSON_SCHEMA,
        "$id": f"urn:{dataschema(kind).replace('/', ':')}",
        **reference,
        "$defs": {name: _tidy(part) for name, part in sorted(components.items())},
    }


def _tidy(part: Json) -> Json:
    """Return a schema whose description is the docstring without its indentation."""
    if "description" in part:
        part = {**part, "description": inspect.cleandoc(part["description"])}
    return part


def asyncapi() -> Json:
    """Return the AsyncAPI 3 document of all topics."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "gpuloop",
            "version": "1",
            "description": "Topics of gpuloop: CloudEvents 1.0 in Kafka's binary content mode.",
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(topic) for name, topic in CATALOGUE.items()},
        "operations": {
            f"{service}.{verb}.{name}": {
                "action": verb,
                "channel": {"$ref": f"#/channels/{_pointer(name)}"},
            }
            for name, topic in CATALOGUE.items()
            for verb, services in (("send", topic.producers), ("receive", topic.consumers))
            for service in services
        },
        "components": {"messages": {kind.TYPE: _message(kind) for kind in message_types()}},
    }


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _channel(topic: Topic) -> Json:
    return {
        "address": topic.name,
        "description": topic.description,
        "messages": {
            kind.TYPE: {"$ref": f"#/components/messages/{_pointer(kind.TYPE)}"}
            for kind in topic.messages
        },
        "bindings": {
            "kafka": {
                "partitions": topic.partitions,
                "topicConfiguration": {
                    "cleanup.policy": ["compact" if topic.compacted else "delete"],
                    "retention.ms": topic.retention_ms,
                },
                "bindingVersion": "0.5.0",
            }
        },
        "x-key": topic.key,
        "x-content-type": CONTENT_TYPES[topic.encoding].decode(),
    }


def _message(kind: type[Message]) -> Json:
    return {
        "name": f"gpuloop.{kind.TYPE}",
        "summary": (kind.__doc__ or "").splitlines()[0],
        "headers": {
            "type": "object",
            "properties": {
                "ce_specversion": {"const": "1.0"},
                "ce_id": {"type": "string"},
                "ce_type": {"const": f"gpuloop.{kind.TYPE}"},
                "ce_source": {"type": "string"},
                "ce_subject": {"type": "string"},
                "ce_time": {"type": "string", "format": "date-time"},
                "ce_dataschema": {"const": dataschema(kind)},
            },
        },
        "payload": {"$ref": f"json/{kind.TYPE}.json"},
    }


def documents() -> dict[str, str]:
    """Return every generated file by its path under the output folder."""
    files = {f"json/{kind.TYPE}.json": json_schema(kind) for kind in message_types()}
    files["asyncapi.json"] = asyncapi()
    return {path: json.dumps(body, indent=2, default=str) + "\n" for path, body in files.items()}


class BreakingChange(Exception):
    """A checked-in contract would change so that an old reader or writer fails."""


def breaking_changes(folder: Path = GENERATED) -> list[str]:
    """Return how the message classes break the contracts that are checked in under `folder`."""
    found = []
    for kind in message_types():
        path = folder / "json" / f"{kind.TYPE}.json"
        if path.exists():
            old = json.loads(path.read_text())
            if old["$id"] == json_schema(kind)["$id"]:
                found += [
                    f"{kind.TYPE} {line}" for line in incompatibilities(old, json_schema(kind))
                ]
    return found


def export(folder: Path = GENERATED, *, allow_breaking: bool = False) -> list[Path]:
    """Write the generated files, remove those that no longer belong, return what changed.

    Raises:
        BreakingChange: a contract would break within its major version, and that is not allowed.
    """
    if not allow_breaking and (found := breaking_changes(folder)):
        raise BreakingChange("raise MAJOR of the message or undo:\n" + "\n".join(found))
    wanted = {folder / path: text for path, text in documents().items()}
    changed = []
    for path in folder.rglob("*.json"):
        if path not in wanted:
            path.unlink()
            changed.append(path)
    for path, text in wanted.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            changed.append(path)
    return sorted(changed)


def incompatibilities(old: Json, new: Json) -> list[str]:
    """Return what a consumer or producer of the old schema would trip over in the new one.

    Within a major version a message may gain an optional field and nothing else: both an old
    reader of new records and a new reader of old records must succeed.
    """
    return _compare(old, new, old, new, "$")


def _compare(old: Json, new: Json, old_root: Json, new_root: Json, at: str) -> list[str]:
    old, new = _resolve(old, old_root), _resolve(new, new_root)
    found = []
    for word in ("anyOf", "oneOf", "prefixItems"):
        before, after = old.get(word, []), new.get(word, [])
        if len(before) != len(after):
            found.append(f"{at}: {word} went from {len(before)} to {len(after)} alternatives")
            continue
        for index, (a, b) in enumerate(zip(before, after, strict=True)):
            found += _compare(a, b, old_root, new_root, f"{at}.{word}[{index}]")
    for word in ("type", "enum", "const", "pattern", "additionalProperties", *_LIMITS):
        before, after = old.get(word), new.get(word)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _compare(before, after, old_root, new_root, f"{at}.*")
        elif before != after:
            found.append(f"{at}: {word} went from {before!r} to {after!r}")
    if isinstance(old.get("items"), dict) and isinstance(new.get("items"), dict):
        found += _compare(old["items"], new["items"], old_root, new_root, f"{at}[]")
    found += _compare_fields(old, new, old_root, new_root, at)
    return found


_LIMITS: Final = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")


def _compare_fields(old: Json, new: Json, old_root: Json, new_root: Json, at: str) -> list[str]:
    before, after = old.get("properties", {}), new.get("properties", {})
    found = [f"{at}.{name}: removed" for name in before if name not in after]
    old_required, new_required = set(old.get("required", [])), set(new.get("required", []))
    found += [
        f"{at}.{name}: {'became required' if name in before else 'new and required'}"
        for name in sorted(new_required - old_required)
    ]
    found += [
        f"{at}.{name}: no longer always there" for name in sorted(old_required - new_required)
    ]
    if old.get("additionalProperties") is False:
        found += [
            f"{at}.{name}: new, and strict readers refuse it"
            for name in after
            if name not in before
        ]
    for name in before.keys() & after.keys():
        found += _compare(before[name], after[name], old_root, new_root, f"{at}.{name}")
    return sorted(found)


def _resolve(schema: Json, root: Json) -> Json:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    return dict(root["$defs"][reference.rsplit("/", 1)[-1]])
