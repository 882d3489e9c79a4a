"""The benchmark scripts are started alike."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


class Started(Exception):
    """Ends a script with what it was asked, before it measures anything."""


@pytest.mark.parametrize(
    "name", ["calibration", "causes", "detectors", "placement", "pricing", "rule", "twin"]
)
def test_a_benchmark_takes_the_traces_that_the_environment_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser) -> None:
        raise Started(parse(parser, []))

    monkeypatch.setenv("GPULOOP_TRACES", "/traces")
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.syspath_prepend(FOLDER)  # Where Python finds what a script of the folder imports.
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Started) as started:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert started.value.args[0].traces == Path("/traces")
