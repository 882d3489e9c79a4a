"""Who in a local stack is told how to reach a store."""

from pathlib import Path

import msgspec
import pytest

from gpuloop.loop.settings import Settings
from gpuloop.ops.stack.services import SERVICES
from gpuloop.ops.stack.stores import Stores

GIVEN = msgspec.structs.replace(
    Settings(),
    postgres_dsn="postgresql://administrator",
    clickhouse_url="http://elsewhere",
    postgres_password_file=Path("/postgres"),
    clickhouse_password_file=Path("/clickhouse"),
)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_told_of_no_store_but_the_one_that_it_fills(name: str) -> None:
    stores = Stores(postgres_dsn="postgresql://sink", clickhouse_url="http://engine")
    told = stores.settings(name, GIVEN)
    postgres = (told.postgres_dsn, told.postgres_password_file)
    clickhouse = (told.clickhouse_url, told.clickhouse_password_file)
    fills = name == "sink-timescale", name == "sink-clickhouse"
    assert postgres == (("postgresql://sink", Path("/postgres")) if fills[0] else ("", None))
    assert clickhouse == (("http://engine", Path("/clickhouse")) if fills[1] else ("", None))
