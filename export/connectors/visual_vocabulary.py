"""A visual vocabulary (Ovis, arXiv 2405.20797, section 3.2): each square of patches is a mixture of visual words."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.connectors.pixel_shuffle import pixel_shuffle
from export.nn.linear import Linear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from graphs.labels import Label

_EPS = 1e-5
"""Of PyTorch's LayerNorm, which no config of the model changes."""


class VisualVocabulary(Module):
    """Squares of patches to shares of visual words, and these to the sum of the words' embeddings.

    Args:
        grid: Patches along one side of a tile, a multiple of `factor`.
        in_size: Width of a patch.
        num_words: Of the vocabulary, without those that mark where an image begins, ends and is cut.
        out_size: The decoder's width.
        factor: Side of a square.
        name: Where the checkpoint keeps the shares.
        table: Where it keeps the words' embeddings, as seen from there.
    """

    def __init__(
        self, grid: int, in_size: int, num_words: int, out_size: int, factor: int, *, name: str, table: str
    ) -> None:
        super().__init__("")
        self.rows = (grid // factor) ** 2
        self.shares = _Shares(in_size * factor**2, num_words, rows=self.rows, name=name)
        self.words = Weight(num_words, out_size, name=table, rows=(0, num_words), label=Label("linear", self.rows))
        self.grid, self.in_size, self.factor = grid, in_size, factor

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, (grid/factor)^2, out_size] from [I, grid*grid, in_size], row by row."""
        squares = pixel_shuffle(op, x, self.grid, self.in_size, self.factor)
        return op.MatMul(self.shares(op, squares), self.words)


class _Shares(Module):
    def __init__(self, size: int, num_words: int, *, rows: int, name: str) -> None:
        super().__init__(name)
        self.head_linear = Linear(size, num_words, rows=rows, bias=False)
        self.head_norm = LayerNorm(num_words, _EPS)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Softmax(self.head_norm(op, self.head_linear(op, x)), axis=-1)
