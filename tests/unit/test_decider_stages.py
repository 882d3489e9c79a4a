"""Which version has which part, after versions were given parts and retired."""

import pytest

from builders import control
from decider_loop import Loop
from gpuloop.loop.decide.governance import is_retired, stage_of
from gpuloop.schemas.messages.control import PolicyStage, scope


def told(*words: tuple[str, str, str]) -> Loop:
    """Return a loop that was told (pool, version, part), in this order."""
    loop = Loop()
    for pool, name, part in words:
        loop.send(control(PolicyStage(pool=pool, policy_id=name, stage=part, alpha=0.5)))  # type: ignore[arg-type]
    return loop


def acts_on(loop: Loop, pool: str) -> str | None:
    stage = stage_of(loop.state.governance, pool)
    return None if stage is None else stage.policy_id


def parts(loop: Loop) -> set[str]:
    return set(loop.state.governance.stages)


def test_to_retire_a_shadow_leaves_the_champion_its_place():
    loop = told(("*", "a", "champion"), ("*", "b", "shadow"), ("*", "b", "retired"))
    assert acts_on(loop, "a100") == "a"
    assert parts(loop) == {"policy/*"}


def test_to_retire_a_champion_takes_all_its_parts_and_leaves_shadows_theirs():
    loop = told(
        ("*", "a", "champion"), ("a100", "a", "canary"), ("*", "b", "shadow"), ("*", "a", "retired")
    )
    assert acts_on(loop, "a100") is None
    assert parts(loop) == {"policy/*/shadow/b"}


def test_a_version_retired_on_one_pool_still_acts_on_the_others():
    loop = told(("*", "a", "champion"), ("a100", "a", "retired"))
    assert (acts_on(loop, "a100"), acts_on(loop, "h100")) == (None, "a")


def test_a_pool_whose_own_version_is_retired_goes_back_to_the_champion_of_all():
    loop = told(("*", "a", "champion"), ("a100", "b", "canary"), ("a100", "b", "retired"))
    assert acts_on(loop, "a100") == "a"
    assert parts(loop) == {"policy/*"}


@pytest.mark.parametrize("pool", ["*", "a100"])
def test_a_version_that_is_staged_again_is_retired_no_more(pool: str):
    loop = told(("*", "a", "champion"), ("a100", "a", "retired"), (pool, "a", "champion"))
    assert acts_on(loop, "a100") == "a"
    assert not is_retired(loop.state.governance, "a100", "a")


def test_a_retirement_replaces_no_other_versions_last_word_on_the_topic():
    words = [
        PolicyStage(pool="*", policy_id="b", stage=part, alpha=0.5)  # type: ignore[arg-type]
        for part in ("champion", "shadow", "retired")
    ]
    assert len({scope(word) for word in words}) == 3
