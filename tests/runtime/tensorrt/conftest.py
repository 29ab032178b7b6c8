"""Portable bundles under every recipe that TensorRT is promised, made once, and TensorRT-RTX's own builder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from bundle.directory import Bundle, open_bundle
from bundle.engines import FORMS
from export.exporter import export_checkpoint
from graphs.lowering.tensorrt import engine_graph, unread_inputs
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from quant.samples.built_in import built_in_samples
from runtime.tensorrt.compiler import Form
from runtime.tensorrt.library import Library, open_library
from runtime.tensorrt.profiles import Limits

BLOCKS = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
"""Widths that blocks of 32 divide, and heads of 16, the smallest of a fused attention."""


@pytest.fixture(scope="session")
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 alone")
    return open_library("tensorrt-rtx")


@pytest.fixture(scope="session")
def stand_in() -> ModuleType:
    """The module of `stand_in.py`."""
    spec = importlib.util.spec_from_file_location("stand_in", Path(__file__).with_name("stand_in.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def standard() -> Form:
    return Form(FORMS[0], engine_graph, unread_inputs)


@pytest.fixture(scope="session")
def plain() -> Form:
    return Form(FORMS[1], partial(engine_graph, is_plain=True), unread_inputs)


@pytest.fixture(scope="session")
def limits() -> Limits:
    return Limits(cache_rows=64, max_batch=2, max_prompt_tokens=32, max_images=2)


@pytest.fixture(scope="session")
def portable_of(
    checkpoints: ModuleType, bundle_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """Return a portable bundle of a family as a recipe makes it for TensorRT; "fp32": as exported."""
    made: dict[tuple[str, str], Bundle] = {}

    def parent_of(family: str) -> Path:
        if family != "vlm":
            return bundle_of(family, "portable")
        folder = tmp_path_factory.mktemp("blocks")
        checkpoints.save_smolvlm(folder / "checkpoint", checkpoints.smolvlm_config(BLOCKS))
        export_checkpoint(folder / "checkpoint", folder / "bundle", dialect="portable")
        return folder / "bundle"

    def bundle(family: str, recipe: str = "fp32") -> Bundle:
        if (family, recipe) not in made and recipe == "fp32":
            made[family, recipe] = open_bundle(parent_of(family))
        if (family, recipe) not in made:
            parent = bundle(family)
            folder = tmp_path_factory.mktemp(recipe) / "variant"
            samples = built_in_samples(parent, "calibration") if recipe == "int8-static" else None
            options = Options(target="tensorrt")
            quantize_bundle(parent.directory, folder, weights=recipe, options=options, calibration=samples)
            made[family, recipe] = open_bundle(folder, allow_ungated=True)
        return made[family, recipe]

    return bundle
