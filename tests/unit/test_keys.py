"""Keys: files only their owner reads, signatures that bind content and signer."""

import stat
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gpuloop.loop.evaluate.keys import (
    KeyFileError,
    load_or_create,
    policy_signature_ok,
    public_hex,
    sign,
    sign_policy,
    verify,
)
from gpuloop.schemas.messages import PolicyVersion


def a_version() -> PolicyVersion:
    return PolicyVersion(
        fleet="local",
        policy_id="sac-1",
        algorithm="sac",
        version=1,
        parent="",
        created_wall_us=1,
        feature_version="pool/1",
        dimensions=("on_demand_nodes",),
        actor=None,
        normaliser=None,
        weights_digest="",
        alpha=0.25,
        seed=7,
        config={"b": 1, "a": 2.0},
        trained_on=(),
        gate={"z": 1, "a": 0.5},
    )


def test_a_key_is_created_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "audit.pem"
    first, second = load_or_create(path), load_or_create(path)
    assert public_hex(first) == public_hex(second)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["audit.pem"]


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.pem"
    load_or_create(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="readable by others"):
        load_or_create(path)


def test_a_damaged_or_foreign_key_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.pem"
    path.touch(mode=0o600)
    path.write_bytes(b"-----BEGIN nonsense")
    with pytest.raises(KeyFileError, match="no usable key"):
        load_or_create(path)
    rsa = generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyFileError, match="not an Ed25519 key"):
        load_or_create(path)


def test_a_signature_binds_key_and_content(tmp_path: Path) -> None:
    key, other = load_or_create(tmp_path / "a"), load_or_create(tmp_path / "b")
    signature = sign(key, b"data")
    assert verify(public_hex(key), signature, b"data")
    assert not verify(public_hex(key), signature, b"Data")
    assert not verify(public_hex(other), signature, b"data")
    assert not verify("not hex", signature, b"data")
    assert not verify(public_hex(key), "", b"data")


def test_a_signed_policy_still_verifies_after_a_trip_over_the_wire(tmp_path: Path) -> None:
    key = load_or_create(tmp_path / "learner.pem")
    signed = sign_policy(a_version(), key)
    read = msgspec.json.decode(msgspec.json.encode(signed), type=PolicyVersion)
    assert policy_signature_ok(signed, (public_hex(key),))
    assert policy_signature_ok(read, (public_hex(key),))


def test_a_policy_is_refused_when_changed_unsigned_or_signed_by_a_stranger(tmp_path: Path) -> None:
    key, stranger = load_or_create(tmp_path / "a"), load_or_create(tmp_path / "b")
    trusted = (public_hex(key),)
    signed = sign_policy(a_version(), key)
    assert not policy_signature_ok(msgspec.structs.replace(signed, alpha=1.0), trusted)
    assert not policy_signature_ok(a_version(), trusted)
    assert not policy_signature_ok(sign_policy(a_version(), stranger), trusted)
    posing = msgspec.structs.replace(sign_policy(a_version(), stranger), public_key=public_hex(key))
    assert not policy_signature_ok(posing, trusted)
    assert not policy_signature_ok(signed, ())
