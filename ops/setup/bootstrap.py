"""Make `.venv` ready to run gpuloop, from nothing but this Python.

Owns the virtual environment: makes it, puts the hash-locked packages of `requirements/` into it
and the project itself on top. Runs before anything is installed, so it uses the standard library
only, and older Pythons must be able to parse it as far as the line that refuses them. Knows no
index: whichever one pip or uv is set to use on this machine is used.
"""

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

if not (3, 11) <= sys.version_info[:2] < (3, 14):
    sys.exit(
        f"setup: gpuloop needs Python 3.11, 3.12 or 3.13, and this is {platform.python_version()}."
    )

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "gpuloop-setup"
GIB = 1 << 30
TORCH_BUILD = re.compile(r"(torch|triton|cuda-.*|nvidia-(?!ml-py).*)==(\S+)")
"""torch and what only its CUDA build needs, as they stand in a lock file."""


class SetupError(Exception):
    """Something that set-up needs is missing; the message is one line for a person."""


def main() -> int:
    """Set the environment up if it is not, and return the exit status."""
    options = parse_arguments()
    extras, torch_index, done = remembered()
    extras = options.extras or extras
    torch_index = options.torch_index or torch_index
    locks = [ROOT / "requirements" / f"{name}.txt" for name in lock_names(extras)]
    wanted = fingerprint(locks, torch_index)
    whole = bool(done) and PYTHON.exists()
    if whole and wanted == done:
        return 0
    try:
        if not whole:
            make_environment(options.disk_gib)
        remember(extras, torch_index, "")
        install(locks, torch_index)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: stopped; a repeat goes on from here", file=sys.stderr)
        return 130
    remember(extras, torch_index, wanted)
    say("ready")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Return the options; empty ones count as not given, as make passes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--extras", default="", help="only these extras; `all` for all of them")
    parser.add_argument("--torch-index", default="", help="take torch from this package index")
    parser.add_argument("--disk-gib", type=float, default=10.0, help="free space to ask for")
    return parser.parse_args()


def remembered() -> "tuple[str, str, str]":
    """Return what was last asked for, and its fingerprint if that set-up came to its end.

    Without a fingerprint a package may be there in part, and the installers would not notice.
    """
    lines = STAMP.read_text().splitlines() if STAMP.exists() else []
    root, extras, torch_index, done = lines if len(lines) == 4 else ("", "", "", "")
    # A copy of another checkout's environment does not count: scripts carry absolute paths.
    return extras, torch_index, done if root == str(ROOT) else ""


def remember(extras: str, torch_index: str, done: str) -> None:
    """Write what `remembered` reads."""
    STAMP.write_text(f"{ROOT}\n{extras}\n{torch_index}\n{done}\n")


def lock_names(extras: str) -> "list[str]":
    """Return which lock files to install; each extra's holds the base dependencies too."""
    chosen = extras.replace(",", " ").split() or ["all"]
    return ["bootstrap", *(chosen if chosen == ["all"] else ["base", *chosen, "dev"])]


def fingerprint(locks: "list[Path]", torch_index: str) -> str:
    """Return a text that changes when the environment would be set up differently."""
    digest = hashlib.sha256(torch_index.encode())
    for path in [*locks, ROOT / "pyproject.toml", Path(__file__)]:
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt")))
            sys.exit(f"setup: there is no lock file {path.stem!r}; there are: {known}.")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def install(locks: "list[Path]", torch_index: str) -> None:
    """Install everything. What an earlier run has downloaded is not fetched again."""
    environment = os.environ | index_settings()
    environment["VIRTUAL_ENV"] = str(VENV)
    bootstrap = str(locks[0])
    say("installing uv")
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--require-hashes", "--only-binary", ":all:", "-r", bootstrap], os.environ)
    uv = [str(VENV / "bin" / "uv"), "pip"]
    say("installing the locked packages; a repeat goes on where this stops")
    torch = None
    if torch_index:
        locks, torch = without_torch(locks)
    run([*uv, "sync", "--require-hashes", *map(str, locks)], environment)
    if torch:
        say(f"installing {torch} from the index given")
        index = ["--index-url", torch_index, "--no-deps"]
        run([*uv, "install", *index, torch], environment)
    run([*uv, "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."], environment)


def make_environment(disk_gib: float) -> None:
    """Make `.venv` anew, with pip in it."""
    if not VENV.exists():  # Else its packages are on this disk already.
        check_disk(disk_gib)
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise SetupError(
                f"{sys.executable} lacks the module {module}; "
                f"on Debian and Ubuntu the package python{version}-venv holds it."
            )
    say(f"making {VENV.name} with Python {platform.python_version()}")
    run([sys.executable, "-m", "venv", "--clear", str(VENV)], os.environ)


def check_disk(disk_gib: float) -> None:
    """Refuse to start a download of several GB that this disk cannot hold."""
    free = shutil.disk_usage(ROOT).free / GIB
    if free < disk_gib:
        raise SetupError(
            f"needs about {disk_gib:g} GiB of disk (torch alone is 5) and {free:.1f} GiB are free; "
            "`make setup DISK_GIB=N` asks for less."
        )


def index_settings() -> "dict[str, str]":
    """Return pip's own index settings in uv's words, for uv does not read pip's files."""
    wording = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "cert": "SSL_CERT_FILE",
    }
    listed = subprocess.run(  # noqa: S603
        [str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    settings = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        variable = wording.get(name.rpartition(".")[2])
        if variable and variable not in os.environ:
            settings[variable] = value.strip("'\"")
    return settings


def without_torch(locks: "list[Path]") -> "tuple[list[Path], str | None]":
    """Return copies of the lock files without torch and its CUDA libraries, and torch's pin.

    Another index builds other wheels of the same version, so the hashes of this one do not hold.
    """
    folder = VENV / "requirements"
    folder.mkdir(exist_ok=True)
    torch = None
    copies = []
    for lock in locks:
        kept = []
        # An entry is one requirement and, after backslashes, its hashes.
        for entry in re.split(r"(?<!\\)\n", lock.read_text()):
            match = TORCH_BUILD.match(entry)
            if match is None:
                kept.append(entry)
            elif match[1] == "torch":
                torch = f"torch=={match[2]}"
        copies.append(folder / lock.name)
        copies[-1].write_text("\n".join(kept))
    return copies, torch


def run(command: "list[str]", environment: "os._Environ[str] | dict[str, str]") -> None:
    """Run one step with its output in view."""
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:  # noqa: S603
        free = shutil.disk_usage(ROOT).free / GIB
        why = f" ({free:.1f} GiB of disk are free)" if free < 1 else ""
        step = " ".join([Path(command[0]).name, *command[1:4]])
        raise SetupError(f"`{step} ...` failed{why}; its own message is above.")


def say(text: str) -> None:
    """Print one line about what set-up does."""
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
