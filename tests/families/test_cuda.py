"""Families whose form for CUDA holds what others' does not: batch norms, scaled maps, a recurrence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.directory import open_bundle
from bundle.golden import canary_image
from bundle.prompt import Placeholder, Turn
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings

SETTINGS = RuntimeSettings(intra_threads=1)


@pytest.mark.parametrize("family", ["fast_vlm", "deepseek_vl_hybrid", "qwen3_5"])
def test_a_variant_for_cuda_answers_as_its_parent(family: str, sample_of: Any, tmp_path: Path) -> None:
    """On the CPU, whose kernels of float16 round otherwise: the bound is that of the other families."""
    parent = sample_of(family, 0).bundle()
    quantize_bundle(parent.directory, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    found = []
    for bundle in (parent, open_bundle(tmp_path / "cuda", allow_ungated=True)):
        runner = VisionLanguageRunner(bundle, SETTINGS)
        prompt = runner.prompt([Turn("user", (Placeholder.IMAGE, "What is this?"))], [canary_image()])
        found.append(runner.answer_logits(prompt, [5, 7, 12]))
    assert np.linalg.norm(found[1] - found[0]) < 0.01 * np.linalg.norm(found[0])
