"""The public traces the project knows: where each comes from, its licence, what is at hand.

Nothing of a trace is in the repository. A trace is read from a folder, and where the network allows
`get_trace` brings its raw files there from the project that publishes them, at a pinned commit and
checked by SHA-256. How a trace is read is its reader's business (`workload`, `market`).
"""

import gzip
import hashlib
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Final

Progress = Callable[[str, int, int], None]
"""Called with file name, bytes so far and bytes in all."""

CHUNK_BYTES: Final = 1 << 16
TIMEOUT_SECONDS: Final = 30.0


class TraceError(RuntimeError):
    """A trace is unknown, cannot be reached, or is not what it should be; the message says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFile:
    """One published file: where it goes under the folder, and what it must be.

    `sha256` and `size` are those of the published bytes; a `path` that ends in `.gz` is stored
    compressed.
    """

    path: str
    url: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A public trace. `paths` are what a reader expects under the folder.

    A trace without `files` is derived from a project's history and cannot be downloaded as such.
    """

    name: str
    about: str
    source: str
    licence: str
    paths: tuple[str, ...]
    files: tuple[TraceFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStatus:
    """What of a trace is at hand under a folder."""

    trace: Trace
    at_hand: tuple[str, ...]
    missing: tuple[str, ...]
    size: int

    @property
    def complete(self) -> bool:
        """Return whether nothing is missing."""
        return not self.missing


def _raw(repository: str, commit: str, path: str) -> str:
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{urllib.parse.quote(path)}"


def _file(
    path: str, repository: str, commit: str, upstream: str, sha256: str, size: int
) -> TraceFile:
    return TraceFile(path=path, url=_raw(repository, commit, upstream), sha256=sha256, size=size)


_SIA: Final = ("siasosp23/artifacts", "aaf7a0de7b6cb5eab06ea020467ede5d2fd18e70")
_HELIOS: Final = (
    "S-Lab-System-Group/HeliosArtifact",
    "bdaae109c21f8038a2331e6a23a582d5ae78ab5b",
)
_FGD: Final = (
    "hkust-adsl/kubernetes-scheduler-simulator",
    "8f3d6417353c5083c6d56617f255fadd8dc306bc",
)
_AZURE: Final = ("Azure/AzurePublicDataset", "b469a113cedca53ddc3bdea71a143dc4b7d8700c")
_ACME: Final = ("InternLM/AcmeTrace", "6d6ac9cd15f3b01151ac6ba00ecddd9156f0dc73")
_PRICES: Final = ("tardellirs/gpu-pricing", "8f09a68030967f5c269c304493abf0911dd19858")

TRACES: Final[tuple[Trace, ...]] = (
    Trace(
        name="philly",
        about="GPU job arrivals of Microsoft Philly, 2017",
        source="github.com/siasosp23/artifacts, from github.com/msr-fiddle/philly-traces",
        licence="CC-BY-4.0",
        paths=("philly/jobs.csv.gz",),
        files=(
            _file(
                "philly/jobs.csv.gz", *_SIA, "sia-simulator/traces/philly.csv",
                "ebffb3dd1589bdf4e7bcd74496201c5ded1d557d498ee14f560463f37ec353da", 3_444_496,
            ),
        ),
    ),
    Trace(
        name="philly-clusters",
        about="nodes of each Philly virtual cluster",
        source="github.com/S-Lab-System-Group/HeliosArtifact",
        licence="MIT",
        paths=("philly/virtual_clusters.csv",),
        files=(
            _file(
                "philly/virtual_clusters.csv", *_HELIOS,
                "framework/QSSF Service/data/philly_vc.csv",
                "a6873abd7d94a09c646961ad7a0f011faf4069dcdf0c1f7717521613fd6156f7", 120,
            ),
        ),
    ),
    Trace(
        name="openb",
        about="Alibaba 2023: 1,213 GPU nodes and 8,152 pods with fractional GPUs",
        source="github.com/hkust-adsl/kubernetes-scheduler-simulator",
        licence="Apache-2.0",
        paths=("openb/nodes.csv", "openb/pods.csv"),
        files=(
            _file(
                "openb/nodes.csv", *_FGD, "data/csv/openb_node_list_gpu_node.csv",
                "2beca64b4d3dfa342036a34b56a495c6cef9225db836c81f541282cb1df320b5", 42_353,
            ),
            _file(
                "openb/pods.csv", *_FGD, "data/csv/openb_pod_list_default.csv",
                "1ee7ed79c27a3b0861cda8ddba86a004c6aba904caafa329a76ae93ca63834a8", 575_468,
            ),
        ),
    ),
    Trace(
        name="fgd",
        about="published results of six placement policies on openb",
        source="github.com/hkust-adsl/kubernetes-scheduler-simulator",
        licence="Apache-2.0",
        paths=(
            "fgd/analysis_allo_discrete.csv.gz",
            "fgd/analysis_frag_discrete.csv.gz",
            "fgd/analysis_frag_ratio_discrete.csv.gz",
        ),
        files=tuple(
            _file(
                f"fgd/{name}.csv.gz", *_FGD, f"experiments/analysis/expected_results/{name}.csv",
                sha256, size,
            )
            for name, sha256, size in (
                ("analysis_allo_discrete",
                 "e00aff5923a52d53e47c16ec9d19190de4e788c15334865a77bd46e1bd006ea1", 823_208),
                ("analysis_frag_discrete",
                 "0d9181864ef9adb2169f232124c6af767579fe2a3c08f940419b4989420c8ce2", 787_709),
                ("analysis_frag_ratio_discrete",
                 "78f55e6324b532c6af8d69da8e312d8cbe6f953719ccfa3f51e5a392b6b1d860", 2_361_283),
            )
        ),
    ),
    Trace(
        name="azure-llm",
        about="LLM inference requests of one hour, 2023",
        source="github.com/Azure/AzurePublicDataset",
        licence="CC-BY-4.0",
        paths=("llm/azure_conv_2023.csv.gz",),
        files=(
            _file(
                "llm/azure_conv_2023.csv.gz", *_AZURE, "data/AzureLLMInferenceTrace_conv.csv",
                "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8", 719_188,
            ),
        ),
    ),
    Trace(
        name="gpu-clouds",
        about="offers of 21 GPU clouds on one day",
        source="github.com/tardellirs/gpu-pricing",
        licence="MIT",
        paths=("market/offerings.json",),
        files=(
            _file(
                "market/offerings.json", *_PRICES, "src/data/offerings.json",
                "a9e3219af71f5861ccf076b49105ba73e3d6b881058086b6421dcc7572c0e379", 161_922,
            ),
        ),
    ),
    Trace(
        name="acme",
        about="summary of the Acme clusters Seren and Kalos beside Philly, Helios and PAI",
        source="github.com/InternLM/AcmeTrace",
        licence="CC-BY-4.0",
        paths=("utilisation/cluster_summary.csv",),
        files=(
            _file(
                "utilisation/cluster_summary.csv", *_ACME, "data/cluster_summary.csv",
                "cde7a7d4ba1596ea165cf4583137d2095020abebbc26b3cd834284c16e8e6ecf", 1_269,
            ),
        ),
    ),
    Trace(
        name="gcp-prices",
        about="weekly GPU prices of Google Cloud, on demand and spot, 2023-05 to 2025-12",
        source="history of github.com/Cyclenerd/google-cloud-pricing-cost-calculator pricing.yml",
        licence="Apache-2.0",
        paths=("market/gcp_gpu_prices.csv.gz",),
    ),
    Trace(
        name="aws-prices",
        about="on-demand GPU prices of AWS, 2022-06 to 2026-07",
        source="history of github.com/aws/karpenter-provider-aws",
        licence="Apache-2.0",
        paths=("market/aws_gpu_ondemand_history.csv.gz",),
    ),
    Trace(
        name="petshop",
        about="labelled incidents of a microservice application",
        source="github.com/amazon-science/petshop-root-cause-analysis",
        licence="CC-BY-4.0",
        paths=("petshop/high_traffic/graph.csv", "petshop/low_traffic/graph.csv"),
    ),
)  # fmt: skip


def list_traces(folder: Path | None) -> list[TraceStatus]:
    """Return every known trace and what of it lies under `folder`."""
    return [_status(trace, folder) for trace in TRACES]


def _status(trace: Trace, folder: Path | None) -> TraceStatus:
    found = [path for path in trace.paths if folder is not None and (folder / path).is_file()]
    return TraceStatus(
        trace=trace,
        at_hand=tuple(found),
        missing=tuple(path for path in trace.paths if path not in found),
        size=sum((folder / path).stat().st_size for path in found) if folder else 0,
    )


def get_trace(name: str, folder: Path, progress: Progress | None = None) -> TraceStatus:
    """Bring a trace's files under `folder`, resuming what was begun; files at hand are kept.

    Raises:
        TraceError: there is no such trace, it is not published as files, its host cannot be
            reached, or what came is not what is expected (the partial file is then removed).

    """
    trace = next((trace for trace in TRACES if trace.name == name), None)
    if trace is None:
        known = ", ".join(trace.name for trace in TRACES)
        raise TraceError(f"no trace is called {name!r}; known are {known}")
    if not trace.files:
        raise TraceError(f"{name} is not published as files: it is derived from {trace.source}")
    for file in trace.files:
        if not (folder / file.path).is_file():
            _install(file, folder, progress or _silent)
    return _status(trace, folder)


def _silent(name: str, done: int, size: int) -> None:
    """Report nothing."""


def _install(file: TraceFile, folder: Path, progress: Progress) -> None:
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    _download(file, part, progress)
    found = _sha256(part)
    if found != file.sha256:
        part.unlink()
        raise TraceError(f"{file.url} has SHA-256 {found}, expected {file.sha256}")
    if target.suffix == ".gz":
        packed = target.with_name(target.name + ".packed")
        with part.open("rb") as source, gzip.GzipFile(packed, "wb", mtime=0) as sink:
            shutil.copyfileobj(source, sink)
        packed.replace(target)
        part.unlink()
    else:
        part.replace(target)


def _download(file: TraceFile, part: Path, progress: Progress) -> None:
    """Fetch the rest of a file; a host that ignores the range is read from the start."""
    done = part.stat().st_size if part.exists() else 0
    if done >= file.size:
        return
    request = urllib.request.Request(file.url)  # noqa: S310  the scheme stands in the table
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
            resumed = done > 0 and response.status == 206
            done = _copy(response, part, file, progress, done if resumed else 0)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise TraceError(
            f"cannot fetch {file.url}: {reason}; what came so far is kept and resumed"
        ) from error
    if done < file.size:
        raise TraceError(f"{file.url} ended after {done} of {file.size} bytes; ask again to resume")


def _copy(
    response: HTTPResponse, part: Path, file: TraceFile, progress: Progress, done: int
) -> int:
    """Append an answer to a partial file and return how long it is then."""
    with part.open("ab" if done else "wb") as sink:
        while done <= file.size and (chunk := response.read(CHUNK_BYTES)):
            sink.write(chunk)
            done += len(chunk)
            progress(file.path, done, file.size)
        sink.flush()
        os.fsync(sink.fileno())
    return done


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
