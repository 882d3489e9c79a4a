"""Which versions a decider has: what makes room for what, and what may come back."""

from builders import received
from decider_loop import Loop, decisions
from gpuloop.loop.decide.library import KEPT_VERSIONS, UNCLAIMED_WEIGHTS, lacking
from gpuloop.loop.evaluate.keys import public_hex
from gpuloop.schemas.component import save as save_state
from gpuloop.schemas.messages.learning import Normaliser
from policy_builders import CALM, KEY, publish, ready, stage, version, weights


def test_old_versions_make_room_but_staged_ones_stay():
    loop = ready()
    for number in range(1, 40):
        data = weights(bias=float(number))
        publish(loop, version(data, number), data)
        if number == 1:
            loop.send(stage())
    library = loop.state.library
    assert "sac-1" in library.versions
    assert len(library.versions) <= 9
    assert set(library.weights) == {one.weights_digest for one in library.versions.values()}
    assert decisions(loop.minute(CALM))[0].policy_id == "sac-1"
    assert len(save_state(loop.state)) < 400_000


def crowd_out(loop: Loop) -> None:
    """Publish so many versions that the first loses its place, and its weights theirs."""
    for number in range(2, 40):
        data = weights(bias=float(number))
        publish(loop, version(data, number), data)


def test_an_actor_whose_weights_were_let_go_acts_no_more_than_after_a_restart():
    loop, data = ready(), weights()
    publish(loop, version(data), data)
    assert decisions(loop.minute(CALM))[0].shadow_actions.keys() == {"sac-1"}
    crowd_out(loop)
    loop.send(stage())
    loop.send(received("policies", version(data)))
    assert decisions(loop.minute(CALM))[0].policy_id == "rule"
    loop.restart()
    assert decisions(loop.minute(CALM))[0].policy_id == "rule"


def test_a_version_that_comes_back_mended_under_its_id_acts_as_it_is_now():
    loop, data = ready(), weights()
    publish(loop, version(data, normaliser=Normaliser(mean=(), scale=(), clip=1.0)), data)
    assert decisions(loop.minute(CALM))[0].shadow_actions == {}
    crowd_out(loop)
    loop.send(stage())
    publish(loop, version(data), data)
    assert decisions(loop.minute(CALM))[0].policy_id == "sac-1"


def test_an_old_version_that_is_published_again_can_be_staged():
    loop, data = ready(), weights()
    publish(loop, version(data), data)
    crowd_out(loop)
    assert "sac-1" not in loop.state.library.versions
    publish(loop, version(data), data)
    loop.send(stage())
    assert decisions(loop.minute(CALM))[0].policy_id == "sac-1"


def test_a_version_that_is_heard_of_again_stays_while_newer_ones_come_by_once():
    loop, data = ready(), weights()
    publish(loop, version(data), data)
    for number in range(2, KEPT_VERSIONS + 1):
        other = weights(bias=float(number))
        publish(loop, version(other, number), other)
    publish(loop, version(data), data)
    other = weights(bias=99.0)
    publish(loop, version(other, 99), other)
    assert "sac-1" in loop.state.library.versions


def begun_anew() -> Loop:
    """Return a decider without a past: it owns nothing, and knows no control yet."""
    return Loop(own=False, trusted_keys=(public_hex(KEY),))


def test_an_old_champion_outlasts_that_versions_are_read_before_controls():
    loop, data = begun_anew(), weights()
    publish(loop, version(data), data)
    crowd_out(loop)
    loop.send(stage())
    loop.tick()
    assert loop.state.library.versions.keys() >= {"sac-1", "sac-39"}
    assert len(loop.state.library.versions) <= KEPT_VERSIONS + 1
    loop.minute(CALM)
    assert decisions(loop.minute(CALM))[0].policy_id == "sac-1"


def test_an_old_champion_outlasts_that_weights_are_read_before_versions():
    loop, made = begun_anew(), [(number, weights(bias=float(number))) for number in range(1, 60)]
    for number, data in made:
        digest = version(data, number).weights_digest
        loop.send(received("policies.weights", None, digest, payload=data))
    for number, data in made:
        loop.send(received("policies", version(data, number)))
    loop.send(stage())
    loop.tick()
    loop.minute(CALM)
    assert decisions(loop.minute(CALM))[0].policy_id == "sac-1"
    assert len(loop.state.library.weights) <= KEPT_VERSIONS + 1


def test_weights_that_nobody_claims_make_room_also_before_anything_is_settled(monkeypatch):
    loop = begun_anew()
    size = len(weights())
    monkeypatch.setattr("gpuloop.loop.decide.library.UNSETTLED_WEIGHT_BYTES", 40 * size)
    for number in range(60):
        data = weights(bias=float(number))
        digest = version(data).weights_digest
        loop.send(received("policies.weights", None, digest, payload=data))
    assert len(loop.state.library.weights) == 40
    loop.tick()
    assert len(loop.state.library.weights) == UNCLAIMED_WEIGHTS


def test_a_version_that_has_a_part_and_is_not_there_is_named():
    loop, data = ready(), weights()
    loop.send(stage("champion"))
    loop.send(stage("shadow", number=2))
    library, governance = loop.state.library, loop.state.governance
    assert lacking(library, governance) == ["sac-1"]
    loop.send(received("policies", version(data)))
    assert lacking(library, governance) == ["sac-1"]
    publish(loop, version(data), data)
    assert lacking(library, governance) == []
