"""A decoder small enough for thousands of steps: real graphs, real GroupQueryAttention, random weights scaled up."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bundle.manifest import Component, DecoderDims, TensorSpec
from runtime.cache_shape import CacheShape, cache_shape
from runtime.session import BoundDecoder, Session
from runtime.settings import EngineSettings
from serving.engine.runner import Runner

IMAGE_TOKEN = 5
DIMS = DecoderDims(
    num_layers=2, hidden_size=48, vocab_size=61, num_heads=6, num_kv_heads=2, head_size=8, max_positions=48
)
_ONNX_TYPE = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


@dataclass(frozen=True)
class TinyModel:
    """Graphs of one decoder on disk and their manifest entries."""

    directory: Path
    embed_tokens: Component
    decoder: Component
    dims: DecoderDims = DIMS

    def runner(self, settings: EngineSettings) -> Runner:
        decoder = BoundDecoder(Session(self.directory, self.decoder, settings), self.dims, self.shape(settings))
        return Runner(Session(self.directory, self.embed_tokens, settings), decoder, IMAGE_TOKEN)

    def shape(self, settings: EngineSettings) -> CacheShape:
        return cache_shape(self.dims, settings)

    @staticmethod
    def write_decoder(path: Path, dims: DecoderDims, rng: np.random.Generator) -> Component:
        return write_decoder(path, dims, rng)


def write_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
) -> Component:
    def values(specs: list[TensorSpec]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(s.name, _ONNX_TYPE[s.dtype], list(s.shape)) for s in specs]

    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, path.stem, values(inputs), values(outputs), initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return Component(file=path.name, scheme="fp32", inputs=tuple(inputs), outputs=tuple(outputs), weight_bytes=0)


def cache_specs(prefix: str, dims: DecoderDims) -> list[TensorSpec]:
    shape = ("B", dims.num_kv_heads, "S", dims.head_size)
    return [
        TensorSpec(name=f"{prefix}.{layer}.{side}", dtype="float32", shape=shape)
        for layer in range(dims.num_layers)
        for side in ("key", "value")
    ]


def write_decoder(path: Path, dims: DecoderDims, rng: np.random.Generator) -> Component:
    """Write attention and a gated bend per layer; positions are learned vectors added to the input."""
    node = helper.make_node
    hidden, kv_width = dims.hidden_size, dims.num_kv_heads * dims.head_size
    weights = {
        "positions": rng.normal(size=(dims.max_positions, hidden)).astype(np.float32),
        "head": rng.normal(size=(hidden, dims.vocab_size), scale=0.3).astype(np.float32),
        "one": np.array(1, np.int64),
        "time_axis": np.array(1, np.int64),
        "last": np.array([-1], np.int64),
    }
    nodes = [
        node("Gather", ["positions", "position_ids"], ["p"]),
        node("Add", ["inputs_embeds", "p"], ["x0"]),
        node("Shape", ["inputs_embeds"], ["sizes"]),
        node("Gather", ["sizes", "time_axis"], ["T"]),
        node("Add", ["past_lengths", "T"], ["totals"]),
        node("Sub", ["totals", "one"], ["lasts"]),
        node("Cast", ["lasts"], ["seqlens_k"], to=TensorProto.INT32),
        node("ReduceMax", ["totals"], ["total64"], keepdims=0),
        node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
    ]
    for i in range(dims.num_layers):
        for name, width in (("q", hidden), ("k", kv_width), ("v", kv_width), ("o", hidden), ("m", hidden)):
            weights[f"{name}w{i}"] = rng.normal(size=(hidden, width), scale=0.2).astype(np.float32)
        nodes += [node("MatMul", [f"x{i}", f"{n}w{i}"], [f"{n}{i}"]) for n in "qkv"]
        past = [f"past_key_values.{i}.{side}" for side in ("key", "value")]
        present = [f"present.{i}.{side}" for side in ("key", "value")]
        nodes += [
            node(
                "GroupQueryAttention",
                [f"q{i}", f"k{i}", f"v{i}", *past, "seqlens_k", "total"],
                [f"a{i}", *present],
                domain="com.microsoft",
                num_heads=dims.num_heads,
                kv_num_heads=dims.num_kv_heads,
            ),
            node("MatMul", [f"a{i}", f"ow{i}"], [f"ao{i}"]),
            node("Add", [f"x{i}", f"ao{i}"], [f"y{i}"]),
            node("MatMul", [f"y{i}", f"mw{i}"], [f"ym{i}"]),
            node("Tanh", [f"ym{i}"], [f"yt{i}"]),
            node("Add", [f"y{i}", f"yt{i}"], [f"x{i + 1}"]),
        ]
    nodes += [
        node("Unsqueeze", ["logits_indices", "last"], ["where"]),
        node("GatherND", [f"x{dims.num_layers}", "where"], ["rows"], batch_dims=1),
        node("MatMul", ["rows", "head"], ["logits"]),
    ]
    inputs = [
        TensorSpec(name="inputs_embeds", dtype="float32", shape=("B", "T", hidden)),
        TensorSpec(name="position_ids", dtype="int64", shape=("B", "T")),
        TensorSpec(name="past_lengths", dtype="int64", shape=("B",)),
        TensorSpec(name="logits_indices", dtype="int64", shape=("B", "N")),
        *cache_specs("past_key_values", dims),
    ]
    logits = TensorSpec(name="logits", dtype="float32", shape=("B", "N", dims.vocab_size))
    return write_graph(path, nodes, weights, inputs, [logits, *cache_specs("present", dims)])


def write_tiny_model(directory: Path) -> TinyModel:
    """Write the graphs of one decoder into a folder."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(DIMS.vocab_size, DIMS.hidden_size)).astype(np.float32)
    embed_tokens = write_graph(
        directory / "embed_tokens.onnx",
        [helper.make_node("Gather", ["table", "input_ids"], ["inputs_embeds"])],
        {"table": table},
        [TensorSpec(name="input_ids", dtype="int64", shape=("B", "T"))],
        [TensorSpec(name="inputs_embeds", dtype="float32", shape=("B", "T", DIMS.hidden_size))],
    )
    return TinyModel(directory, embed_tokens, write_decoder(directory / "decoder.onnx", DIMS, rng))
