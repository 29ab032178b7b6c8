"""Matrix products, lookups and activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.nn.module import Module, Weight
from graphs.labels import Label, LayerRole

_QUICK_GELU_ALPHA = 1.702
"""Of CLIP's x * sigmoid(1.702 x) (Hendrycks and Gimpel, arXiv 1606.08415, section 2)."""


class Linear(Module):
    """y = x @ W + b.

    The graph stores W as [in, out], the transpose of the checkpoint: MatMul reads it without a Transpose node, which
    a runtime would otherwise fold at load into a second copy of the weights (docs/decisions/0004).

    Args:
        in_features: Last axis of x.
        out_features: Last axis of y.
        rows: That it multiplies for one image or one text; None in a decoder, where prompt and step decide.
        role: What it does, where that is more than to multiply.
        bias: Whether b is added.
        name: Where the checkpoint keeps it; the attribute's name by default.
        order: In which the checkpoint's outputs stand in y; as they are by default.
        in_order: In which the checkpoint's inputs stand in x; as they are by default.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rows: int | None,
        role: LayerRole = "linear",
        bias: bool = True,
        name: str | None = None,
        order: npt.NDArray[np.int64] | None = None,
        in_order: npt.NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(name)
        label = Label(role, rows)
        self.weight = Weight(in_features, out_features, transposed=True, order=order, in_order=in_order, label=label)
        self.bias = Weight(out_features, order=order) if bias else None

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., out] from [..., in]."""
        product = op.MatMul(x, self.weight)
        return product if self.bias is None else op.Add(product, self.bias)


class PackedLinear(Module):
    """One part of a projection that the checkpoint keeps as a single matrix over all, [3D, D] mostly, with its biases.

    Args:
        size: D.
        part: 0, 1 or 2.
        name: Of the part, in the graph.
        sources: Where the checkpoint keeps matrix and biases, if there are any, as seen from the module around.
        rows: That it multiplies for one image; None in a decoder.
        order: In which the checkpoint's outputs, of the part, stand in y; as they are by default.
        out_size: Width of the part; D by default.
    """

    def __init__(
        self,
        size: int,
        part: int,
        name: str,
        sources: tuple[str, str | None],
        *,
        rows: int | None,
        order: npt.NDArray[np.int64] | None = None,
        out_size: int | None = None,
    ) -> None:
        super().__init__("")
        width = size if out_size is None else out_size
        own = (part * width, (part + 1) * width)
        weight, bias = sources
        label = Label("linear", rows)
        self.weight = Weight(
            size, width, transposed=True, name=f"{name}.weight", source=weight, rows=own, order=order, label=label
        )
        self.bias = None if bias is None else Weight(width, name=f"{name}.bias", source=bias, rows=own, order=order)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., out_size] from [..., D]."""
        product = op.MatMul(x, self.weight)
        return product if self.bias is None else op.Add(product, self.bias)


class _LongerTable(Weight):
    """A table with rows of 0 behind those that the checkpoint has."""

    def __init__(self, num_rows: int, size: int, num_stored: int) -> None:
        super().__init__(num_rows, size, label=Label("table"))
        self.num_stored = num_stored

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape holds the rows that it should have."""
        return stored == (self.num_stored, int(self.shape[1]))

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return the rows, and those of 0."""
        (stored,) = parts
        return np.pad(stored, ((0, int(self.shape[0]) - len(stored)), (0, 0)))


class Embedding(Module):
    """Rows of a table by id, times a scale where there is one.

    Args:
        num_rows: Ids are below it.
        size: D.
        name: Where the checkpoint keeps it; the attribute's name by default.
        scale: What rows are multiplied by.
        num_stored: Rows that the checkpoint has, where these are fewer: nothing reads the others.
    """

    def __init__(
        self, num_rows: int, size: int, *, name: str | None = None, scale: float = 1.0, num_stored: int | None = None
    ) -> None:
        super().__init__(name)
        self.scale = scale
        self.weight = (
            Weight(num_rows, size, label=Label("table"))
            if num_stored is None
            else _LongerTable(num_rows, size, num_stored)
        )

    def forward(self, op: OpBuilder, ids: ir.Value) -> ir.Value:
        """Return [..., size] from [...] int64."""
        found = op.Gather(self.weight, ids, axis=0)
        return found if self.scale == 1.0 else op.Mul(found, self.scale)


def activation(op: OpBuilder, kind: str, x: ir.Value) -> ir.Value:
    """Return `hidden_act` of a Hugging Face config applied to x.

    Raises:
        UnsupportedConfigError: An activation that is not built.
    """
    if kind == "gelu":
        return op.Gelu(x)
    if kind in ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"):
        return op.Gelu(x, approximate="tanh")
    if kind == "quick_gelu":
        return op.Mul(x, op.Sigmoid(op.Mul(x, _QUICK_GELU_ALPHA)))
    if kind in ("silu", "swish"):
        return op.Mul(x, op.Sigmoid(x))
    if kind == "relu":
        return op.Relu(x)
    if kind == "relu2":  # So et al., arXiv 2109.08668, section 3.2
        return op.Mul(positive := op.Relu(x), positive)
    raise UnsupportedConfigError(
        f"hidden_act {kind!r} is not built; known: gelu, gelu_pytorch_tanh, gelu_new, gelu_fast, quick_gelu, silu, "
        "relu, relu2. Add it to export/nn/linear.py."
    )
