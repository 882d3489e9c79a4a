"""Where the audit's parts meet settings: its files, and verification of a live topic.

`chain` says what is hashed, `auditor` writes, `anchors` keeps checkpoints outside Kafka, `verify`
reads it all again.
"""

from pathlib import Path
from typing import Final

from gpuloop.loop.evaluate.anchors import Anchors
from gpuloop.loop.evaluate.auditor import TOPIC
from gpuloop.loop.evaluate.chain import AuditError
from gpuloop.loop.evaluate.keys import load_or_create, public_hex
from gpuloop.loop.evaluate.verify import Finding, VerifyReport, verify
from gpuloop.loop.replay.recording import Recording
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.broker import Broker, Partition, read_between
from gpuloop.loop.shells.kafka import KafkaBroker

__all__ = [
    "AuditError",
    "Finding",
    "VerifyReport",
    "anchors_of",
    "key_path",
    "trusted_keys",
    "verify_recording",
    "verify_topic",
]

KEY_FILE: Final = "keys/auditor.pem"
ANCHORS_FILE: Final = "audit/anchors.jsonl"


def key_path(settings: Settings) -> Path:
    """Return the auditor's key file."""
    return settings.state_dir / KEY_FILE


def anchors_of(settings: Settings) -> Anchors:
    """Return the anchors that the settings name, or those in the state directory."""
    return Anchors(settings.audit_anchors or settings.state_dir / ANCHORS_FILE)


def trusted_keys(settings: Settings) -> frozenset[str]:
    """Return whose checkpoints are believed: configured auditors, and this machine's own.

    Not `settings.trusted_keys`: who may sign policies, as the learner does, has no say about what
    happened.
    """
    path = key_path(settings)
    own = {public_hex(load_or_create(path))} if path.exists() else set[str]()
    return frozenset(settings.audit_keys) | own


def verify_topic(settings: Settings, broker: Broker | None = None) -> VerifyReport:
    """Verify the whole audit topic of the settings' cluster, up to where it ends now.

    Raises:
        AuditError: the anchors cannot be read.
        BrokerError: the broker cannot be reached, or does not hand the topic over.
        KeyFileError: the auditor's key file is there and unusable.

    """
    anchors = anchors_of(settings).read()
    trusted = trusted_keys(settings)
    log = broker or KafkaBroker(
        settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
    )
    try:
        (part,) = log.partitions(TOPIC)
        first, end = log.beginnings([part])[part], log.ends([part])[part]
        return verify(read_between(log, part, first, end), anchors, trusted)
    finally:
        if broker is None:
            log.close()


def verify_recording(folder: Path, settings: Settings) -> VerifyReport:
    """Verify the audit topic of a recording that was taken from its beginning.

    It ends where it was taken, so later anchors say nothing about it: a cut tail goes unseen.

    Raises:
        AuditError: the anchors cannot be read.
        RecordingError: the folder holds no sound recording.

    """
    records = Recording(folder).records(Partition(TOPIC, 0))
    return verify(records, anchors_of(settings).read(), trusted_keys(settings), whole=False)
