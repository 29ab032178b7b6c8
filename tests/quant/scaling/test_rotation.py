from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphs.layers import find_linears
from quant.scaling.rotation import can_turn_input, find_stream, rotate, rotation, turn_inputs


@pytest.mark.parametrize("width", [8, 48, 576])
def test_rotations_are_orthogonal_and_the_same_at_every_call(width: int) -> None:
    turn = rotation(width).astype(np.float64)
    np.testing.assert_allclose(turn @ turn.T, np.eye(width), atol=1e-6)
    np.testing.assert_array_equal(rotation(width), rotation(width))


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
@pytest.mark.parametrize("family", ["smolvlm", "llava"])
def test_a_rotated_decoder_computes_what_it_did(graph_of, feeds_of, run, family: str, dialect: str) -> None:
    model = graph_of(family, dialect, "decoder")
    feeds = feeds_of(model)
    expected = run(model, **feeds)
    assert rotate(model)
    for found, before in zip(run(model, **feeds), expected, strict=True):
        # Only the rounding of float32 products differs: three more products deep in a residual stream.
        assert np.abs(found - before).max() < 1e-4 * np.abs(before).max()


def test_a_rotated_stream_has_no_loud_channel(graph_of, feeds_of, statistics_of) -> None:
    model = graph_of("smolvlm", "contrib", "decoder")
    stream = find_stream(model.graph)
    assert stream is not None
    for norm, _ in stream.norms:  # a loud channel behind every norm
        weight = norm.inputs[1].const_value.numpy().copy()
        weight[3] *= 100
        norm.inputs[1].const_value = ir.tensor(weight, name=norm.inputs[1].name)
    readers = [reader.name for _, layers in stream.norms for reader in layers]
    feeds = feeds_of(model)
    before = statistics_of(model, feeds)
    rotate(model)
    after = statistics_of(model, feeds)
    for name in readers:
        assert before[name].peaks.max() > 15 * np.median(before[name].peaks)
        assert after[name].peaks.max() < 4 * np.median(after[name].peaks)


def test_a_head_keeps_its_matrix_so_that_a_tied_table_can_share_it(graph_of) -> None:
    model = graph_of("smolvlm", "contrib", "decoder")
    (head,) = [linear for linear in find_linears(model.graph) if linear.num_outputs > 4 * linear.num_inputs]
    before = head.rows().copy()
    rotate(model)
    (after,) = [linear for linear in find_linears(model.graph) if linear.name == head.name]
    np.testing.assert_array_equal(after.rows(), before)


def test_graphs_without_such_a_stream_are_left_alone(graph_of, feeds_of, run) -> None:
    model = graph_of("smolvlm", "contrib", "vision_encoder")
    feeds = feeds_of(model)
    expected = run(model, **feeds)
    assert not rotate(model)
    for found, before in zip(run(model, **feeds), expected, strict=True):
        np.testing.assert_array_equal(found, before)


def test_a_stream_that_something_else_reads_is_not_turned(graph_of) -> None:
    model = graph_of("smolvlm", "contrib", "decoder")
    stream = find_stream(model.graph)
    assert stream is not None
    model.graph.outputs.append(stream.norms[1][0].inputs[0])
    assert find_stream(model.graph) is None
    assert not rotate(model)


def test_a_turned_input_changes_nothing_but_its_loudness(model_of, run, rng) -> None:
    weights = {"w": rng.standard_normal((128, 24)).astype(np.float32)}
    model = model_of(
        {"x": (ir.DataType.FLOAT, ["B", "T", 128])}, [("MatMul", ["x", "w"], "y", {})], weights, ["y"], opset=21
    )
    (linear,) = find_linears(model.graph)
    assert can_turn_input(linear)
    x = rng.standard_normal((2, 5, 128)).astype(np.float32)
    x[..., 70] *= 100
    (expected,) = run(model, x=x)
    turn_inputs(model, {"w"})
    (found,) = run(model, x=x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())
    (turned,) = [each for each in find_linears(model.graph) if each.name == "w"]
    blocks = (x.reshape(2, 5, 2, 64) @ rotation(64)).reshape(x.shape)
    np.testing.assert_allclose(blocks @ turned.rows().T, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())
    assert np.abs(blocks).max() < 0.6 * np.abs(x).max()


@pytest.mark.parametrize("width", [80, 32])
def test_inputs_of_parts_of_blocks_are_not_turned(model_of, rng, width: int) -> None:
    weights = {"w": rng.standard_normal((width, 24)).astype(np.float32)}
    inputs = {"x": (ir.DataType.FLOAT, ["B", "T", width])}
    model = model_of(inputs, [("MatMul", ["x", "w"], "y", {})], weights, ["y"], opset=21)
    assert not can_turn_input(find_linears(model.graph)[0])
