"""Names and settings of the observe stage's Kafka objects, for whoever creates topics.

Faust is not imported here: operators need the names, not the framework.
"""

from dataclasses import dataclass
from typing import Final

from gpuloop.schemas.catalogue import SHARDS

APP: Final = "observe"
TABLES: Final[dict[str, int]] = {"nodes": SHARDS, "jobs": SHARDS, "pools": 1}
"""Tables and their partitions: those of the topic during whose events they are written."""

CHANGELOG_CONFIG: Final[dict[str, str]] = {
    "cleanup.policy": "compact",
    "max.message.bytes": "1048576",
    "message.timestamp.type": "CreateTime",
    # Rows are rewritten once a second: small segments let the cleaner keep a recovery short.
    "segment.bytes": "16777216",
    "min.cleanable.dirty.ratio": "0.2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changelog:
    """A changelog topic under its full name."""

    name: str
    partitions: int
    config: dict[str, str]


def app_id(prefix: str) -> str:
    """Return the application's id, which is its consumer group as well."""
    return f"{prefix}{APP}"


def changelogs(prefix: str = "") -> tuple[Changelog, ...]:
    """Return the changelog topics of the tables."""
    return tuple(
        Changelog(
            name=f"{app_id(prefix)}-{table}-changelog",
            partitions=partitions,
            config=CHANGELOG_CONFIG,
        )
        for table, partitions in TABLES.items()
    )


CHANGELOG_TOPICS: Final = changelogs()
