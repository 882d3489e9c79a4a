"""Python to machine code, kept on disk between runs under the digest of what it was made from.

Numba keeps code beside the file of a function and takes it for current while that file is; what it
calls and which constants it holds may have changed since. So what is kept here lies in a folder
that is named by the whole of the twin's source and the units it counts in.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
from numba.extending import register_jitable

F = TypeVar("F", bound=Callable[..., Any])

KEPT_SOURCES: Final = 5
"""States of the source whose code is kept; a dozen megabytes each."""

_njit: Final[Any] = numba.njit
_also: Final[Any] = register_jitable(error_model="numpy")
_numba: Final[Any] = numba.config


@cache
def source_digest() -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the twin's source and of the units."""
    digest = sha256()
    folder = Path(__file__).resolve().parents[1]
    for path in (*sorted(folder.rglob("*.py")), folder.parent / "schemas" / "units.py"):
        digest.update(f"{path.relative_to(folder.parent)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compiled(function: F) -> F:
    """Return a function as machine code for other compiled functions."""
    return cast(F, _kept(_njit(error_model="numpy", no_cpython_wrapper=True)(function)))


def entry(function: F) -> F:
    """Return a function as machine code that Python calls; to unpack its arguments is costly."""
    return cast(F, _kept(_njit(error_model="numpy")(function)))


def also_compiled(*functions: Callable[..., Any]) -> None:
    """Let compiled functions call these plain ones, which stay plain for everyone else."""
    for function in functions:
        _also(function)


def _kept(dispatcher: Any) -> Any:
    """Return a dispatcher that keeps its code, where there is a folder to write to."""
    folder, before = _folder(), _numba.CACHE_DIR
    if folder is not None:
        _numba.CACHE_DIR = str(folder)
        try:
            dispatcher.enable_caching()
        finally:
            _numba.CACHE_DIR = before
    return dispatcher


@cache
def _folder() -> Path | None:
    """Make the folder of this source's code, and let go of those that are longest unused."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "gpuloop" / "compiled" / source_digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        others = sorted(folder.parent.iterdir(), key=lambda one: -one.stat().st_mtime)
        for old in others[KEPT_SOURCES:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
