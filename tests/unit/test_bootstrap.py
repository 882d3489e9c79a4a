"""Set-up's decisions; that it installs anything is seen by every run of these tests."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpuloop.ops.setup import bootstrap

LOCK = """\
numpy==2.4.6 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
nvidia-cublas==13.4.1.3 ; sys_platform == 'linux' \\
    --hash=sha256:cc
nvidia-ml-py==13.615.1 \\
    --hash=sha256:dd
torch==2.15.0 ; sys_platform == 'linux' \\
    --hash=sha256:ee \\
    --hash=sha256:ff
triton==3.9.0 ; sys_platform == 'linux' \\
    --hash=sha256:00
"""


def test_all_groups_are_installed_unless_some_are_named() -> None:
    assert bootstrap.lock_names("") == ["bootstrap", "all"]


def test_named_groups_come_with_what_every_checkout_needs() -> None:
    assert bootstrap.lock_names("observe,stores") == [
        "bootstrap", "base", "observe", "stores", "dev",
    ]  # fmt: skip


def test_choices_are_remembered_until_set_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "stamp")
    asked: list[tuple[list[str], str]] = []
    monkeypatch.setattr(bootstrap, "make_environment", lambda _: None)
    monkeypatch.setattr(
        bootstrap, "install", lambda locks, index: asked.append(([p.stem for p in locks], index))
    )
    for arguments in (["--extras", "learn", "--torch-index", "an-index"], [], ["--extras", "all"]):
        monkeypatch.setattr(sys, "argv", ["bootstrap.py", *arguments])
        assert bootstrap.main() == 0
    assert asked == [
        (["bootstrap", "base", "learn", "dev"], "an-index"),
        (["bootstrap", "all"], "an-index"),
    ]


def test_an_interrupted_environment_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise bootstrap.SetupError("no network")

    made: list[float] = []
    monkeypatch.setattr(sys, "argv", ["bootstrap.py"])
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(bootstrap, "make_environment", made.append)
    monkeypatch.setattr(bootstrap, "install", fail)
    assert bootstrap.main() == 1
    assert bootstrap.main() == 1
    assert len(made) == 2
    monkeypatch.setattr(bootstrap, "install", lambda *_: None)
    assert bootstrap.main() == 0
    assert bootstrap.main() == 0
    assert len(made) == 3


def test_torch_from_elsewhere_leaves_its_cuda_libraries_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    lock = tmp_path / "learn.txt"
    lock.write_text(LOCK)

    copies, torch = bootstrap.without_torch([lock])

    assert torch == "torch==2.15.0"
    assert [path.name for path in copies] == ["learn.txt"]
    assert copies[0].read_text() == "".join(
        LOCK.splitlines(keepends=True)[i] for i in (0, 1, 2, 5, 6)
    )


def test_too_little_disk_is_one_line_that_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 6, 3 << 30))
    with pytest.raises(bootstrap.SetupError, match=r"about 10 GiB .* 3\.0 GiB are free") as error:
        bootstrap.check_disk(10)
    assert "\n" not in str(error.value)


def test_python_without_venv_is_told_which_package_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(bootstrap.SetupError, match=r"lacks the module venv; .*python3\.1\d-venv"):
        bootstrap.make_environment(0)


def test_environment_of_another_folder_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "stamp")
    bootstrap.remember("learn", "", "digest")
    assert bootstrap.remembered() == ("learn", "", "digest")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    assert bootstrap.remembered() == ("learn", "", "")


def test_a_new_lock_file_asks_for_a_new_setup(tmp_path: Path) -> None:
    lock = tmp_path / "all.txt"
    lock.write_text("one")
    before = bootstrap.fingerprint([lock], "")
    lock.write_text("two")
    assert bootstrap.fingerprint([lock], "") != before


def test_unknown_group_is_refused_by_name() -> None:
    script = bootstrap.__file__
    assert script is not None
    done = subprocess.run(
        [sys.executable, script, "--extras", "lern"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("setup: there is no lock file 'lern'; there are: all, base,")
