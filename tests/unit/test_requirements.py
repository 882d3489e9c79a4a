"""The lock files agree with each other and with pyproject.toml, and name no place to fetch from."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted(path.stem for path in FOLDER.glob("*.txt"))


def entries(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Return version and hashes of each package in a lock file."""
    pins = {}
    for entry in re.split(r"(?<!\\)\n", (FOLDER / f"{name}.txt").read_text().strip()):
        found = re.match(r"([a-z0-9.-]+)==([^ ;]+)", entry)
        assert found is not None, entry
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
        pins[found[1]] = (found[2], frozenset(hashes))
    return pins


def canonical(requirement: str) -> str:
    """Return the name in a requirement as lock files spell it."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_there_is_one_lock_file_per_group() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"all", "base", "bench", "bootstrap", "dev", *extras} == set(LOCKS)


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_and_hashed(name: str) -> None:
    assert all(hashes for _, hashes in entries(name).values())


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_file_names_an_index(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text()
    assert not re.search(r"://|--(extra-)?index|--find-links|^ *#", text, re.M)


@pytest.mark.parametrize("name", LOCKS)
def test_every_group_pins_what_the_whole_pins(name: str) -> None:
    whole = entries("all")
    assert all(whole.get(package) == pin for package, pin in entries(name).items())


def test_every_declared_dependency_is_locked_in_its_group() -> None:
    groups = {"base": PROJECT["project"]["dependencies"]}
    groups |= PROJECT["project"]["optional-dependencies"]
    groups |= {name: PROJECT["dependency-groups"][name] for name in ("bench", "dev")}
    groups |= {"bootstrap": PROJECT["dependency-groups"]["setup"]}
    for name, declared in groups.items():
        assert {canonical(one) for one in declared} <= set(entries(name)), name


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("torch", "learn"),
        ("optuna", "bench"),
        ("dowhy", "causes"),
        ("river", "causes"),
        ("chdb", "embedded"),
    ],
)
def test_a_heavy_package_is_in_one_group_only(package: str, home: str) -> None:
    assert [name for name in LOCKS if package in entries(name)] == sorted(["all", home])
