"""The example of a world that has everything is one that lives."""

from pathlib import Path

import msgspec

from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.config import TwinConfig
from gpuloop.twin.world import World, build_world

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "rich-world.json"
PAGE = Path(__file__).parents[2] / "docs" / "worlds.md"


def config() -> TwinConfig:
    return msgspec.json.decode(EXAMPLE.read_bytes(), type=TwinConfig)


def lived(hours: int) -> World:
    world = build_world(config(), None, "generator:bursty")
    world.advance(world.start_us + hours * HOUR_US)
    return world


def test_example_configures_every_part_that_the_page_describes() -> None:
    usual, rich = TwinConfig(), config()
    page = PAGE.read_text()
    for name in msgspec.json.decode(EXAMPLE.read_bytes()):
        assert getattr(rich, name) != getattr(usual, name)
        assert f'"{name}"' in page


def test_example_lives_and_every_part_of_it_does_something() -> None:
    world = lived(4)
    assert any(node.shares for node in world.state.nodes.values())
    assert any(job.granted < 1.0 for job in world.state.jobs.values())
    assert min(world.carbon().values()) > 0
    assert set(world.state.tenants) == {"6214e9", "11cb48"}
