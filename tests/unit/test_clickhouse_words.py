"""What a sink says of a ClickHouse that it does not reach."""

import logging

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError

from gpuloop.loop.services.sink_clickhouse import NOISY, silence_libraries
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


def test_the_libraries_under_a_sink_add_nothing_to_what_it_says_of_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in NOISY:
        caplog.set_level(logging.INFO, logger=name)  # So that the level is put back.
    silence_libraries()
    store = ClickHouseStore(f"http://{LOOPBACK}:1", {}, reader="r", keep_days=1)
    with pytest.raises(StoreDown):
        store.open({})
    assert caplog.messages == []
