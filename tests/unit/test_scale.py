"""How many workers a stack is asked for, and how its supervisor follows."""

from pathlib import Path
from time import monotonic

import pytest

from gpuloop.ops.stack import run, scale
from gpuloop.ops.stack.errors import StackError
from gpuloop.ops.stack.layout import Layout
from gpuloop.ops.stack.supervisor import Supervisor
from gpuloop.ops.stack.unit import Phase, Unit
from processes import SLEEPER, python, until


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_what_is_asked_for_is_read_until_the_stack_starts_anew(layout: Layout) -> None:
    assert scale.asked(layout) == {}
    scale.ask(layout, dict([scale.parse("observe=3")]))
    assert scale.asked(layout) == {"observe": 3}
    scale.ask(layout, {"observe": 2})
    assert scale.asked(layout) == {"observe": 2}
    scale.forget(layout)
    assert scale.asked(layout) == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("observe", "write observe=3"),
        ("observe=many", "write observe=3"),
        ("observe=-1", "write observe=3"),
        ("observe=0", "1 to 4 workers"),
        ("observe=5", "4 partitions"),
        ("observe=" + "9" * 5000, "4 partitions"),
        ("decider=2", "one process by design"),
        ("observer=2", "no service observer"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(StackError, match=why):
        scale.parse(text)


@pytest.mark.parametrize("written", [b"", b"{", b'["observe"]', b'{"decider": 3, "x": 2}'])
def test_a_file_that_nobody_should_have_written_asks_for_nothing(
    layout: Layout, written: bytes
) -> None:
    layout.scale.write_bytes(written)
    assert scale.asked(layout) == {}


def test_a_unit_added_later_runs_and_one_removed_is_gone(tmp_path: Path) -> None:
    def unit(name: str, *needs: str) -> Unit:
        return Unit(name=name, needs=needs, program=lambda: python(SLEEPER))

    supervisor = Supervisor([unit("kafka")], logs=tmp_path)
    try:
        until(supervisor.all_ready, supervisor.step)
        supervisor.add(unit("observe-2", "kafka", "elsewhere"))
        assert not supervisor.all_ready()
        until(supervisor.all_ready, supervisor.step)
        child = supervisor.units["observe-2"].child
        assert child is not None
        supervisor.remove(["observe-2"])
        assert child.exit_status() is not None
        assert list(supervisor.units) == ["kafka"]
        supervisor.step()
        assert supervisor.units["kafka"].phase is Phase.READY
    finally:
        supervisor.kill()


def test_workers_that_do_not_stop_cost_the_patience_with_one(tmp_path: Path) -> None:
    """Nothing is watched meanwhile, so they are waited for together."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True)"
    names = [f"observe-{number}" for number in (2, 3, 4)]
    units = [
        Unit(name=name, program=lambda: python(f"{deaf}; time.sleep(600)", stop_seconds=1.0))
        for name in names
    ]
    supervisor = Supervisor(units, logs=tmp_path)
    try:
        until(supervisor.all_ready, supervisor.step)
        until(lambda: all((tmp_path / f"{name}.log").read_bytes() for name in names))
        began = monotonic()
        supervisor.remove(names)
        assert monotonic() - began < 2.5
        assert not supervisor.units
    finally:
        supervisor.kill()


def test_added_workers_stop_with_the_services_before_what_they_write_is_counted() -> None:
    units = ["kafka", "postgres", "topics", "twin", "observe", "auditor", "observe-2"]
    assert run._before_the_auditor(units) == ["twin", "observe", "observe-2"]
