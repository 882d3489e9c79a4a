"""Every service starts with the packages of its own image, and no others."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
TARGETS = {body["image"]: body["build"]["target"] for body in COMPOSE.values() if "build" in body}
IMAGES = {
    body["command"][0]: TARGETS[body["image"]]
    for body in COMPOSE.values()
    if body["image"] in TARGETS and "command" in body
}

IMPORT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is not in this image", name=name)

refused = set(sys.argv[2].split())
sys.meta_path.insert(0, Refuse())
__import__(f"gpuloop.{sys.argv[1]}")
"""


def canonical(name: str) -> str:
    """Return a distribution's name as lock files spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def absent(image: str) -> set[str]:
    """Return the modules that are installed here and not in an image."""
    stage = re.search(rf"^FROM tools AS packages-{image}\n(.*?)\n\n", DOCKERFILE, re.M | re.S)
    assert stage is not None
    carried = {"gpuloop"}
    for lock in set(re.findall(r"requirements/[a-z]+\.txt", stage[1])):
        carried |= set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / lock).read_text(), re.M))
    return {
        module
        for module, distributions in packages_distributions().items()
        if not carried & {canonical(one) for one in distributions}
    }


def starts(module: str, image: str) -> subprocess.CompletedProcess[str]:
    """Import a module in a process that has only an image's packages."""
    arguments = [module, " ".join(sorted(absent(image)))]
    return subprocess.run(
        [sys.executable, "-c", IMPORT, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("name", "image"), IMAGES.items())
def test_service_is_imported_with_the_packages_of_its_image(name: str, image: str) -> None:
    done = starts("loop.services." + name.replace("-", "_"), image)
    assert done.returncode == 0, done.stderr


def test_topics_are_applied_from_the_base_image() -> None:
    done = starts("ops.cli.main", "base")
    assert done.returncode == 0, done.stderr


def test_learner_does_not_start_without_torch() -> None:
    assert "torch" in absent("base")
    done = starts("loop.learn.trainer", "base")
    assert "torch is not in this image" in done.stderr or "gymnasium is not" in done.stderr
