"""The environment is read once, in full, or not at all."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpuloop.loop.settings import MAX_SPEED, Settings, SettingsError, variables
from gpuloop.loop.shells.transactional import WorldConfig


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = Settings.from_environment({"PATH": "/bin", "GPULOOP_FLEET": ""})
    assert settings == Settings()
    assert settings.start_us == 1_508_112_000_000_000
    assert settings.environment() == {}


def test_every_variable_is_documented() -> None:
    documented = list(variables())
    assert {name for name, _, _ in documented} >= {"GPULOOP_TRACES", "GPULOOP_TRUSTED_KEYS"}
    assert all(meaning for _, _, meaning in documented)


def test_values_are_read_by_type() -> None:
    settings = Settings.from_environment(
        {
            "GPULOOP_SPEED": "6.5",
            "GPULOOP_HTTP_PORT": "8080",
            "GPULOOP_TRACES": "/traces",
            "GPULOOP_TRUSTED_KEYS": "aa, bb",
            "GPULOOP_START": "2017-10-17T00:00:00Z",
        }
    )
    assert (settings.speed, settings.http_port) == (6.5, 8080)
    assert settings.traces == Path("/traces")
    assert settings.trusted_keys == ("aa", "bb")
    assert settings.start == datetime(2017, 10, 17, tzinfo=UTC)


def test_keys_are_read_from_a_file_that_a_list_names(tmp_path: Path) -> None:
    (tmp_path / "learner.pub").write_text("bb\n")
    given = {"GPULOOP_TRUSTED_KEYS": f"aa,@{tmp_path}/learner.pub,"}
    assert Settings.from_environment(given).trusted_keys == ("aa", "bb")
    with pytest.raises(SettingsError, match=r"none\.pub"):
        Settings.from_environment({"GPULOOP_TRUSTED_KEYS": f"@{tmp_path}/none.pub"})


def test_settings_travel_to_a_child_process_unchanged() -> None:
    settings = Settings(
        fleet="f", traces=Path("/t"), trusted_keys=("a", "b"), speed=1.0, topic_prefix="p."
    )
    assert Settings.from_environment(settings.environment()) == settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GPULOOP_SPED", "60", "GPULOOP_SPED"),
        ("GPULOOP_SPEED", "0", "GPULOOP_SPEED"),
        ("GPULOOP_SPEED", "nan", "GPULOOP_SPEED"),
        ("GPULOOP_HTTP_PORT", "70000", "GPULOOP_HTTP_PORT"),
        ("GPULOOP_SEED", "-1", "GPULOOP_SEED"),
        ("GPULOOP_START", "yesterday", "GPULOOP_START"),
        ("GPULOOP_LOG_LEVEL", "loud", "GPULOOP_LOG_LEVEL"),
        ("GPULOOP_TOPIC_PREFIX", "no spaces", "GPULOOP_TOPIC_PREFIX"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.from_environment({name: value})


def test_no_world_is_asked_to_go_faster_than_it_can_step() -> None:
    world = WorldConfig(fleet="local", seed=0, start_us=0, speed=MAX_SPEED)
    assert world.step_max_us / world.step_every_us == MAX_SPEED


@pytest.mark.parametrize("speed", ["601", "1e9", "0", "-1", "nan", "inf"])
def test_a_speed_that_no_world_can_keep_is_refused(speed: str) -> None:
    with pytest.raises(SettingsError, match="GPULOOP_SPEED: expected a number"):
        Settings.from_environment({"GPULOOP_SPEED": speed})


def test_a_replica_may_be_named_after_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "0f3c")
    assert Settings(replica="@host").member == "0f3c"
    assert Settings(replica="two").member == "two"
