from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.directory import read_manifest
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.image_tokens import TOWER_OUTPUTS, gives_tower
from graphs.lowering.component import Lowering
from graphs.lowering.tower_view import drop_tower_view
from graphs.store import open_graph


def test_it_goes_with_all_that_it_was_made_of_and_changes_no_feature(bundle_of, run, rng) -> None:
    bundle: Path = bundle_of("smolvlm", "portable")
    model, pixels = open_graph(bundle / "vision_encoder.onnx"), rng.standard_normal((2, 3, 32, 32), np.float32)
    expected, *told = run(open_graph(bundle / "vision_encoder.onnx"), pixel_values=pixels)
    assert len(told) == len(TOWER_OUTPUTS)
    drop_tower_view(model)
    (found,) = run(model, pixel_values=pixels)
    np.testing.assert_array_equal(found, expected)
    assert not [node.op_type for node in model.graph if node.op_type in ("Softmax", "ReduceSum", "ReduceMean")]


@pytest.mark.parametrize(("target", "dialect", "is_kept"), [("cpu", "contrib", True), ("tensorrt", "portable", False)])
def test_engines_compute_none_of_it(bundle_of, target: str, dialect: str, is_kept: bool) -> None:
    bundle: Path = bundle_of("smolvlm", dialect)
    manifest, model = read_manifest(bundle), open_graph(bundle / "vision_encoder.onnx")
    component = manifest.components["vision_encoder"]
    assert gives_tower(component)
    lowered = Lowering(manifest, target, ImageSpec.read(bundle / PREPROCESSOR)).apply(model, component, "any")
    assert gives_tower(lowered) == is_kept
    names = {value.name for value in model.graph.outputs}
    assert names == {spec.name for spec in (*lowered.outputs, *lowered.optional_outputs)}
