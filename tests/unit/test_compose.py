"""docker-compose.yml, the Dockerfile and Prometheus follow the one table of services."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuloop.loop import settings
from gpuloop.loop.services import metrics
from gpuloop.ops.stack.services import SERVICES
from gpuloop.ops.stack.stores import SINK

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
ALL: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
TARGETS = {
    "": "base", "observe": "base", "stores": "base", "collect": "base",
    "causes": "causes", "learn": "learn", "embedded": "embedded",
}  # fmt: skip
OURS = {
    body["command"][0]: body
    for body in ALL.values()
    if body["image"].startswith("gpuloop-") and "entrypoint" not in body
}
ONCE = {name: body for name, body in ALL.items() if "entrypoint" in body}


BUILDERS = [body for body in ALL.values() if "build" in body]
BUILT = {body["image"]: body["build"]["target"] for body in BUILDERS}


def test_every_image_of_ours_is_built_by_one_service() -> None:
    """Built twice under one name it would be two images, and `up` would replace containers."""
    ours = {body["image"] for body in ALL.values() if body["image"].startswith("gpuloop-")}
    assert len(BUILDERS) == len(BUILT)
    assert set(BUILT) == ours


def test_compose_runs_exactly_the_services_of_the_table() -> None:
    assert set(OURS) == set(SERVICES)
    assert all(len(body["command"]) == 1 for body in OURS.values())


def test_image_starts_services_as_the_table_does() -> None:
    found = re.search(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.M)
    assert found is not None
    _, *entrypoint = json.loads(found[1])
    for name, service in SERVICES.items():
        assert [*entrypoint, *OURS[name]["command"]] == list(service.arguments)


@pytest.mark.parametrize("name", SERVICES)
def test_service_runs_in_the_image_with_its_packages(name: str) -> None:
    service, body = SERVICES[name], OURS[name]
    target = TARGETS[service.extra]
    assert BUILT[body["image"]] == target
    assert body["image"].partition(":")[0] == f"gpuloop-{target}"
    stage = re.search(rf"^FROM tools AS packages-{target}\n(.*?)\n\n", DOCKERFILE, re.M | re.S)
    assert stage is not None
    assert f"requirements/{service.extra or 'base'}.txt" in stage[1]
    assert f"FROM runtime AS {target}\nCOPY --from=packages-{target} " in DOCKERFILE


@pytest.mark.parametrize("name", SERVICES)
def test_service_waits_for_what_the_table_says(name: str) -> None:
    waits = OURS[name]["depends_on"]
    assert {one for one, how in waits.items() if how.get("required", True)} - set(ONCE) == {
        one for one in SERVICES[name].needs if one not in ONCE
    }
    assert ("topics" in waits) == ("topics" in SERVICES[name].needs)


def test_what_runs_once_is_waited_for_until_it_has_ended_well() -> None:
    for body in ALL.values():
        for name, how in body.get("depends_on", {}).items():
            ended = how["condition"] == "service_completed_successfully"
            assert ended == (name in ONCE)


def test_nothing_waits_in_vain_for_what_a_profile_leaves_out() -> None:
    for name, body in ALL.items():
        mine = set(body.get("profiles", []))
        for other, how in body.get("depends_on", {}).items():
            theirs = set(ALL[other].get("profiles", []))
            assert how.get("required", True) is (not theirs or theirs == mine), (name, other)


def test_each_store_has_a_password_that_only_those_who_sign_in_there_can_read() -> None:
    *_, folder = ALL["stores"]["entrypoint"]
    given = {
        "postgres": {"sink-timescale": "GPULOOP_POSTGRES_PASSWORD_FILE"},
        "clickhouse": {
            "sink-clickhouse": "GPULOOP_CLICKHOUSE_PASSWORD_FILE",
            "clickhouse-embedded": "GPULOOP_CLICKHOUSE_PASSWORD_FILE",
        },
    }
    for store, readers in given.items():
        volume = f"store-{store}:{folder}/{store}"
        for name, variable in readers.items():
            assert ALL[name]["environment"][variable] == f"{folder}/{store}/password"
            assert f"{volume}:ro" in ALL[name]["volumes"]
        mounted = {
            name
            for name, body in ALL.items()
            if any(one.startswith(f"store-{store}:") for one in body.get("volumes", []))
        }
        assert mounted == {"stores", *readers}
        assert volume in ALL["stores"]["volumes"]
        assert f"{folder}/{store}" in DOCKERFILE  # Made there, so that the volume is our user's.


def test_the_sink_signs_in_with_the_role_that_is_made_for_it() -> None:
    dsn = OURS["sink-timescale"]["environment"]["GPULOOP_POSTGRES_DSN"]
    assert f":-postgresql://{SINK}@timescaledb:" in dsn


def test_the_decider_trusts_the_key_that_is_made_for_the_learner() -> None:
    *_, private, public = ALL["keys"]["entrypoint"]
    assert "learner:/var/lib/gpuloop" in ALL["keys"]["volumes"]
    assert private == "/var/lib/gpuloop/keys/learner.pem"  # As loop.services.learner has it.
    assert OURS["decider"]["environment"]["GPULOOP_TRUSTED_KEYS"].startswith(f"@{public},")
    assert f"trust:{Path(public).parent}:ro" in OURS["decider"]["volumes"]


@pytest.mark.parametrize("name", ONCE)
def test_what_runs_once_is_in_the_image(name: str) -> None:
    program = ALL[name]["entrypoint"]
    if program[0] == "python3":
        inside = Path(program[1]).relative_to("/opt/code/gpuloop")
        assert (ROOT / inside).is_file()
    else:
        assert program[0] == "gpuloop"


def test_kafka_may_load_the_codecs_that_it_unpacks() -> None:
    (temporary,) = (one for one in ALL["kafka"]["tmpfs"] if one.startswith("/tmp:"))
    assert "exec" in temporary.partition(":")[2].split(",")


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_limited_to_the_memory_in_the_table(name: str) -> None:
    assert OURS[name]["mem_limit"] == f"{SERVICES[name].memory_mib}m"


def test_only_the_world_the_sinks_and_the_stand_ins_for_servers_are_optional() -> None:
    optional = {name: body["profiles"] for name, body in OURS.items() if "profiles" in body}
    others = {name: [service.profile] for name, service in SERVICES.items() if service.profile}
    assert optional == {"twin": ["twin"], **others}


def test_the_collector_is_given_devices_to_look_at_and_not_to_compute_on() -> None:
    (device,) = OURS["collector"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu", "utility"]}


def test_prometheus_finds_what_runs_in_a_profile_of_its_own_or_more_than_once() -> None:
    config = yaml.safe_load((ROOT / "ops" / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    found = [name for lookup in job["dns_sd_configs"] for name in lookup["names"]]
    assert found == [
        name
        for name, service in SERVICES.items()
        if service.profile in ("gpu", "sinks") or service.scales
    ]


@pytest.mark.parametrize("name", ALL)
def test_container_is_bounded_and_has_no_privilege(name: str) -> None:
    body = ALL[name]
    assert body["read_only"] is True
    assert body["cap_drop"] == ["ALL"]
    assert body["security_opt"] == ["no-new-privileges:true"]
    assert not body["user"].startswith("0:")
    assert body["pids_limit"] > 0
    assert body["mem_limit"]
    assert body["restart"] in ("unless-stopped", "on-failure:3")
    assert set(body["logging"]["options"]) == {"max-size", "max-file"}


@pytest.mark.parametrize("name", [n for n, one in SERVICES.items() if one.scales])
def test_every_container_of_what_scales_is_a_member_of_its_own(name: str) -> None:
    assert OURS[name]["environment"]["GPULOOP_REPLICA"] == settings.OWN_HOST


FOREIGN = [name for name, body in ALL.items() if not body["image"].startswith("gpuloop-")]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_image_is_pinned_and_checked(name: str) -> None:
    pinned = r":v?\d+\.\d+\.\d+[.\w-]*"
    # Of Grafana's release no second source confirmed the digest.
    pinned += "" if name == "grafana" else r"@sha256:[0-9a-f]{64}"
    assert re.fullmatch(rf"[a-z/-]+{pinned}", ALL[name]["image"])
    assert ALL[name]["healthcheck"]["test"]


def test_every_port_is_published_on_loopback_only() -> None:
    ports = [port for body in ALL.values() for port in body.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_mounted_volume_is_declared() -> None:
    sources = {
        mount.partition(":")[0] for body in ALL.values() for mount in body.get("volumes", [])
    }
    assert {one for one in sources if not one.startswith((".", "$"))} == set(COMPOSE["volumes"])


def test_services_are_told_nothing_that_settings_do_not_know() -> None:
    known = {name for name, _, _ in settings.variables()}
    told = {key for body in OURS.values() for key in body["environment"]}
    image = set(re.findall(r"\b(GPULOOP_\w+)=", DOCKERFILE))
    assert told | image <= known


def test_example_settings_name_every_variable_of_compose() -> None:
    text = "".join(path.read_text() for path in ROOT.glob("docker-compose*.yml"))
    example = (ROOT / ".env.example").read_text()
    asked = set(re.findall(r"\$\{(\w+)", text)) | {"COMPOSE_PROFILES"}
    assert asked == set(re.findall(r"^(\w+)=", example, re.M))


def test_example_profiles_start_everything_but_the_stand_ins_and_what_needs_gpus() -> None:
    example = (ROOT / ".env.example").read_text()
    found = re.search(r"^COMPOSE_PROFILES=(.*)$", example, re.M)
    assert found is not None
    profiles = {profile for body in ALL.values() for profile in body.get("profiles", [])}
    assert set(found[1].split(",")) == profiles - {"local", "gpu"}


def test_prometheus_asks_every_service_that_compose_runs_by_default() -> None:
    config = yaml.safe_load((ROOT / "ops" / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (group,) = job["static_configs"]
    running = [
        f"{name}:8080"
        for name, service in SERVICES.items()
        if not service.profile and not service.scales
    ]
    assert group["targets"] == running


def metric_names(expression: str) -> set[str]:
    """Return the metrics of ours that a query names."""
    return {name.removesuffix("_bucket") for name in re.findall(r"\bgpuloop_\w+", expression)}


def exported() -> set[str]:
    """Return the metrics that a process of ours exposes."""
    return set(re.findall(r"^# TYPE (\w+) ", metrics.exposition().decode(), re.M))


ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "ops" / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
}
DASHBOARDS = sorted((ROOT / "ops" / "grafana" / "dashboards").glob("*.json"))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_asks_its_source_for_metrics_that_exist(path: Path) -> None:
    (source,) = yaml.safe_load(
        (ROOT / "ops/grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"]
    panels = json.loads(path.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["datasource"]["uid"] == source["uid"]
        for target in panel["targets"]:
            names = metric_names(target["expr"])
            assert names
            assert names <= exported()


def test_grafana_is_given_the_folders_that_its_provisioning_names() -> None:
    (provider,) = yaml.safe_load(
        (ROOT / "ops/grafana/provisioning/dashboards/gpuloop.yml").read_text()
    )["providers"]
    mounts = dict(mount.split(":")[:2] for mount in ALL["grafana"]["volumes"])
    assert mounts["./ops/grafana/dashboards"] == provider["options"]["path"]
    home = ALL["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).name in {path.name for path in DASHBOARDS}


@pytest.mark.parametrize("name", ALERTS)
def test_alert_watches_metrics_that_exist_and_a_runbook_says_what_to_do(name: str) -> None:
    expression = ALERTS[name]["expr"]
    assert metric_names(expression) <= exported()
    assert metric_names(expression) or expression.startswith("up{")
    assert ALERTS[name]["labels"]["severity"] in ("page", "ticket")
    assert f"### {name}\n" in (ROOT / "docs" / "operating.md").read_text()


def test_prometheus_loads_the_alerts() -> None:
    config = yaml.safe_load((ROOT / "ops" / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["rules.yml"]
    assert "./ops/prometheus:/etc/prometheus:ro" in ALL["prometheus"]["volumes"]
