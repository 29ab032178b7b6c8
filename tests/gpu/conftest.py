"""Tests that need a GPU: skipped, each with the reason, where there is none; `make test-gpu` fails there."""

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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option that exists where the suite is named on the command line, as `make test-gpu` does."""
    parser.addoption("--gpu", action="store_true", help="fail where no GPU is seen, instead of skipping every test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here.

    Raises:
        UsageError: A GPU was asked for, and none is seen.
    """
    reason = lacking()
    if reason and config.getoption("--gpu", default=False):
        raise pytest.UsageError(f"no GPU seen, nothing was tested: {reason}")
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
