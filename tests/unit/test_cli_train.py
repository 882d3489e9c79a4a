"""What `gpuloop train` says while it works, refuses, and writes down about what it made."""

import json

import pytest
from typer.testing import CliRunner

from gpuloop import __version__
from gpuloop.loop.learn import judge, teach
from gpuloop.loop.learn.gate import earn_alpha
from gpuloop.loop.learn.passed import LATE_NODE_HOURS
from gpuloop.loop.learn.teach import RECIPES, Lesson
from gpuloop.ops.cli.main import app
from gpuloop.ops.cli.progress import LINE_SECONDS, Lines, shown
from gpuloop.reasoning.rule import RuleConfig
from gpuloop.schemas.messages.learning import ActorSpec, Normaliser


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def test_without_a_terminal_a_line_is_printed_at_once_and_then_every_half_minute(capsys):
    clock = Clock()
    tell = Lines(every_seconds=30.0, clock=clock)
    for minute in range(100):
        tell("training", minute / 100)
        clock.seconds += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"training, {share}% done" for share in (0, 30, 60, 90)]


def test_a_pipe_gets_lines_and_no_bar(capsys):
    assert LINE_SECONDS <= 30.0
    with shown() as tell:
        tell("checking", 0.5)
    assert capsys.readouterr() == ("", "checking, 50% done\n")


@pytest.fixture
def untaught(monkeypatch):
    """Let training and check be over at once."""
    spec = ActorSpec(observation_size=1, action_size=1, hidden=())
    plain = Normaliser(mean=(0.0,), scale=(1.0,), clip=1.0)
    lesson = Lesson(actor=spec, normaliser=plain, weights=b"w", transitions=7, updates=5)

    def taught(*_, progress, **__):
        progress("training", 0.5)
        return lesson

    monkeypatch.setattr(teach, "teach", taught)
    gates = {"h100": earn_alpha({0.5: [9.0, 8.0] * 3}), "l4": earn_alpha({0.5: [-9.0, -8.0] * 3})}
    monkeypatch.setattr(judge, "judge", lambda *_, **__: gates)


def test_a_run_in_a_pipe_shows_progress_and_writes_what_code_made_the_version(untaught):
    run = CliRunner().invoke(app, ["train"])
    assert run.exit_code == 0
    assert "training, 50% done" in run.stderr
    assert "h100 earned alpha 0.50" in run.stderr
    assert "l4 earned alpha 0.00" in run.stderr
    made = json.loads(run.stdout)
    assert made["config"]["gpuloop"] == __version__
    assert made["config"]["train_from"] == "2017-09-25"
    assert made["config"]["updates"] == 5
    assert made["config"]["exploration_noise"] == RECIPES["td3"].exploration_noise
    assert made["config"]["worlds"] == 64
    assert made["config"]["rule_stuck_us"] == RuleConfig().stuck_us
    assert made["config"]["late_node_hours_l4"] == LATE_NODE_HOURS["l4"]
    assert made["alpha"] == 0.5
    assert made["alphas"] == {"h100": 0.5, "l4": 0.0}
    assert made["gate"]["h100_alpha_0.5_mean_usd_per_day"] == 8.5


def test_a_single_day_is_told_without_an_interval(untaught, monkeypatch):
    monkeypatch.setattr(judge, "judge", lambda *_, **__: {"l4": earn_alpha({0.5: [9.0]})})
    run = CliRunner().invoke(app, ["train", "--check-days", "1"])
    assert "+9.00 USD/day against the rule, no interval, 1 days" in run.stderr


@pytest.mark.parametrize(("check_from", "days"), [("2017-10-08", 1), ("2017-09-20", 7)])
def test_days_that_are_trained_on_cannot_judge(untaught, check_from, days):
    asked = ["train", "--check-from", check_from, "--check-days", str(days)]
    run = CliRunner().invoke(app, asked)
    assert run.exit_code == 2
    assert "held out" in run.stderr


def test_days_right_before_and_after_training_may_judge(untaught):
    for check_from in ("2017-10-09", "2017-09-18"):
        assert CliRunner().invoke(app, ["train", "--check-from", check_from]).exit_code == 0
