"""`make test-compose`: the whole stack in containers, from an engine to a clean end.

Uses the engine that answers, else runs its own; pulls the images of others, else stands them in and
says so; builds ours from the Dockerfile as it is; brings everything up with Compose, and hands over
to `loop_in_containers.py`. It takes what it started down again, whatever happened.

Usage: python tests/compose/run.py [--secure] [PYTEST ARGUMENTS]

With `--secure` it is the stack of docker-compose.secure.yml: TLS, passwords, rights.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compose.engine import Missing, engine
from compose.images import Images
from compose.project import Project
from gpuloop.twin.config import TwinConfig
from integration.test_end_to_end import TWIN

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("TEST_COMPOSE_FOLDER", "/var/tmp/gpuloop-engine"))


def main(arguments: list[str]) -> int:
    """Run it all; return the exit status of the assertions."""
    secured = "--secure" in arguments
    arguments = [one for one in arguments if one != "--secure"]
    stood_in: list[str] = []
    try:
        with alone(FOLDER), engine(FOLDER, stood_in) as found:
            images = Images(found, stood_in)
            images.provide()
            project = Project(found, FOLDER / "project")
            beside = Project(found, FOLDER / "beside", name="gpuloop-beside")
            twin: TwinConfig = TWIN
            project.write(images, twin)
            beside.write(images, twin, prefix="next.")
            report(stood_in)
            try:
                began = monotonic()
                project.build()
                print(f"compose: built in {monotonic() - began:.0f} s", flush=True)
                if secured:
                    project.secure()
                began = monotonic()
                try:
                    project.compose("up", "--detach", "--wait", "--no-build")
                except AssertionError:
                    kept = project.keep_logs()
                    print(f"compose: what the containers said is in {kept}", file=sys.stderr)
                    raise
                print(f"compose: everything healthy in {monotonic() - began:.0f} s", flush=True)
                status = check(project, beside, arguments)
                report(stood_in)
                return status
            finally:
                for one in (project, beside):
                    one.compose("down", "--volumes", "--timeout=5", check=False)
    except (Missing, AssertionError) as error:
        print(f"compose: {error}", file=sys.stderr)
        return 1


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuse a second run beside the first: they would take down each other's containers."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Missing(f"another run holds {folder}; wait for it to end") from None
        yield


def check(project: Project, beside: Project, arguments: list[str]) -> int:
    """Run the assertions in a process of their own; keep the containers' logs when they fail."""
    given = {
        "engine": str(project.engine.folder),
        "docker": project.engine.environment,
        "projects": [
            {"name": one.name, "folder": str(one.folder), "environment": one.environment}
            for one in (project, beside)
        ],
    }
    asserted = [
        str(HERE / "loop_in_containers.py"),
        "-rP",
        "--show-capture=stdout",
        "-v",
        *arguments,
    ]
    status = subprocess.run(
        [sys.executable, "-m", "pytest", *asserted],
        env=os.environ | {"TEST_COMPOSE": json.dumps(given)},
        check=False,
    ).returncode
    if status != 0:
        if project.left():
            project.keep_logs()
        print(f"compose: what the containers said is in {project.folder}/logs", file=sys.stderr)
    return status


def report(stood_in: list[str]) -> None:
    """Print what is not what a user with a registry would have."""
    for line in stood_in:
        print(f"compose: stood in for {line}", flush=True)
    if not stood_in:
        print("compose: nothing was stood in", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
