"""Makes what principals prove themselves with: certificates, passwords, client settings.

One authority signs the certificates of the broker and of `admin` and is then forgotten: nobody can
sign another, and whoever wants new ones makes all anew. Each principal has a folder of its own, so
that a process can be handed its own and nobody else's. The folder that holds them all is closed to
others; what is in it is not, because a container that is handed a part runs as another user.
"""

import secrets
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gpuloop.ops.stack.access import ADMIN, AUTHORITY, BROKER, CLIENT, IDENTITY, PRINCIPALS
from gpuloop.ops.stack.errors import StackError

PASSWORDS: Final = "passwords.json"

VALID: Final = timedelta(days=730)
RENEWED: Final = timedelta(days=60)
"""Certificates that end sooner than this are made anew, with everything that hangs on them."""

SKEW: Final = timedelta(hours=1)

_SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
_CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH


def make(folder: Path, hosts: Sequence[str], now: datetime) -> bool:
    """Make a folder per principal under `folder`; return False if they are there and will do.

    `hosts` are the names and addresses under which clients reach the broker.

    Raises:
        StackError: what is there was made for other hosts.

    """
    certificate = folder / BROKER / IDENTITY
    if certificate.exists():
        known = x509.load_pem_x509_certificate(certificate.read_bytes())
        if set(hosts) - set(_names(known)):
            missing = ", ".join(sorted(set(hosts) - set(_names(known))))
            raise StackError(f"{folder} is not for {missing}; delete it to have it made anew")
        if known.not_valid_after_utc - now > RENEWED and _whole(folder):
            return False
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority = _Authority(now)
    for name, alternatives in ((BROKER, hosts), (ADMIN, ())):
        home = _home(folder / name)
        _write(home / AUTHORITY, authority.pem)
        _write(home / IDENTITY, authority.identity(name, alternatives))
    chosen = {name: secrets.token_urlsafe(32) for name in PRINCIPALS}
    for name, password in chosen.items():
        home = _home(folder / name)
        _write(home / AUTHORITY, authority.pem)
        _write(home / CLIENT, _SIGNED_IN.format(name=name, password=password))
    _write(folder / ADMIN / CLIENT, _CERTIFIED)
    _write(folder / ADMIN / PASSWORDS, msgspec.json.encode(chosen).decode())
    return True


def passwords(folder: Path) -> dict[str, str]:
    """Return every principal's password, from what `admin` was handed.

    Raises:
        StackError: they are not there, or not for today's principals.

    """
    path = folder / ADMIN / PASSWORDS
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError) as error:
        raise StackError(f"{path}: {error}; make the identities first") from None
    if set(found) != set(PRINCIPALS):
        raise StackError(f"{path} is of another version; delete {folder} and make it anew")
    return found


_CERTIFIED: Final = f"""\
security.protocol=ssl
ssl.ca.location={AUTHORITY}
ssl.certificate.location={IDENTITY}
ssl.key.location={IDENTITY}
"""

_SIGNED_IN: Final = f"""\
security.protocol=sasl_ssl
sasl.mechanism=SCRAM-SHA-512
sasl.username={{name}}
sasl.password={{password}}
ssl.ca.location={AUTHORITY}
"""


class _Authority:
    """Signs the certificates of one making; its key never leaves this object."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("gpuloop authority")
        signed = (
            self._builder("gpuloop authority", self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = signed.public_bytes(serialization.Encoding.PEM).decode()

    def identity(self, name: str, hosts: Sequence[str]) -> str:
        """Return a new private key and its certificate, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        uses = [_CLIENT, _SERVER] if hosts else [_CLIENT]
        builder = (
            self._builder(name, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        )
        if hosts:
            alternatives = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
            builder = builder.add_extension(alternatives, critical=False)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return (private + public).decode()

    def _builder(self, name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - SKEW)
            .not_valid_after(self._now + VALID)
        )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return [*found.get_values_for_type(x509.DNSName), *addresses]


def _whole(folder: Path) -> bool:
    parts = [folder / name / CLIENT for name in (*PRINCIPALS, ADMIN)]
    return all(path.exists() for path in (*parts, folder / ADMIN / PASSWORDS))


def _home(path: Path) -> Path:
    """Return an empty folder for what one principal needs."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755)
    return path


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)
