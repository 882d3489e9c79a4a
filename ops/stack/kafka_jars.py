"""Kafka's jars: pinned by coordinates and SHA-256, fetched once, verified at every start.

The list was resolved by Maven; users have no Maven, so each jar is fetched by exact version. A jar
that is missing, cut short or altered is fetched again, the others are kept, so an interrupted
download goes on where it stopped.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from gpuloop.ops.stack.errors import StackError

KAFKA_VERSION: Final = "4.3.1"
DOWNLOADS: Final = 8
ATTEMPTS: Final = 3
TIMEOUT_SECONDS: Final = 60

Progress = Callable[[int, int], None]
"""Told how many jars are there and how many there will be."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One jar: where it is published and what it must contain."""

    group: str
    artifact: str
    version: str
    sha256: str

    def path(self, cache: Path) -> Path:
        """Return where the jar lies in a cache, which has the layout of a Maven repository."""
        folder = cache.joinpath(*self.group.split("."), self.artifact, self.version)
        return folder / f"{self.artifact}-{self.version}.jar"

    def is_whole(self, cache: Path) -> bool:
        """Return whether the cache holds exactly these bytes."""
        try:
            with self.path(cache).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except FileNotFoundError:
            return False


def listed() -> tuple[Jar, ...]:
    """Return the jars of the classpath, from the list that is checked in."""
    lines = files(__package__).joinpath("kafka_jars.txt").read_text().splitlines()
    jars = []
    for line in lines:
        if line.startswith("#"):
            continue
        coordinates, digest = line.split()
        group, artifact, version = coordinates.split(":")
        jars.append(Jar(group, artifact, version, digest.removeprefix("sha256:")))
    return tuple(jars)


def cache_folder() -> Path:
    """Return the user's cache of jars, shared by all stacks of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpuloop" / f"kafka-{KAFKA_VERSION}"


def fetch(cache: Path, progress: Progress, jars: Sequence[Jar] | None = None) -> tuple[Path, ...]:
    """Return the classpath, after fetching what the cache lacks.

    Raises:
        StackError: a jar could not be fetched, or is not the one that was pinned.

    """
    wanted = listed() if jars is None else jars
    with _owned(cache), ThreadPoolExecutor(DOWNLOADS) as pool:
        whole = list(pool.map(lambda jar: jar.is_whole(cache), wanted))
        missing = [jar for jar, there in zip(wanted, whole, strict=True) if not there]
        done = len(wanted) - len(missing)
        if missing:
            trust_as_pip_does(os.environ)
            progress(done, len(wanted))
        for future in as_completed(pool.submit(_download, jar, cache) for jar in missing):
            if (error := future.exception()) is not None:
                pool.shutdown(cancel_futures=True)
                raise error
            done += 1
            progress(done, len(wanted))
    return tuple(jar.path(cache) for jar in wanted)


@contextmanager
def _owned(cache: Path) -> Iterator[None]:
    """Wait for another stack that fetches into the same cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(jar: Jar, cache: Path) -> None:
    from jgo.maven import MavenContext
    from requests import RequestException

    context = MavenContext(repo_cache=cache, local_repos=[], timeout=TIMEOUT_SECONDS)
    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    problem = "its SHA-256 is not the pinned one"
    for _ in range(ATTEMPTS):
        jar.path(cache).unlink(missing_ok=True)  # The client keeps whatever file is there.
        try:
            artifact.resolve()
        except (RequestException, RuntimeError, OSError) as error:
            problem = str(error).splitlines()[0]
            continue
        if jar.is_whole(cache):
            return
    jar.path(cache).unlink(missing_ok=True)
    way_out = "; name your proxy's certificate in SSL_CERT_FILE" if "CERTIFICATE" in problem else ""
    raise StackError(
        f"cannot fetch {jar.group}:{jar.artifact}:{jar.version} from Maven Central: "
        f"{problem}{way_out}"
    )


def trust_as_pip_does(environment: MutableMapping[str, str]) -> None:
    """Have the client of Maven's repository trust the certificate that pip and uv were told of."""
    told = (environment.get(name) for name in ("SSL_CERT_FILE", "PIP_CERT"))
    certificate = next((path for path in told if path), "") or _pips_certificate()
    if certificate and not environment.get("CURL_CA_BUNDLE"):
        environment.setdefault("REQUESTS_CA_BUNDLE", certificate)


@lru_cache(maxsize=1)
def _pips_certificate() -> str:
    """Return the certificate in pip's own settings, if there is one."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.cert"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def show(write: Callable[[str], object], *, done: int, total: int) -> None:
    """Write one line of progress, rarely enough for a log file."""
    if done == total or done % 10 == 0:
        write(f"Kafka {KAFKA_VERSION}: {done} of {total} jars")


def main() -> int:
    """Fetch Kafka's jars into the user's cache, so that the first start need not."""
    try:
        fetch(cache_folder(), lambda done, total: show(print, done=done, total=total))
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
