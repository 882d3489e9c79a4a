"""The Docker engine and Compose that `make test-compose` uses: the machine's, else its own.

Where no engine answers, Debian's packages are downloaded by the ordinary client, unpacked into a
folder of ours and run from there: nothing is installed, the data root is our own, and the host's
iptables, forwarding and bridges stay as they are. (`iptables` itself is among the packages because
an engine writes its name server's port into each container's own network namespace.) Where Compose
is missing it is built from its Go module.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final

COMPOSE: Final = "v2.40.3"
BUILDKIT: Final = "v0.25.1"
"""What this Compose was released with; its own module does not say so to those who import it."""
PACKAGES: Final = (
    "docker.io", "containerd", "runc", "tini", "debootstrap", "libdevmapper1.02.1",
    "iptables", "libip4tc2", "libip6tc2", "libxtables12", "libnftnl11", "libmnl0",
    "libnfnetlink0", "libnetfilter-conntrack3",
)  # fmt: skip
START_SECONDS: Final = 60.0


class Missing(RuntimeError):
    """Something that the test cannot do without; the message says what."""


@dataclass(frozen=True)
class Engine:
    """How to reach an engine, and whether we started it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Return where Debian's packages are unpacked."""
        return self.folder / "packages"

    def docker(
        self, *arguments: str, check: bool = True, timeout: float = 1800.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker` against this engine and return what it said."""
        done = subprocess.run(
            ["docker", *arguments],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr)[-4000:]
            raise AssertionError(f"docker {' '.join(arguments)} ended {done.returncode}:\n{said}")
        return done


@contextmanager
def engine(folder: Path, stood_in: list[str]) -> Iterator[Engine]:
    """Yield an engine with Compose; what had to be stood in is added to `stood_in`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Engine(folder)
    if _answers(found):
        yield _with_compose(found, stood_in)
        return
    unpack(folder / "packages")
    own = Engine(folder, _own_environment(folder))
    stood_in.append("the engine: Debian's, from a folder of its own, without iptables")
    with _running(own):
        yield _with_compose(own, stood_in)


def _answers(found: Engine) -> bool:
    try:
        return found.docker("version", check=False, timeout=30).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def unpack(root: Path) -> None:
    """Download and unpack what an engine is made of, once."""
    if (root / "complete").exists():
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise Missing("no Docker engine answers; start one (here it takes Debian and root)")
    debs = root.parent / "debs"
    debs.mkdir(exist_ok=True)
    _say("downloading an engine from Debian")
    _run(["apt-get", "update", "-q"])
    _run(["apt-get", "download", "-q", *PACKAGES], folder=debs)
    for deb in sorted(debs.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(root)])
    shutil.rmtree(debs)
    for name in ("iptables", "ip6tables"):
        link = root / "usr/sbin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"{name}-nft")
    (root / "complete").touch()


def _own_environment(folder: Path) -> dict[str, str]:
    root = folder / "packages"
    path = os.pathsep.join((os.environ["PATH"], f"{root}/usr/sbin", f"{root}/usr/bin"))
    return {"DOCKER_HOST": f"unix://{folder}/run/docker.sock", "PATH": path}


@contextmanager
def _running(own: Engine) -> Iterator[None]:
    """Run `dockerd` until the end of the block."""
    folder, libraries = own.folder, own.root / "usr/lib/x86_64-linux-gnu"
    (folder / "run").mkdir(exist_ok=True)
    arguments = [
        str(own.root / "usr/sbin/dockerd"),
        f"--host={own.environment['DOCKER_HOST']}",
        f"--data-root={folder}/data",
        f"--exec-root={folder}/run/exec",
        f"--pidfile={folder}/run/dockerd.pid",
        "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
        "--bridge=none",
    ]  # fmt: skip
    loader = {"LD_LIBRARY_PATH": str(libraries), "XTABLES_LIBDIR": str(libraries / "xtables")}
    with (folder / "dockerd.log").open("ab") as log:
        child = subprocess.Popen(
            arguments,
            env=os.environ | own.environment | loader,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = monotonic() + START_SECONDS
        while not _answers(own):
            if child.poll() is not None or monotonic() > deadline:
                raise Missing(f"the engine did not start; see {folder}/dockerd.log")
            Event().wait(0.2)
        yield
    finally:
        child.terminate()
        child.wait(60)


def _with_compose(found: Engine, stood_in: list[str]) -> Engine:
    """Return the engine with Compose v2 among its client's plugins."""
    if found.docker("compose", "version", check=False).returncode == 0:
        return found
    plugin = found.folder / "config/cli-plugins/docker-compose"
    if not plugin.exists():
        _build_compose(plugin)
    stood_in.append(f"Compose: {COMPOSE}, built from its Go module")
    return Engine(found.folder, found.environment | {"DOCKER_CONFIG": str(found.folder / "config")})


def _build_compose(plugin: Path) -> None:
    if shutil.which("go") is None:
        raise Missing("no `docker compose`; install Compose v2 (or Go, to build it)")
    _say("building Compose (minutes)")
    source = plugin.parent.parent.parent / "compose"
    source.mkdir(parents=True, exist_ok=True)
    plugin.parent.mkdir(parents=True, exist_ok=True)
    (source / "go.mod").write_text(
        "module localcompose\n\ngo 1.24.9\n\nrequire (\n"
        f"\tgithub.com/docker/compose/v2 {COMPOSE}\n\tgithub.com/moby/buildkit {BUILDKIT}\n)\n"
    )
    (source / "tools.go").write_text(
        '//go:build tools\n\npackage localcompose\n\nimport _ "github.com/docker/compose/v2/cmd"\n'
    )
    _run(["go", "mod", "tidy"], folder=source)
    _run(["go", "build", "-o", str(plugin), "github.com/docker/compose/v2/cmd"], folder=source)


def _run(command: Sequence[str], *, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def _say(line: str) -> None:
    print(f"compose: {line}", flush=True)
