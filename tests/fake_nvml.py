"""A GPU machine for tests: a real `libnvidia-ml.so.1` whose devices are lines of a file.

It is built from `nvml/fake_nvml.c` once per session. A process finds it by LD_LIBRARY_PATH; this
one loads it by its path, after which the loader finds it under its name.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "nvml" / "fake_nvml.c"
NAME = "libnvidia-ml.so.1"
HEALTHY = {
    "temperature": 54, "power": 350_000, "limit": 700_000, "sm_clock": 1755, "memory_clock": 2619,
    "reasons": 4, "mig": 0, "utilisation": 93, "memory_utilisation": 40,
    "memory_total": 80 << 30, "memory_used": 20 << 30,
    "field.3": 7, "field.4": 0, "field.82": 61, "field.83": 5_000_000_000_000, "field.230": 0,
    "profiled": 1, "gpm.1": 95, "gpm.2": 88, "gpm.3": 40, "gpm.5": 61, "gpm.10": 35,
}  # fmt: skip


def build(folder: Path) -> Path:
    """Compile the library into a folder; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang) to build the fake NVML with")
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: make setup EXTRAS=collect")
    library = folder / NAME
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{NAME}"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
    return library


def load(library: Path) -> None:
    """Let this process's loader know the library under its name."""
    ctypes.CDLL(str(library))


class Machine:
    """The devices of the fake driver: what is set here is what NVML says from then on."""

    def __init__(self, folder: Path, *, devices: int = 1) -> None:
        self.path = folder / "devices.txt"
        self._lines: dict[str, int] = {"devices": devices}
        for index in range(devices):
            self.set(index, **HEALTHY)
        self._write()

    def set(self, index: int | str, **answers: int) -> None:
        """Let a device answer so; `index` may name an instance, as `0/1`."""
        self._lines |= {f"{index}.{name}": value for name, value in answers.items()}
        self._write()

    def without(self, index: int | str, *names: str) -> None:
        """Let a device not support these."""
        for name in names:
            del self._lines[f"{index}.{name}"]
        self._write()

    def raise_xid(self, index: int, xid: int, *, instance: int = 0xFFFF_FFFF) -> None:
        """Let the driver raise an XID."""
        self._lines["event.device"], self._lines["event.xid"] = index, xid
        self._lines["event.instance"] = instance
        self._lines["event"] = self._lines.get("event", 0) + 1
        self._write()

    def _write(self) -> None:
        # In one step, so that a reader sees all of it or nothing of it.
        fresh = self.path.with_suffix(".new")
        fresh.write_text("".join(f"{name} {value}\n" for name, value in self._lines.items()))
        fresh.replace(self.path)
