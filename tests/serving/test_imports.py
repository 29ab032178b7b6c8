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


UNUSED = ("httpx", "llguidance", "faiss", "openvino", "opentelemetry.sdk", "ray", "av", "PIL.WebPImagePlugin", "rich")
START = f"""
import sys
import serving.edge.serve, serving.models.client
from serving.api.app import create_app
from serving.fake import FakeClient
from serving.settings import ApiSettings
create_app(FakeClient(), ApiSettings())
print([name for name in {UNUSED} if name in sys.modules])
"""


def test_a_server_imports_nothing_that_no_request_has_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
