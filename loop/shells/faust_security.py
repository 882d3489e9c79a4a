"""The properties file of librdkafka, said again in Faust's terms.

One file configures all our processes. What cannot be carried over is refused: a cluster that asks
for TLS must never be reached without it because a name was not understood.
"""

import ssl
from pathlib import Path
from typing import Final

import faust
from faust.types.auth import CredentialsT

from gpuloop.loop.shells.kafka import properties

KNOWN: Final = frozenset(
    {
        "security.protocol",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "sasl.password",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.key.password",
    }
)
_SASL: Final = frozenset({"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"})


def broker_credentials(path: Path | None) -> CredentialsT | None:
    """Return the credentials that a properties file describes, None for a plain connection.

    Raises:
        ValueError: the file asks for something that Faust cannot do.

    """
    wanted = properties(path)
    foreign = {name for name in wanted if name.startswith(("sasl.", "ssl.", "security."))} - KNOWN
    if foreign:
        raise ValueError(f"the observe stage does not support {', '.join(sorted(foreign))}")
    protocol = wanted.get("security.protocol", "plaintext").upper()
    if protocol not in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
        raise ValueError(f"unknown security.protocol {protocol}")
    context = _context(wanted) if protocol.endswith("SSL") else None
    if protocol.startswith("SASL"):
        mechanism = wanted.get("sasl.mechanism", wanted.get("sasl.mechanisms", "")).upper()
        if mechanism not in _SASL:
            raise ValueError(f"the observe stage does not support sasl.mechanism {mechanism!r}")
        return faust.SASLCredentials(
            username=wanted.get("sasl.username"),
            password=wanted.get("sasl.password"),
            mechanism=mechanism,
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context=context)


def _context(wanted: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=wanted.get("ssl.ca.location"))
    certificate = wanted.get("ssl.certificate.location")
    if certificate is not None:
        context.load_cert_chain(
            certificate, wanted.get("ssl.key.location"), wanted.get("ssl.key.password")
        )
    return context
