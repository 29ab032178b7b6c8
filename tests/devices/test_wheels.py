"""A folder of wheels is resolved for another processor, and what has no wheel is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bundle.errors import MachineError, SettingsError
from devices.wheels import download_command, fetch_wheels, main, requirements


def test_a_device_that_serves_gets_what_serving_needs_and_nothing_of_other_platforms() -> None:
    wanted = requirements(["cpu", "serve"], "3.12")
    assert any(each.startswith("onnxruntime>=") for each in wanted)
    assert any(each.startswith("fastapi") for each in wanted)
    assert not any(each.startswith(("torch", "onnxscript", "tomli")) for each in wanted)
    assert any(each.startswith("tomli") for each in requirements([], "3.10"))
    with pytest.raises(SettingsError, match="--extra wings: there is none of that name, only cpu, gpu"):
        requirements(["cpu", "wings"], "3.12")


def test_pip_is_asked_for_wheels_of_every_tag_that_the_device_takes_and_for_nothing_to_be_built() -> None:
    command = download_command(Path("out"), "3.12", 31, ["numpy"])
    assert "--only-binary=:all:" in command
    assert "manylinux_2_31_aarch64" in command
    assert "manylinux_2_34_aarch64" not in command
    assert command[command.index("--python-version") + 1] == "3.12"
    assert command[-1] == "numpy"
    assert Path(command[command.index("--constraint") + 1]).is_file()


class Pip:
    """pip that has no wheel of some packages, and a builder that leaves ours."""

    def __init__(self, lacking: tuple[str, ...]) -> None:
        self.lacking = lacking

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        if "build" in command:
            (Path(command[command.index("--outdir") + 1]) / "pocketvlm-0.1.0-py3-none-any.whl").touch()
            return subprocess.CompletedProcess(list(command), 0, "", "")
        fails = any(name in word for word in command for name in self.lacking if ">=" in word)
        return subprocess.CompletedProcess(
            list(command), int(fails), "", "ERROR: ResolutionImpossible" if fails else ""
        )


def test_our_own_wheel_is_among_them(tmp_path: Path) -> None:
    assert fetch_wheels(tmp_path, "3.12", 35, ["cpu", "serve"], Pip(())) == ["pocketvlm-0.1.0-py3-none-any.whl"]


def test_what_has_no_wheel_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"Python 3\.10 and glibc 2\.35: numpy>=\S+, onnxruntime>=\S+ \(pinned"):
        fetch_wheels(tmp_path, "3.10", 35, ["cpu", "serve"], Pip(("onnxruntime", "numpy")))


def test_whoever_fetches_wheels_for_a_gpu_is_told_which_cuda_they_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("devices.wheels._run", Pip(()))
    for extra in ("cpu", "gpu"):
        assert main([str(tmp_path), "--extra", f"{extra},serve"]) == 0
        assert ("CUDA 13 (JetPack 7). JetPack 6" in capsys.readouterr().out) == (extra == "gpu")
