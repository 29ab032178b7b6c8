"""Which of our graphs' operators each version of TensorRT's parser takes, as documented.

Sources: onnx-tensorrt's docs/operators.md of 10.1 ("opset 9 to 20") and of 10.15 ("opset 9 to 24"), TensorRT's
changelog of 10.2 to 11.1. No table of 10.2 to 10.14 was found: what the changelog does not name is as in 10.1 here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from bundle.errors import BundleFormatError, SettingsError
from graphs.lowering.tensorrt import engine_model
from graphs.store import CONTRIB

Version = tuple[int, int]
OLDEST: Version = (10, 1)
"""Whose table was found."""
STANDARD_FROM: Version = (10, 15)
"""Reads the portable dialect as it is."""
_ANY_ROWS = 16
_OPSETS: Mapping[Version, int] = {(10, 15): 24, OLDEST: 20}
_SINCE: Mapping[str, Version] = {
    "Attention": (10, 14),
    "TensorScatter": (10, 15),
    "RotaryEmbedding": (10, 15),
    "RMSNormalization": (10, 15),
}
_NAMES = """
Abs Add And ArgMax AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv Cos CumSum
DequantizeLinear Div Equal Erf Exp Expand Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
Greater GreaterOrEqual HardSigmoid Identity LayerNormalization Less LessOrEqual Log LpNormalization MatMul Max Min
Mod Mul Neg Not Or Pad Pow QuantizeLinear Range ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape
Resize Scan ScatterElements Shape Sigmoid Sin Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose
Trilu Unsqueeze Where
"""
_ALWAYS = frozenset(_NAMES.split())
"""In the table of 10.1 and in those since, in the forms that are written here."""
_RESIZES = ("nearest", "linear")
"""Modes of Resize in that table, which has no antialiasing."""


@dataclass(frozen=True)
class Verdict:
    """What a version makes of one graph.

    Attributes:
        form: How `pocketvlm compile` writes it for that version; None: not at all.
        lacking: What the version lacks of the graph as it is in the bundle.
        reason: Why it cannot be written; "" where it can.
    """

    form: Literal["standard", "plain"] | None
    lacking: tuple[str, ...]
    reason: str = ""


def read_version(text: str) -> Version:
    """Return a version such as "10.3" or "11".

    Raises:
        SettingsError: It is none, or older than what is known.
    """
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0] or "0"
    if not (major.isdecimal() and minor.isdecimal()):
        raise SettingsError(f"TensorRT {text!r} is no version; write one such as 10.3, 10.15 or 11")
    version = int(major), int(minor)
    if version < OLDEST:
        raise SettingsError(f"TensorRT {text}: the oldest whose operators are known here is 10.1")
    return version


def judge_graph(source: Path, outputs: Collection[str], version: Version) -> Verdict:
    """Return what a version makes of a graph of a bundle, of which some outputs are wanted.

    Raises:
        BundleFormatError: Its attention is told of lengths in a way that TensorRT ignores.
    """
    lacking = tuple(dict.fromkeys(missing(engine_model(source, outputs, _ANY_ROWS), version)))
    if not lacking:
        return Verdict("standard", ())
    if any(CONTRIB in each for each in lacking):
        return Verdict(None, lacking, "no TensorRT has it; export the checkpoint with --dialect portable")
    try:
        plain = engine_model(source, outputs, _ANY_ROWS, is_plain=True)
    except BundleFormatError as error:
        return Verdict(None, lacking, str(error))
    left = tuple(dict.fromkeys(missing(plain, version)))
    if left:
        return Verdict(None, lacking, f"no form without {', '.join(left)} is known here")
    return Verdict("plain", lacking)


def missing(model: ir.Model, version: Version) -> Iterator[str]:
    """Yield, in words, what a version lacks of a graph."""
    opset = model.graph.opset_imports.get("", 0)
    most = next(opset for since, opset in _OPSETS.items() if version >= since)
    if opset > most:
        yield f"opset {opset} (it reads {most})"
    for node in model.graph.all_nodes():
        if node.domain:
            yield f"{node.op_type} of {node.domain}"
        elif node.op_type in _SINCE:
            if version < _SINCE[node.op_type]:
                yield node.op_type
        elif node.op_type == "Resize" and (mode := _resized(node)) not in _RESIZES:
            yield f"Resize in mode {mode}"
        elif node.op_type not in _ALWAYS:
            yield f"{node.op_type} (not in any table)"


def _resized(node: ir.Node) -> str:
    """Return how a Resize reckons what lies between."""
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    is_smoothed = "antialias" in node.attributes and bool(node.attributes["antialias"].as_int())
    return f"{mode}, antialiased" if is_smoothed else mode
