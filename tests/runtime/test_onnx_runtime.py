"""ONNX Runtime tells nobody anything: neither a device id nor a queued event is left in a user's home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.errors import MachineError, OutOfMemoryError
from runtime.onnx_runtime import memory_error, onnx_runtime

ROOT = Path(__file__).parents[2]
OF_A_CI = (
    "CI",
    "TF_BUILD",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "CIRCLECI",
    "TRAVIS",
    "JENKINS_URL",
    "CODEBUILD_BUILD_ID",
    "BUILDKITE",
    "TEAMCITY_VERSION",
    "APPVEYOR",
    "BITBUCKET_BUILD_NUMBER",
)
"""As they stand in the library of ONNX Runtime 1.31.1."""
BARE = "import onnxruntime as o, sys; o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"


def files_left_by(arguments: list[str], home: Path) -> list[str]:
    """Return what a process leaves in an empty home. What tells of a CI is unset: it would switch telemetry off."""
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if key not in (*OF_A_CI, "ORT_DISABLE_TELEMETRY")}
    environment = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


@pytest.mark.skipif(sys.platform != "linux", reason="where the files lie is known of Linux")
def test_a_run_leaves_no_file_and_without_our_switch_it_would(smolvlm_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pocketvlm", "run", str(smolvlm_bundle), "hi", "--max-tokens", "2"]
    assert files_left_by(command, tmp_path / "ours") == []
    bare = files_left_by([sys.executable, "-c", BARE, str(smolvlm_bundle / "decoder.onnx")], tmp_path / "bare")
    if not bare:
        pytest.skip("this ONNX Runtime writes nothing by itself: nothing to switch off")
    assert any("onnxruntime" in name for name in bare)


def test_a_missing_runtime_names_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MachineError, match=r"pip install -e '\.\[cpu\]'"):
        onnx_runtime()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 4294967296"),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
    ],
)
def test_running_out_of_memory_is_told_with_what_to_lower(error: Exception) -> None:
    told = memory_error("decoder.onnx", error)
    assert isinstance(told, OutOfMemoryError)
    assert "decoder.onnx: memory ran out" in str(told)
    assert "Lower max_sequences" in str(told)
    assert memory_error("decoder.onnx", RuntimeError("bad shape")) is None


def test_every_entry_switches_it_off_before_the_library_is_loaded() -> None:
    """Whatever module of ours is imported first, `onnxruntime` comes through the one module that sets the switch."""
    program = (
        "import os; os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "import importlib, pkgutil, sys, runtime\n"
        "for module in pkgutil.walk_packages(runtime.__path__, 'runtime.'): importlib.import_module(module.name)\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "from runtime.onnx_runtime import memory_error, onnx_runtime; onnx_runtime()\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
