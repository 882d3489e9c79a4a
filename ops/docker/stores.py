"""Prepare the stores that run beside us: roles in PostgreSQL, and passwords where sinks read them.

Runs once at every start, where the servers run in this project. It alone knows the administrator's
password; the sink's own is drawn here. Each store's password lies in a volume of its own, which no
process has but those that sign in there.

Usage: stores.py FOLDER, with POSTGRES_PASSWORD, CLICKHOUSE_PASSWORD and GPULOOP_POSTGRES_DSN set.
"""

import os
import secrets
import sys
from pathlib import Path

from psycopg.conninfo import make_conninfo

from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.roles import admit


def main(folder: Path) -> int:
    """Write the passwords into `folder` and admit the sink to PostgreSQL."""
    own = folder / "postgres" / "password"
    if not own.exists():
        write(own, secrets.token_urlsafe(24))
    write(folder / "clickhouse" / "password", os.environ["CLICKHOUSE_PASSWORD"])
    administrator = make_conninfo(
        os.environ["GPULOOP_POSTGRES_DSN"], password=os.environ["POSTGRES_PASSWORD"]
    )
    try:
        print(admit(administrator, own.read_text()))
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def write(path: Path, secret: str) -> None:
    """Write a secret that only our user can read, whole or not at all."""
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
