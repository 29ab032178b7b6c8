"""What the GPU benchmark runs on: the card, the software, and which operators have a kernel there."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bundle.machine import this_machine
from loadtests.gpu.found import Found, tell
from loadtests.gpu.sizes import Sizes
from runtime.onnx_runtime import onnx_runtime
from runtime.operators import failure_of, probed_operators
from runtime.providers import CPU, CUDA
from runtime.settings import Provider

_PACKAGES = ("pocketvlm", "numpy", "torch", "transformers")
_ASKED = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader"]


def measure_where(folder: Path, sizes: Sizes, provider: Provider) -> None:
    """Tell the card, the versions, and the operators without a kernel."""
    del sizes
    machine = this_machine(_PACKAGES)
    installed = {**machine.versions, "onnxruntime": onnx_runtime().__version__}
    versions = ", ".join(f"{name} {version}" for name, version in installed.items())
    tell(folder, Found("card", "machine", None, note=_card()))
    tell(folder, Found("host", "machine", None, note=f"{machine.cpu}, {machine.cores} cores; {versions}"))
    for operator in probed_operators():
        failure = failure_of(operator, CUDA if provider == "cuda" else CPU)
        tell(folder, Found(operator, "operators", float(failure is None), "", failure or ""))


def _card() -> str:
    try:
        return subprocess.run(_ASKED, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"nvidia-smi: {error}"
