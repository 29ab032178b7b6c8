"""Whether a provider can be used, which is more than that it was built in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from runtime.operators import runs_here

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def built_with(monkeypatch: pytest.MonkeyPatch, available: list[str], opened: list[str]) -> None:
    """Let ONNX Runtime be built with some providers, and its sessions open on some."""
    session = SimpleNamespace(get_providers=lambda: opened)
    options: Any = type("Options", (), {"add_session_config_entry": lambda self, name, value: None})
    runtime = SimpleNamespace(
        SessionOptions=options, InferenceSession=lambda *a, **k: session, get_available_providers=lambda: available
    )
    for module in ("operators", "providers"):
        monkeypatch.setattr(f"runtime.{module}.onnx_runtime", lambda: runtime)


@pytest.mark.parametrize(
    ("available", "opened", "runs"),
    [([CPU], [CPU], False), ([CUDA, CPU], [CPU], False), ([CUDA, CPU], [CUDA, CPU], True)],
)
def test_cuda_runs_where_it_is_built_in_and_can_be_loaded(monkeypatch, available, opened, runs) -> None:
    built_with(monkeypatch, available, opened)
    assert runs_here("cuda") is runs


def test_the_cpu_runs_everywhere() -> None:
    assert runs_here("cpu")
