"""Messages as rows: what each column holds, what is missing, what cannot be dated."""

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import pytest

from builders import FLEET, START_US, offer, pool_state
from gpuloop.schemas.catalogue import CATALOGUE
from gpuloop.schemas.codec import BadInput
from gpuloop.schemas.messages import AuditRecord, NodeState, Outcome, Reward
from gpuloop.schemas.messages.learning import COMPONENTS
from gpuloop.schemas.messages.state import Feature, QueueState
from gpuloop.schemas.units import INT64_MAX, MINUTE_US
from gpuloop.streams.sinks.analysis import ANALYSIS
from gpuloop.streams.sinks.history import HISTORY
from gpuloop.streams.sinks.tables import LATEST, Catalogue, Value

START = datetime(2017, 10, 16, tzinfo=UTC)


def row(catalogue: Catalogue, table: str, topic: str, message: object) -> dict[str, Value]:
    """Return the one row that a message makes in a table, by column."""
    [found] = catalogue.rows(topic, message, "the event")[table]  # type: ignore[arg-type]
    return dict(zip(catalogue[table].names, found, strict=True))


def node(**features: Feature) -> NodeState:
    return NodeState(
        fleet=FLEET, node="n1", pool="a100", rack="r", gpu_model="a100", billing="spot", gpus=8,
        event_time_us=START_US, boot=1, seq=2, features=features,
    )  # fmt: skip


def reward(**components: int) -> Reward:
    return Reward(
        fleet=FLEET, pool="a100", decision_id="d", start_us=START_US, end_us=START_US + MINUTE_US,
        components=components, total_usd_micros=sum(components.values()), overlap=0,
        censored=False, definition="ledger/1",
    )  # fmt: skip


def test_a_pools_capacity_cost_and_demand_stand_in_one_row() -> None:
    found = row(HISTORY, "pool_states", "state.pools", pool_state(queued=16))
    assert found["time"] == START
    assert (found["on_demand_nodes"], found["spot_nodes"], found["rented_gpus"]) == (16, 8, 192)
    assert found["usd_per_hour"] == 16 * 29.0 + 8 * 12.0
    assert (found["queued_jobs"], found["queued_gpus"]) == (1, 16)
    assert found["oldest_submitted_us"] == START_US - MINUTE_US


def test_what_a_pool_cannot_rent_and_nobody_waits_for_is_null() -> None:
    found = row(HISTORY, "pool_states", "state.pools", pool_state(spot=None))
    names = ("spot_nodes", "spot_nodes_ordered", "spot_usd_micros_per_node_hour")
    assert [found[name] for name in (*names, "oldest_submitted_us")] == [None] * 4


def test_sums_that_no_column_holds_stop_at_the_largest_number() -> None:
    state = pool_state()
    queue = QueueState(
        job_class="x", jobs=INT64_MAX, gpus=INT64_MAX, oldest_submitted_us=0, submitted_sum_us=0
    )
    found = row(
        HISTORY, "pool_states", "state.pools", msgspec.structs.replace(state, queues=(queue,) * 2)
    )
    assert (found["queued_jobs"], found["queued_gpus"]) == (INT64_MAX, INT64_MAX)


def test_each_feature_of_a_pool_is_a_row_with_its_age_and_quality() -> None:
    features = {
        "utilisation": Feature(value=0.5, age_us=7, quality=0.25),
        "power_watts": Feature(value=None, age_us=9, quality=0.0),
    }
    made = HISTORY.rows("state.pools", pool_state(features=features), "e")["pool_features"]
    assert made == [
        (START, FLEET, "a100", "power_watts", None, 9, 0.0),
        (START, FLEET, "a100", "utilisation", 0.5, 7, 0.25),
    ]


def test_a_nodes_measures_are_columns_and_null_where_it_has_none() -> None:
    found = row(
        HISTORY, "node_states", "state.nodes",
        node(power_watts=Feature(value=300.0, age_us=0, quality=0.5),
             of_tomorrow=Feature(value=1.0, age_us=0, quality=1.0)),
    )  # fmt: skip
    assert found["power_watts"] == 300.0
    assert found["utilisation"] is None
    assert found["worst_quality"] == 0.5
    assert "of_tomorrow" not in found


def test_a_reward_has_a_column_for_every_component_of_the_ledger() -> None:
    money = {name: 10 * n for n, name in enumerate(COMPONENTS)}
    found = row(ANALYSIS, "rewards", "rewards", reward(**money))
    assert {name: found[f"{name}_usd_micros"] for name in COMPONENTS} == money
    assert row(ANALYSIS, "rewards", "rewards", reward())["revenue_usd_micros"] is None


def test_an_outcome_keeps_what_was_observed_as_json() -> None:
    outcome = Outcome(
        fleet=FLEET, command_id="0" * 64, decision_id="d", actuator="scaling", target="a100",
        pool="a100", status="rejected", reason="killed", generation=1, epoch=2,
        event_time_us=START_US,
    )  # fmt: skip
    found = row(ANALYSIS, "outcomes", "actions.outcomes", outcome)
    assert (found["status"], found["why"], found["observed"]) == ("rejected", "killed", None)
    assert found["event_id"] == "the event"


@pytest.mark.parametrize(
    ("value", "length"), [("-", 0), ("", 0), ("YWI=", 2), ("YWJj", 3), ("sha256:abc", None)]
)
def test_an_audit_record_is_kept_without_its_value(value: str, length: int | None) -> None:
    record = AuditRecord(
        fleet=FLEET, topic="decisions", partition=0, offset=4, timestamp_ms=START_US // 1000,
        key="", headers=(), value=value, previous_hash="0" * 64, hash="1" * 64,
    )  # fmt: skip
    found = row(ANALYSIS, "audit_records", "audit", record)
    assert (found["value_bytes"], found["source_offset"], found["time"]) == (length, 4, START)


@pytest.mark.parametrize("at_us", [INT64_MAX, int(LATEST.timestamp()) * 1_000_000])
def test_what_no_stores_calendar_reaches_is_refused(at_us: int) -> None:
    with pytest.raises(BadInput, match="out_of_range"):
        HISTORY.rows("market.offers", offer(at_us=at_us), "e")


@pytest.mark.parametrize("catalogue", [HISTORY, ANALYSIS], ids=["history", "analysis"])
def test_tables_say_what_their_topics_carry(catalogue: Catalogue) -> None:
    for table in catalogue.tables:
        assert all(table.message in CATALOGUE[topic].messages for topic in table.topics)
        assert len(set(table.names)) == len(table.names)
        assert set(table.key) <= set(table.names)
        assert "time" in table.key
        nullable = {column.name for column in table.columns if column.nullable}
        assert not nullable & set(table.key)


def test_a_message_on_a_topic_that_is_not_kept_makes_no_row() -> None:
    assert HISTORY.rows("controls", pool_state(), "e") == {}
    assert ANALYSIS.rows("audit", pool_state(), "e") == {}


def test_a_table_can_be_taken_without_a_column() -> None:
    table = HISTORY["offers"]
    assert replace(table, columns=table.columns[:-1]).names == table.names[:-1]
