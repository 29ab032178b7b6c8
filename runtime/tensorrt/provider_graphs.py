"""Which graphs ONNX Runtime's TensorRT providers cannot run, though `pocketvlm compile` builds engines of most.

A provider hands the parser the bundle's graph as it is. What `graphs.lowering.tensorrt` rewrites first, a server has no
library for; so such a graph is refused by name before a provider reads it.
"""

from __future__ import annotations

from pathlib import Path

from bundle.directory import Bundle
from bundle.errors import BundleFormatError, MachineError
from bundle.graph_nodes import GraphNode, graph_nodes
from bundle.manifest import ComponentName
from runtime.tensorrt.precision import is_half

_LENGTHS_INPUT = 6
"""`nonpad_kv_seqlen` of the standard Attention."""
_WIDE_KEYS = "pocketvlm.wide_keys"
"""A note of `graphs.wide_keys`."""


def check_provider_graph(bundle: Bundle, name: ComponentName) -> None:
    """Check that a provider can run a graph as it is.

    Raises:
        BundleFormatError: Its attention is told of lengths in a way that TensorRT ignores.
        MachineError: It holds what TensorRT does not take, or computes attention in float32.
    """
    path = bundle.graph_path(name)
    nodes = graph_nodes(path)
    attentions = [node for node in nodes if node.op_type == "Attention" and not node.domain]
    if any(_is_told_of_lengths(node) for node in attentions):
        raise BundleFormatError(
            f"{path}: its attention is told what a token sees by a length, which TensorRT ignores: an engine would "
            "answer nonsense. The bundle is of an older version; export the checkpoint again with --dialect portable"
        )
    reason = _reason(nodes, attentions)
    if reason:
        raise _refused(path, reason, "take engines of pocketvlm compile, which writes it otherwise")
    if attentions and not is_half(bundle.manifest, name):
        raise _refused(
            path,
            "computes attention in float32, which TensorRT fuses for float16 alone",
            "take a variant of pocketvlm quantize --target tensorrt --weights fp16 (or int8, int4), or engines of "
            "pocketvlm compile",
        )


def _is_told_of_lengths(node: GraphNode) -> bool:
    return "is_causal" in node.attributes or any(node.inputs[_LENGTHS_INPUT:])


def _reason(nodes: list[GraphNode], attentions: list[GraphNode]) -> str:
    """Return what TensorRT does not take of a graph; "" where it takes all."""
    if any("softcap" in node.attributes for node in attentions):
        return "caps the scores of its attention"
    if any(_WIDE_KEYS in node.notes for node in attentions):
        return "has keys that are wider than its values"
    looked_up = {name for node in nodes if node.op_type == "Gather" for name in node.outputs}
    if any(node.op_type == "DequantizeLinear" and node.inputs[0] in looked_up for node in nodes):
        return "looks rows of 8 bits up before they are dequantized"
    return ""


def _refused(path: Path, reason: str, advice: str) -> MachineError:
    return MachineError(f"{path} {reason}; ONNX Runtime's TensorRT providers are given it as it is. Instead {advice}.")
