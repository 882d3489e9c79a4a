"""What a sink says of a ClickHouse that it does not reach."""

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError

from gpuloop.loop.shells.clickhouse_store import ClickHouseStore, _told
from gpuloop.loop.shells.sink_store import StoreDown
from gpuloop.ops.stack.ports import LOOPBACK


def test_the_cause_is_named_and_not_the_address_that_was_asked_for() -> None:
    with pytest.raises(ClickHouseError) as failed:
        clickhouse_connect.get_client(host=LOOPBACK, port=1, connect_timeout=2)
    told = _told(failed.value)
    assert isinstance(told, StoreDown)
    assert str(told).endswith("Connection refused")
    assert "query_id" not in str(told)


def test_a_store_that_is_not_reached_is_named_without_its_password() -> None:
    store = ClickHouseStore(f"http://me:hidden@{LOOPBACK}:1", {}, reader="r", keep_days=1)
    with pytest.raises(StoreDown) as down:
        store.open({})
    assert str(down.value).startswith(f"{LOOPBACK}:1: ")
    assert "hidden" not in str(down.value)
