from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphs.lowering.skip_norms import join_sums_and_norms
from graphs.store import CONTRIB, drop_unused


def test_sums_are_joined_with_the_norms_that_read_them(decoder_of, prompt_and_step) -> None:
    """All but the first norm, which reads the embeddings, and the last, which reads chosen rows."""
    model = decoder_of()
    before = prompt_and_step(model)
    model.graph.opset_imports[CONTRIB] = 1
    assert join_sums_and_norms(model.graph) == 3
    drop_unused(model)
    model.graph.sort()
    assert sum(node.op_type == "RMSNormalization" for node in model.graph) == 2
    for found, wanted in zip(prompt_and_step(model), before, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_bias_is_not_taken_for_a_sum(model_of, rng) -> None:
    """The operator adds two tensors of one shape."""
    weights = {"b": rng.standard_normal(8).astype(np.float32), "g": np.ones(8, np.float32)}
    nodes = [("Add", ["x", "b"], "s", {}), ("RMSNormalization", ["s", "g"], "y", {"axis": -1, "epsilon": 1e-5})]
    model = model_of({"x": (ir.DataType.FLOAT, ["B", "T", 8])}, nodes, weights, ["y"], opset=23)
    assert join_sums_and_norms(model.graph) == 0
