"""A bundle of token graphs in the form that is made for CUDA, written by hand: random weights, float16 everywhere.

It takes and gives what docs/cuda-form.md says, and shares nothing with the lowering that writes such graphs in earnest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bundle.dims import DecoderDims
from bundle.directory import Bundle, seal
from bundle.manifest import Component, Manifest, TensorSpec
from bundle.states import State

KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64} | {
    "int32": TensorProto.INT32
}
V, D, H, K, C, F, L, ROWS = 61, 48, 4, 2, 16, 64, 2, 64
Specs = dict[str, tuple[str, tuple[int | str, ...]]]
CONTRIB = "com.microsoft"


class Written:
    """Nodes and weights of one graph."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self._rng = rng

    def node(self, op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, outputs, **attributes))
        return outputs[0]

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights[name] = array
        return name

    def linear(self, name: str, x: str, rows: int, columns: int) -> str:
        matrix = (self._rng.normal(size=(rows, columns)) * 1.5 / np.sqrt(rows)).astype(np.float16)
        return self.node("MatMul", [x, self.weight(name, matrix)], [f"{name}_out"])

    def save(self, path: Path, inputs: Specs, outputs: Specs) -> None:
        def values(specs: Specs) -> list[Any]:
            return [helper.make_tensor_value_info(name, KINDS[dtype], shape) for name, (dtype, shape) in specs.items()]

        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, path.stem, values(inputs), values(outputs), weights)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def states() -> tuple[State, ...]:
    return tuple(
        State(
            input=f"past_key_values.{layer}.{kind}",
            output=f"present.{layer}.{kind}",
            dtype="float16",
            shape=("B", K, "S", C),
            group=0,
        )
        for layer in range(L)
        for kind in ("key", "value")
    )


DECODER_INPUTS: Specs = {
    "inputs_embeds": ("float16", ("B", "T", D)),
    "position_ids": ("int64", ("B", "T")),
    "seqlens_k": ("int32", ("B",)),
    "total_sequence_length": ("int32", ()),
    "logits_rows": ("int64", ("B", "N")),
}
LOGITS: Specs = {"logits": ("float32", ("B", "N", V))}
GREEDY: Specs = {"greedy_ids": ("int64", ("B", "N"))}


def _layer(written: Written, layer: int, x: str) -> str:
    node, name = written.node, f"l{layer}"
    ones = written.weight(f"{name}_ones", np.ones(D, np.float16))
    normed = node("SimplifiedLayerNormalization", [x, ones], [f"{name}_n"], axis=-1, epsilon=1e-5)
    qkv = written.linear(f"{name}_qkv", normed, D, (H + 2 * K) * C)
    past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
    present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
    sources = [qkv, "", "", *past, "seqlens_k", "total_sequence_length", "cos", "sin", "position_ids"]
    heads: dict[str, Any] = {"num_heads": H, "kv_num_heads": K, "do_rotary": 1, "domain": CONTRIB}
    attended = node("GroupQueryAttention", sources, [f"{name}_a", *present], **heads)
    x = node("Add", [x, written.linear(f"{name}_o", attended, H * C, D)], [f"{name}_x"])
    normed = node("SimplifiedLayerNormalization", [x, ones], [f"{name}_m"], axis=-1, epsilon=1e-5)
    wide = written.linear(f"{name}_up", normed, D, F)
    gate = node("Sigmoid", [wide], [f"{name}_g"])
    down = written.linear(f"{name}_down", node("Mul", [wide, gate], [f"{name}_s"]), F, D)
    return node("Add", [x, down], [f"{name}_y"])


def _decoder(path: Path, rng: np.random.Generator) -> None:
    written = Written(rng)
    angles = np.arange(ROWS)[:, None] / 1e4 ** (np.arange(C // 2) / (C // 2))
    written.weight("cos", np.cos(angles).astype(np.float16))
    written.weight("sin", np.sin(angles).astype(np.float16))
    x = "inputs_embeds"
    for layer in range(L):
        x = _layer(written, layer, x)
    written.weight("flat", np.array([-1, D], np.int64))
    rows = written.node("Reshape", [x, "flat"], ["rows"])
    wanted = written.node("Gather", [rows, "logits_rows"], ["wanted"], axis=0)
    narrow = written.linear("head", wanted, D, V)
    written.node("Cast", [narrow], ["logits"], to=TensorProto.FLOAT)
    written.weight("none", np.array(-1, np.int64))
    written.node("ArgMax", ["logits"], ["largest"], axis=-1, keepdims=0)
    written.node("MatMul", ["logits", written.weight("zeros", np.zeros(V, np.float32))], ["nothing"])
    written.node("IsNaN", ["nothing"], ["is_broken"])
    written.node("Where", ["is_broken", "none", "largest"], ["greedy_ids"])
    past: Specs = {state.input: (state.dtype, state.shape) for state in states()}
    present: Specs = {state.output: (state.dtype, state.shape) for state in states()}
    written.save(path, DECODER_INPUTS | past, LOGITS | GREEDY | present)


def _specs(specs: Specs) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in specs.items())


def write_cuda_form(folder: Path, seed: int = 0) -> Bundle:
    """Write embeddings and decoder into a folder, and return the bundle."""
    rng = np.random.default_rng(seed)
    ids: Specs = {"input_ids": ("int64", ("B", "T"))}
    embeds: Specs = {"inputs_embeds": DECODER_INPUTS["inputs_embeds"]}
    embed = Written(rng)
    embed.weight("table", rng.normal(size=(V, D)).astype(np.float16))
    embed.node("Gather", ["table", "input_ids"], ["inputs_embeds"])
    embed.save(folder / "embed_tokens.onnx", ids, embeds)
    _decoder(folder / "decoder.onnx", rng)
    facts = dict.fromkeys(("name", "source", "source_sha256", "created_by", "model_type"), "t")
    components = {
        "embed_tokens": Component(
            file="embed_tokens.onnx", role="embed_tokens", scheme="fp16", inputs=_specs(ids), outputs=_specs(embeds),
            weight_bytes=0,
        ),
        "decoder": Component(
            file="decoder.onnx", role="decoder", scheme="fp16", inputs=_specs(DECODER_INPUTS), outputs=_specs(LOGITS),
            optional_outputs=_specs(GREEDY), weight_bytes=0,
        ),
    }  # fmt: skip
    dims = DecoderDims(hidden_size=D, vocab_size=V, max_positions=ROWS)
    manifest = Manifest(
        **facts, task="image-text-to-text", dialect="contrib", target="cuda", components=components, states=states(),
        decoder=dims,
    )  # fmt: skip
    return seal(folder, manifest)
