"""A checkout as it may be after the next release: other image tags and one field more.

An upgrade is only tried when versions differ, so this one does where releases are allowed to: its
pool states say something that today's readers have never heard of.
"""

import re
import shutil
from pathlib import Path
from typing import Final

from compose.project import ROOT

VERSION: Final = "0.1.1"
_KEPT: Final = shutil.ignore_patterns(".git", ".venv", ".gpuloop", "__pycache__", ".*_cache")
_LAST_FIELD: Final = "    demand_age_us: DurationUs | None = None\n"


def next_version(folder: Path) -> Path:
    """Copy this checkout into `folder` and return the copy, a version further."""
    tree = folder / "next"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=_KEPT)
    (now,) = re.findall(r'^version = "(.*)"', (tree / "pyproject.toml").read_text(), re.M)
    for name in ("docker-compose.yml", "docker-compose.secure.yml", "src/gpuloop/__init__.py"):
        _change(tree / name, now, VERSION)
    _change(
        tree / "schemas/messages/state.py",
        _LAST_FIELD,
        f'{_LAST_FIELD}    told_by: str = "{VERSION}"\n',
    )
    return tree


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} does not say {old!r}"
    path.write_text(text.replace(old, new))
