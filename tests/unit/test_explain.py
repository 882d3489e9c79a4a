"""What a decision says of itself."""

import pytest

from builders import batch
from gpuloop.reasoning.explain import rule_limits
from gpuloop.reasoning.rule import RuleConfig


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"gpus_allocated": [24 * 8.0]}, "not more: 24 nodes meet the demand"),
        ({"gpus_allocated": [30 * 8.0]}, "not more: 30 nodes meet the demand"),
        ({"gpus_allocated": [60 * 8.0]}, "not more: 48 nodes is the pool's ceiling"),
        (
            {"gpus_allocated": [160.0], "gpus_demanded_peak": [192.0]},
            "not less: demand was 192 GPUs a moment ago",
        ),
    ],
)
def test_the_limits_of_the_rule_name_the_nodes_that_it_wants(columns: dict, said: str):
    assert rule_limits(batch(**columns), 0, RuleConfig()).startswith(said)
