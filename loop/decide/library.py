"""The policy versions that a decider has, and what makes room for what.

A version is taken when a trusted key signed it, it speaks this feature version and its weights are
the ones it names. What is refused is counted by reason.
"""

import hashlib
from collections.abc import Collection
from itertools import accumulate
from typing import Final

from gpuloop.loop.decide.governance import Governance
from gpuloop.loop.evaluate.keys import policy_signature_ok
from gpuloop.schemas.component import State
from gpuloop.schemas.messages import PolicyVersion
from gpuloop.schemas.policy import DIMENSIONS, FEATURE_NAMES, FEATURE_VERSION

KEPT_VERSIONS: Final = 8
"""Newest versions, and as many of the last received, kept beside the staged ones.

Snapshots carry them all. An older one that is to be staged must be published again, which
`gpuloop control policy` does."""

UNSETTLED_VERSIONS: Final = 4096
UNSETTLED_WEIGHT_BYTES: Final = 64 * 1024 * 1024
"""What is kept of each while it is not known yet what is staged."""

UNCLAIMED_WEIGHTS: Final = 32
"""Weights kept while their version is not known yet: the two topics have no common order."""


class Library(State):
    """Versions and weights, as received. Actors are built from it and not part of it."""

    versions: dict[str, PolicyVersion] = {}
    """In the order in which each was last received."""
    weights: dict[str, bytes] = {}
    refused: dict[str, int] = {}
    settled: bool = False
    """Whether it is known what is staged; until then nothing makes room for newer versions."""


def count(library: Library, reason: str) -> None:
    """Count something that was refused."""
    library.refused[reason] = library.refused.get(reason, 0) + 1


def accept_version(
    library: Library, version: PolicyVersion, trusted: Collection[str], staged: Collection[str]
) -> None:
    """Take in a version, or count why not."""
    reason = _objection(version, trusted)
    if reason is not None:
        count(library, reason)
        return
    known = library.versions.pop(version.policy_id, version)
    library.versions[version.policy_id] = known
    _make_room(library, staged)


def accept_weights(library: Library, digest: str, data: bytes) -> None:
    """Take in weights under their digest, or count why not."""
    if hashlib.sha256(data).hexdigest() != digest:
        count(library, "weights_digest")
        return
    library.weights[digest] = data
    _drop_unclaimed(library)


def settle_library(library: Library, staged: Collection[str]) -> None:
    """Take it that all that was staged so far is known: from now on the others make room.

    The topics have no common order, so a decider without a past may read of a thousand versions
    before it reads that the first of them is the champion.
    """
    library.settled = True
    _make_room(library, staged)
    _drop_unclaimed(library)


def _make_room(library: Library, staged: Collection[str]) -> None:
    most = KEPT_VERSIONS if library.settled else UNSETTLED_VERSIONS
    if len(library.versions) <= most:
        return
    newest = sorted(library.versions.values(), key=lambda one: (one.version, one.policy_id))
    keep = {one.policy_id for one in newest[-most:]} | set(staged)
    keep |= set([*library.versions][-most:])
    gone = [one for one in newest if one.policy_id not in keep]
    for one in gone:
        del library.versions[one.policy_id]
    wanted = {one.weights_digest for one in library.versions.values()}
    for one in gone:
        if one.weights_digest not in wanted:
            library.weights.pop(one.weights_digest, None)


def _drop_unclaimed(library: Library) -> None:
    wanted = {one.weights_digest for one in library.versions.values()}
    unclaimed = [name for name in library.weights if name not in wanted]
    gone = unclaimed[:-UNCLAIMED_WEIGHTS]
    if not library.settled:
        spare = sum(len(library.weights[name]) for name in unclaimed) - UNSETTLED_WEIGHT_BYTES
        sizes = accumulate(len(library.weights[name]) for name in unclaimed)
        gone = [name for name, size in zip(unclaimed, sizes, strict=True) if size <= spare]
    for name in gone:
        del library.weights[name]


def lacking(library: Library, governance: Governance) -> list[str]:
    """Return the ids that are to act somewhere and cannot: no version, or no weights for it."""
    acting_ids = {
        one.policy_id for one in governance.stages.values() if one.stage in ("canary", "champion")
    }
    return sorted(
        name
        for name in acting_ids
        if (version := library.versions.get(name)) is None
        or version.weights_digest not in library.weights
    )


def _objection(version: PolicyVersion, trusted: Collection[str]) -> str | None:
    if not policy_signature_ok(version, trusted):
        return "untrusted"
    if version.feature_version != FEATURE_VERSION or version.dimensions != DIMENSIONS:
        return "other_features"
    spec = version.actor
    if spec is not None and (spec.observation_size, spec.action_size) != (
        len(FEATURE_NAMES),
        len(DIMENSIONS),
    ):
        return "other_shape"
    return None


def staged_policies(governance: Governance) -> set[str]:
    """Return the ids that any stage names."""
    return {one.policy_id for one in governance.stages.values() if one.stage != "retired"}
