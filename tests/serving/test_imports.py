from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import importlib, pkgutil, sys, warnings
for name in ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "safetensors"):
    sys.modules[name] = None
import serving
modules = [module.name for module in pkgutil.walk_packages(serving.__path__, "serving.")]
for name in modules:
    importlib.import_module(name)
print(len(modules))
"""


def test_every_module_of_a_server_imports_without_training_and_graph_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
