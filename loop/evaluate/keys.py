"""Ed25519 keys and what they sign: policy versions and audit checkpoints.

Owns key files and the exact bytes that are signed. It does not know who trusts which key: callers
pass the public keys they trust. Deciders and learners both use it, so it imports nothing heavy.
"""

import os
import stat
from collections.abc import Collection
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from gpuloop.schemas.errors import Explained
from gpuloop.schemas.messages import PolicyVersion


class KeyFileError(Explained):
    """A key file that cannot be used: of another kind, damaged, or readable by others."""


def load_or_create(path: Path) -> Ed25519PrivateKey:
    """Return the key in a PEM file that only its owner may read, creating the file when absent.

    Two processes that start at once agree on one key: the first link wins and both read it.

    Raises:
        KeyFileError: the file is no Ed25519 key, or others may read it.

    """
    if not path.exists():
        _create(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise KeyFileError(f"{path} is readable by others; chmod 600 it")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        raise KeyFileError(
            f"{path} holds no usable key: put back a copy, or move it away and a new one is made"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} holds a {type(key).__name__}, not an Ed25519 key")
    return key


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # Another process was first; its key is the one.
    finally:
        draft.unlink()


def public_hex(key: Ed25519PrivateKey) -> str:
    """Return the public half of a key as 64 hex digits, the form in which keys are trusted."""
    return key.public_key().public_bytes_raw().hex()


def sign(key: Ed25519PrivateKey, data: bytes) -> str:
    """Return the signature of `data` as 128 hex digits."""
    return key.sign(data).hex()


def verify(public: str, signature: str, data: bytes) -> bool:
    """Say whether a signature over `data` is that of a public key; both are hex."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(
            bytes.fromhex(signature), data
        )
    except (ValueError, InvalidSignature):
        return False
    return True


def sign_policy(version: PolicyVersion, key: Ed25519PrivateKey) -> PolicyVersion:
    """Return the version with the key's public half and its signature filled in."""
    named = msgspec.structs.replace(version, public_key=public_hex(key))
    return msgspec.structs.replace(named, signature=sign(key, _signed_bytes(named)))


def policy_signature_ok(version: PolicyVersion, trusted_keys: Collection[str]) -> bool:
    """Say whether a policy version was signed by a key that the caller trusts."""
    return version.public_key in trusted_keys and verify(
        version.public_key, version.signature, _signed_bytes(version)
    )


def _signed_bytes(version: PolicyVersion) -> bytes:
    """Return the canonical JSON of a version with an empty signature.

    The bytes are those of the decoded message: code may put 1 where the contract says float, and
    a reader would see 1.0.
    """
    unsigned = msgspec.structs.replace(version, signature="")
    seen = msgspec.json.decode(msgspec.json.encode(unsigned), type=PolicyVersion)
    fields = msgspec.to_builtins(seen)
    if not seen.alphas:
        del fields["alphas"]  # Versions were signed before there was such a field.
    return msgspec.json.encode(fields, order="deterministic")
