"""What TensorRT's parser made of our graphs, read off its own network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from bundle.directory import Bundle, read_manifest
from bundle.errors import BundleFormatError, MachineError
from bundle.form import Form
from graphs.layers import find_tables
from graphs.lowering.tensorrt import engine_graph, unread_inputs
from graphs.lowering.tensorrt_halves import halve_for_tensorrt
from graphs.store import make_node, open_graph, save_graph
from quant.weights.gather_blocks import GatherRows
from runtime.tensorrt.library import Library
from runtime.tensorrt.network import check_network, parse, unread


def given(path: Path) -> tuple[str, ...]:
    """Return the outputs that a graph of a bundle always gives."""
    return read_manifest(path.parent).always_given(path.stem)


def lengths_instead_of_masks(bundle: Bundle, folder: Path) -> Path:
    """Write the decoder as bundles of before had it: `nonpad_kv_seqlen` and `is_causal`."""
    model = open_graph(bundle.graph_path("decoder"))
    graph = model.graph
    embeds, past = (
        next(value for value in graph.inputs if value.name == name) for name in ("inputs_embeds", "past_lengths")
    )
    new = ir.node("Shape", [embeds], {"start": 1, "end": 2}, outputs=[ir.Value(name="new")], name="new")
    total = make_node("Add", [past, new.outputs[0]], "totals")
    axis = ir.val("axis", const_value=ir.tensor([0], name="axis"))
    graph.register_initializer(axis)
    of_group = make_node("Squeeze", [total.outputs[0], axis], "totals.0")
    graph.insert_before(graph[0], [new, total, of_group])
    for node in graph:
        if node.op_type == "Attention":
            node.resize_inputs(7)
            node.replace_input_with(3, None)
            node.replace_input_with(6, of_group.outputs[0])
            node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    save_graph(model, folder / "decoder.onnx")
    return folder / "decoder.onnx"


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8-static", "int8", "int4"])
def test_every_tensor_is_read_and_every_attention_has_our_mask(
    rtx: Library, portable_of: Callable[..., Bundle], recipe: str
) -> None:
    path = portable_of("vlm", recipe).graph_path("decoder")
    network = parse(rtx, engine_graph(path, given(path), 64), path)
    assert unread(network) == []
    attentions = list(network.attentions())
    assert len(attentions) == 3
    for attention in attentions:
        assert attention.causal_kind == rtx.module.CausalMaskKind.NONE
        assert attention.mask.dtype == rtx.module.DataType.BOOL
        assert tuple(attention.mask.shape) == (-1, 1, -1, 64)
        assert attention.key_value_lengths is None
    check_network(network, "decoder")


@pytest.mark.parametrize(("family", "role", "num"), [("clip", "text_encoder", 2), ("clip", "vision_encoder", 2)])
def test_encoders_are_read_with_the_mask_that_they_have(
    rtx: Library, portable_of: Callable[..., Bundle], family: str, role: str, num: int
) -> None:
    path = portable_of(family, "fp16").graph_path(role)
    network = parse(rtx, engine_graph(path, given(path), 64), path)
    masks = [attention.mask for attention in network.attentions()]
    assert len(masks) == num
    assert [mask is not None for mask in masks] == [role == "text_encoder"] * num
    assert unread(network) == []


def test_the_plain_form_holds_no_attention_of_tensorrts_and_reads_every_input(
    rtx: Library, portable_of: Callable[..., Bundle]
) -> None:
    path = portable_of("vlm", "fp16").graph_path("decoder")
    network = parse(rtx, engine_graph(path, given(path), 64, is_plain=True), path)
    assert list(network.attentions()) == []
    kinds = {layer.type for layer in network.layers()}
    assert not {rtx.module.LayerType.KV_CACHE_UPDATE, rtx.module.LayerType.ROTARY_EMBEDDING} & kinds
    assert unread(network) == []


def test_the_form_of_before_is_refused_when_it_is_written(portable_of: Callable[..., Bundle], tmp_path: Path) -> None:
    old = lengths_instead_of_masks(portable_of("vlm"), tmp_path)
    with pytest.raises(BundleFormatError, match="export the checkpoint again"):
        engine_graph(old, (), 64)


def test_the_form_of_before_would_be_noticed_in_the_network(
    rtx: Library, portable_of: Callable[..., Bundle], tmp_path: Path
) -> None:
    old = lengths_instead_of_masks(portable_of("vlm"), tmp_path)
    model = open_graph(old)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape([64 if str(size) == "S" else size for size in value.shape])
    network = parse(rtx, ir.to_proto(model).SerializeToString(), old)
    assert {str(attention.causal_kind) for attention in network.attentions()} == {"CausalMaskKind.UPPER_LEFT"}
    assert unread(network)  # the lengths: nobody reads them
    with pytest.raises(MachineError, match=r"dropped .*totals"):
        check_network(network, "decoder")


def test_a_decoder_whose_attention_lost_its_mask_is_refused(rtx: Library, portable_of: Callable[..., Bundle]) -> None:
    path = portable_of("clip", "fp16").graph_path("vision_encoder")
    network = parse(rtx, engine_graph(path, given(path), 64), path)
    check_network(network, "vision_encoder")
    with pytest.raises(MachineError, match="another mask"):
        check_network(network, "decoder")


def test_an_input_that_the_graph_itself_leaves_unread_is_no_loss(rtx: Library, model_of: Any, tmp_path: Path) -> None:
    x, path = (ir.DataType.FLOAT, ["B", 4]), tmp_path / "text_encoder.onnx"
    save_graph(model_of({"x": x, "mask": x}, [("Abs", ["x"], "y", {})], {}, ["y"]), path)
    assert unread_inputs(path) == ["mask"]
    network = parse(rtx, engine_graph(path, ["y"], 64), path)
    check_network(network, "text_encoder", unread_inputs(path))
    assert {network.definition.get_input(at).name for at in range(network.definition.num_inputs)} == {"x", "mask"}
    with pytest.raises(MachineError, match="dropped mask"):
        check_network(network, "text_encoder")


def test_a_table_with_a_row_of_zeros_is_read(rtx: Library, portable_of: Callable[..., Bundle], tmp_path: Path) -> None:
    model = open_graph(portable_of("vlm").graph_path("embed_tokens"))
    (table,) = find_tables(model.graph)
    rows = table.rows().copy()
    rows[5] = 0
    table.weight.const_value = ir.tensor(rows, name=table.name)
    GatherRows({table.name: Form(8)})(model)
    halve_for_tensorrt(model, ())
    save_graph(model, tmp_path / "embed_tokens.onnx")
    path = tmp_path / "embed_tokens.onnx"
    check_network(parse(rtx, engine_graph(path, ["inputs_embeds"], 64), path), "embed_tokens")


def test_a_cache_is_updated_in_place_of_the_networks_own_input(
    rtx: Library, portable_of: Callable[..., Bundle]
) -> None:
    bundle = portable_of("vlm", "int4")
    path = bundle.graph_path("decoder")
    network = parse(rtx, engine_graph(path, given(path), 64), path)
    updates = [layer for layer in network.layers() if layer.type == rtx.module.LayerType.KV_CACHE_UPDATE]
    assert {(layer.get_input(0).name, layer.get_output(0).name) for layer in updates} == {
        (state.input, state.output) for state in bundle.manifest.states
    }
    assert {layer.get_input(0).dtype for layer in updates} == {rtx.module.DataType.HALF}


def test_a_graph_that_the_parser_refuses_is_told_with_node_and_reason(rtx: Library, smolvlm_bundle: Path) -> None:
    path = smolvlm_bundle / "decoder.onnx"
    with pytest.raises(MachineError, match=r"refuses GroupQueryAttention .*doctor --tensorrt"):
        parse(rtx, engine_graph(path, given(path), 64), path)
