"""Jars are fetched with the certificate that pip and uv were told to trust."""

import pytest

from gpuloop.ops.stack import kafka_jars
from gpuloop.ops.stack.kafka_jars import trust_as_pip_does


@pytest.fixture(autouse=True)
def _pip_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_jars, "_pips_certificate", lambda: "")


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "PIP_CERT"])
def test_what_others_were_told_is_trusted(name: str) -> None:
    environment = {name: "/proxy.pem"}
    trust_as_pip_does(environment)
    assert environment["REQUESTS_CA_BUNDLE"] == "/proxy.pem"


def test_pips_own_settings_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_jars, "_pips_certificate", lambda: "/from/pip.pem")
    environment: dict[str, str] = {}
    trust_as_pip_does(environment)
    assert environment["REQUESTS_CA_BUNDLE"] == "/from/pip.pem"


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_what_the_client_itself_was_told_stands(name: str) -> None:
    environment = {"SSL_CERT_FILE": "/proxy.pem", name: "/own.pem"}
    trust_as_pip_does(environment)
    assert environment == {"SSL_CERT_FILE": "/proxy.pem", name: "/own.pem"}


def test_nothing_is_told_where_nothing_was() -> None:
    environment: dict[str, str] = {}
    trust_as_pip_does(environment)
    assert environment == {}
