"""What people impose reaches `controls`, and what cannot be meant is refused before it does."""

import json
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from builders import FLEET, pool_state
from gpuloop.loop.decide.library import KEPT_VERSIONS
from gpuloop.loop.learn import registry
from gpuloop.loop.shells.broker import BrokerError
from gpuloop.loop.shells.memory import MemoryBroker
from gpuloop.ops.cli import control, tail
from gpuloop.ops.cli.main import app, main
from gpuloop.ops.stack import controls
from gpuloop.schemas.codec import decode, encode
from gpuloop.schemas.messages import Control
from gpuloop.schemas.messages.control import PolicyStage, SetMode
from policy_builders import KEY, version, weights


def said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, list[str]]:
    """Run the command line; return its status and the lines of its complaint."""
    monkeypatch.setattr("sys.argv", ["gpuloop", *arguments])
    return main(), capsys.readouterr().err.splitlines()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    """Return what the control commands talk to."""
    broker = MemoryBroker()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPULOOP_BOOTSTRAP_SERVERS", "a:1")
    monkeypatch.setattr(control, "broker", lambda _: nullcontext(broker))
    return broker


def test_control_of_an_unknown_pool_is_refused_with_those_there_are(
    fleet: MemoryBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = [
        encode("state.pools", p, pool_state(p), event_id=p, source="s") for p in ("a100", "l4")
    ]
    fleet.produce(state)
    for command in (("mode", "a10", "scaling", "advise"), ("objectives", "a10"),
                    ("policy", "sac-9", "--pool", "a10"), ("reset-breaker", "a10")):  # fmt: skip
        status, complaint = said(capsys, monkeypatch, "control", *command)
        assert (status, complaint) == (
            1,
            ["gpuloop: no pool a10, did you mean a100?; there are a100, l4, or '*' for all"],
        )
    assert not any(fleet.ends(fleet.partitions("controls")).values())
    for pool in ("a100", "*"):
        assert CliRunner().invoke(app, ["control", "mode", pool, "scaling", "off"]).stderr == ""


def test_control_of_a_pool_that_nobody_could_know_yet_is_obeyed_with_a_warning(
    fleet: MemoryBroker,
) -> None:
    done = CliRunner().invoke(app, ["control", "mode", "a10", "scaling", "advise"])
    assert done.exit_code == 0
    assert "no pool has been heard of yet" in done.stderr


def test_control_of_an_unknown_policy_is_refused(
    fleet: MemoryBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, (complaint,) = said(capsys, monkeypatch, "control", "policy", "sac-nonsense")
    assert (status, "no policy sac-nonsense" in complaint) == (1, True)


def test_kill_and_clear_say_which_they_did(fleet: MemoryBroker) -> None:
    assert (
        CliRunner()
        .invoke(app, ["control", "kill"])
        .output.startswith("kill switch set: nothing new")
    )
    assert (
        CliRunner()
        .invoke(app, ["control", "clear"])
        .output.startswith("kill switch cleared on fleet")
    )


def test_first_controls_of_a_twin_grant_auto_and_the_shipped_policy_its_earned_alpha() -> None:
    broker = MemoryBroker()
    assert controls.publish_first(broker, FLEET)
    said = [
        message.body
        for record in tail.records(broker, ("controls",), last=99, follow=False)
        if isinstance(message := decode(record), Control)
    ]
    modes = {body.actuator: body.mode for body in said if isinstance(body, SetMode)}
    assert modes == {"scaling": "auto", "pricing": "auto", "migration": "auto"}
    shipped = controls.registry.shipped()
    stages = [body for body in said if isinstance(body, PolicyStage)]
    assert shipped is not None
    version = shipped[0]
    assert {s.policy_id for s in stages} == {version.policy_id}
    assert {s.pool: s.alpha for s in stages} == {
        pool: alpha for pool, alpha in version.alphas.items() if alpha > 0.0
    }


def test_a_policy_that_earned_nothing_stands_by_on_all_pools(monkeypatch) -> None:
    version, weights = controls.registry.shipped() or (None, b"")
    assert version is not None
    nothing = msgspec.structs.replace(version, alpha=0.0, alphas={"l4": 0.0})
    monkeypatch.setattr(controls.registry, "shipped", lambda: (nothing, weights))
    broker = MemoryBroker()
    controls.publish_first(broker, FLEET)
    found = [decode(one) for one in tail.records(broker, ("controls",), last=99, follow=False)]
    stages = [one.body for one in found if isinstance(one, Control)]
    assert [(s.pool, s.alpha) for s in stages if isinstance(s, PolicyStage)] == [("*", 0.0)]


def test_first_controls_never_overrule_what_was_said_before() -> None:
    broker = MemoryBroker()
    off = SetMode(pool="*", actuator="scaling", mode="off")
    controls.publish(broker, [off], fleet=FLEET, by="ann", reason="")
    assert not controls.publish_first(broker, FLEET)
    assert len(list(tail.records(broker, ("controls",), last=99, follow=False))) == 1


def test_the_list_of_controls_forgets_the_part_of_a_version_that_was_retired(
    fleet: MemoryBroker,
) -> None:
    for name, stage in (("a", "champion"), ("b", "shadow"), ("a", "retired")):
        part = PolicyStage(pool="*", policy_id=name, stage=stage, alpha=0.5)  # type: ignore[arg-type]
        controls.publish(fleet, [part], fleet=FLEET, by="ann", reason="")
    rows = json.loads(CliRunner().invoke(app, ["control", "list", "--json"]).output)
    assert [row["scope"] for row in rows] == ["policy/*/retired/a", "policy/*/shadow/b"]


def learned(fleet: MemoryBroker, count: int) -> None:
    """Let a learner publish versions `sac-1` and on."""
    for number in range(1, count + 1):
        data = weights(bias=float(number))
        registry.publish(fleet, version(data, number), data, KEY)


def written(fleet: MemoryBroker, topic: str) -> list[bytes | None]:
    return [one.value for one in tail.records(fleet, (topic,), last=99, follow=False)]


def test_an_old_version_is_published_again_before_it_gets_a_part(fleet: MemoryBroker) -> None:
    learned(fleet, KEPT_VERSIONS + 1)
    done = CliRunner().invoke(app, ["control", "policy", "sac-1", "--stage", "champion"])
    assert done.exit_code == 0
    for topic in ("policies", "policies.weights"):
        first, *_, last = written(fleet, topic)
        assert last == first
    CliRunner().invoke(app, ["control", "policy", "sac-2", "--stage", "champion"])
    CliRunner().invoke(app, ["control", "policy", "sac-1", "--stage", "retired"])
    assert len(written(fleet, "policies")) == KEPT_VERSIONS + 2


def test_an_old_version_whose_weights_are_gone_is_refused(
    fleet: MemoryBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [version(weights(float(number)), number) for number in range(1, KEPT_VERSIONS + 2)]
    fleet.produce([encode("policies", one.policy_id, one, event_id="e", source="s")
                   for one in versions])  # fmt: skip
    status, (complaint,) = said(
        capsys, monkeypatch, "control", "policy", "sac-1", "--stage", "champion"
    )
    assert (status, "sac-1 is older" in complaint) == (1, True)
    assert written(fleet, "controls") == []


def test_an_old_version_that_may_not_be_published_again_is_refused(
    fleet: MemoryBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    learned(fleet, KEPT_VERSIONS + 1)

    def forbid(_: object) -> None:
        raise BrokerError("no right to write policies.weights")

    monkeypatch.setattr(fleet, "produce", forbid)
    status, (complaint,) = said(
        capsys, monkeypatch, "control", "policy", "sac-1", "--stage", "champion"
    )
    assert (status, "no right to write" in complaint) == (1, True)
