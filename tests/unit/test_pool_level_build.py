"""What a world may ask for that the pool level does not know is refused, never left out."""

import pytest
from msgspec.structs import replace

from gpuloop.twin.config import Injection, TwinConfig
from gpuloop.twin.pool_level.build import build_pool_worlds

USUAL = TwinConfig(gpu_sample_every_us=0, progress_every_us=0)
LOSS = Injection(fault="lost", subject="h100-o000", after_us=0)
TWICE = (USUAL.services[0], replace(USUAL.services[0], name="code"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(USUAL, placement="affinity"), "placed by affinity; this level knows binpack only"),
        (replace(USUAL, injections=(LOSS,)), "none that is called for: lost of h100-o000"),
        (replace(USUAL, services=TWICE), "l4 serves more than one service; this level knows one"),
    ],
)
def test_what_this_level_does_not_know_is_refused_by_name(config: TwinConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_pool_worlds([USUAL, config], hours=1, traces=None, workload="generator")
