"""docker-compose.secure.yml hands every process its own identity, and the broker what it needs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuloop.ops.stack.access import ADMIN, BROKER, PRINCIPALS, broker_settings
from gpuloop.ops.stack.services import SERVICES

ROOT = Path(__file__).resolve().parents[2]
PLAIN: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
SECURE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.secure.yml").read_text())[
    "services"
]
AT = "/run/gpuloop/access"
WHO = {name: name for name in SERVICES if name in PRINCIPALS} | {
    "topics": ADMIN, "controls": "operator", "kafka": BROKER,
}  # fmt: skip


def folder(principal: str) -> str:
    return f"${{ACCESS_DIR:-./access}}/{principal}"


def test_every_process_that_speaks_to_kafka_has_an_identity() -> None:
    speaks = {
        name
        for name, body in PLAIN.items()
        if body["image"].startswith("gpuloop-") and "stream" in body.get("networks", [])
    }
    assert set(SECURE) == speaks | {"kafka", "grants"}


@pytest.mark.parametrize("name", WHO)
def test_each_is_handed_its_own_identity_and_no_other(name: str) -> None:
    assert SECURE[name]["volumes"] == [f"{folder(WHO[name])}:{AT}:ro"]
    if name != "kafka":
        assert SECURE[name]["environment"]["GPULOOP_KAFKA_CONFIG"] == f"{AT}/kafka.properties"


def test_the_broker_is_secured_as_the_one_that_is_tested() -> None:
    given = SECURE["kafka"]["environment"]
    wanted = {
        "KAFKA_" + key.replace("-", "___").replace(".", "_").upper(): value
        for key, value in broker_settings(AT).items()
    }
    assert {key: given.get(key) for key in wanted} == wanted
    protocols = dict(
        pair.split(":") for pair in given["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    )
    assert protocols == {
        "INSIDE": "SASL_SSL",
        "HOST": "SASL_SSL",
        "ADMIN": "SSL",
        "CONTROLLER": "SSL",
    }


def test_only_who_grants_holds_the_passwords_of_others() -> None:
    assert SECURE["grants"]["volumes"] == [f"{folder(ADMIN)}:/access/{ADMIN}:ro"]
    assert SECURE["topics"]["depends_on"].keys() >= {"grants"}


def test_what_is_added_is_as_hardened_as_the_rest() -> None:
    for key in ("read_only", "cap_drop", "security_opt", "init", "logging", "stop_grace_period"):
        assert SECURE["grants"][key] == PLAIN["topics"][key]
