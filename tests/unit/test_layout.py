"""The list of our packages stands in several files; here they are held together."""

import ast
import re
import tomllib
from pathlib import Path

from shares import SERVERS, STACKS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
LINKS = {path.name: path for path in (ROOT / "src" / "gpuloop").iterdir() if path.is_symlink()}


def test_src_links_each_package_relatively_to_its_top_level_folder() -> None:
    assert LINKS
    for name, link in LINKS.items():
        assert link.readlink() == Path("../..") / name
        assert link.is_dir()


def test_wheel_maps_exactly_the_linked_packages() -> None:
    sources = dict(WHEEL["sources"])
    assert sources.pop("src/gpuloop") == "gpuloop"
    assert sources == {name: f"gpuloop/{name}" for name in LINKS}
    own = {"src/gpuloop/__init__.py", "src/gpuloop/py.typed"}
    assert set(WHEEL["only-include"]) == own | set(LINKS)


def test_source_distribution_holds_what_the_wheel_holds() -> None:
    sdist = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert set(WHEEL["only-include"]) <= set(sdist["only-include"])


def test_import_direction_names_every_package_once() -> None:
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    named = [part.strip().removeprefix("gpuloop.") for row in layers for part in row.split("|")]
    assert sorted(named) == sorted(LINKS)


def test_bare_import_of_any_package_is_banned() -> None:
    banned = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(LINKS) <= set(banned)


def test_image_is_built_from_what_the_wheel_is_built_from() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{name}/" for name in LINKS} <= set(ignored)


def test_every_package_says_what_it_owns() -> None:
    for name, link in LINKS.items():
        source = (link / "__init__.py").read_text()
        assert ast.get_docstring(ast.parse(source)), f"{name} has no docstring"


def test_adr_index_names_every_record() -> None:
    folder = ROOT / "docs" / "adr"
    named = re.findall(r"\(([0-9]{4}-[^)]+\.md)\)", (folder / "README.md").read_text())
    assert named == sorted(path.name for path in folder.glob("[0-9]*.md"))


def test_what_starts_servers_is_where_the_shares_of_the_tests_look_for_it() -> None:
    assert [name for name in (*STACKS, *SERVERS) if not (ROOT / name).exists()] == []
