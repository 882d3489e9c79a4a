"""What the stack's own PostgreSQL is started with."""

from pathlib import Path

import pytest

from gpuloop.ops.stack.postgres import Postgres


def server(install: Path) -> Postgres:
    for folder in ("bin", "lib/postgresql"):
        (install / folder).mkdir(parents=True)
    return Postgres(programs=install / "bin", data=install, user=None, password="")


@pytest.mark.parametrize("folder", ["lib", "lib/postgresql"])
def test_timescaledb_is_loaded_where_it_is_installed_and_tells_nobody(
    tmp_path: Path, folder: str
) -> None:
    found = server(tmp_path)
    (tmp_path / folder / "timescaledb.so").touch()
    arguments = found.program(5432).arguments
    assert "-cshared_preload_libraries=timescaledb" in arguments
    assert "-ctimescaledb.telemetry_level=off" in arguments


def test_a_server_without_timescaledb_is_not_asked_to_load_it(tmp_path: Path) -> None:
    assert not any("timescaledb" in one for one in server(tmp_path).program(5432).arguments)
