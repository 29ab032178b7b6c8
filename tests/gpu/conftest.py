"""Tests that need a GPU: skipped, each with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.operators import runs_here
from runtime.providers import has_provider

FOLDER = Path(__file__).parent


def lacking() -> str:
    """Return what this machine lacks; nothing where it has all."""
    if not has_provider("cuda"):
        return "this ONNX Runtime was built without CUDA: pip install onnxruntime-gpu instead of onnxruntime"
    return "" if runs_here("cuda") else "CUDA cannot be loaded: no device, no driver, or no libraries"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = lacking()
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
