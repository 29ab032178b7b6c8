"""CLOC's prompter (arXiv 2410.02746, section 3.3 and appendix B): image tokens to the vector of a part of the image.

The two corners of a box, each as a sinusoidal encoding of its coordinates, stand before the tokens that the ViT made,
and one transformer layer with one head reads all of them; what it made is pooled and projected.

Not said there, and chosen here: frequencies are those of the transformer's positions (arXiv 1706.03762, section 3.5)
over coordinates that were multiplied by 2 pi, as DETR has them, half of an encoding telling of x and half of y; the
layer is a block of CLIP's; its rows are averaged and normed before the projection, which has no biases.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import TowerConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.vit import EncoderLayer

_LONGEST = 10_000.0
"""Of the wavelengths, as a multiple of the shortest."""
_CORNERS = 2


class Prompter(Module):
    """Boxes and tokens to vectors.

    Args:
        tower: Of the image encoder, whose width and feed-forward the layer has.
        embedding_size: E.
        dialect: How attention is written.
        rows: Tokens of an image.

    Raises:
        UnsupportedConfigError: No whole number of frequencies fits its width.
    """

    def __init__(self, tower: TowerConfig, embedding_size: int, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size = tower.hidden_size
        if size % 4:
            raise UnsupportedConfigError(
                f"vision_config.hidden_size {size}: the prompter encodes a corner by sines and cosines of x and of y, "
                "and wants a multiple of 4"
            )
        one_head = replace(tower, num_heads=1, experts=None)
        self.layer = EncoderLayer(one_head, dialect, rows=_CORNERS + rows)
        self.post_layernorm = LayerNorm(size, tower.layer_norm_eps)
        self.projection = Linear(size, embedding_size, rows=1, bias=False)
        self.size, self.rows = size, rows

    def forward(self, op: OpBuilder, tokens: ir.Value, boxes: ir.Value) -> ir.Value:
        """Return [I, R, E] of tokens [I, N, D] and boxes [I, R, 4]."""
        num = op.Shape(boxes, start=0, end=2)
        corners = op.Reshape(self._encoded(op, boxes), op.Concat([-1], [_CORNERS, self.size], axis=0))
        of_each = op.Expand(op.Unsqueeze(tokens, [1]), op.Concat(num, [self.rows, self.size], axis=0))
        x = op.Concat(corners, op.Reshape(of_each, [-1, self.rows, self.size]), axis=1)
        made, _ = self.layer(op, x, None)
        pooled = self.post_layernorm(op, op.ReduceMean(made, [1], keepdims=0))
        return op.Reshape(self.projection(op, pooled), op.Concat(num, [-1], axis=0))

    def _encoded(self, op: OpBuilder, boxes: ir.Value) -> ir.Value:
        """Return [I, R, 4 * D / 2]: of each coordinate sines and cosines; x and y of a corner stand together."""
        count = self.size // 4
        frequencies = 2 * math.pi * _LONGEST ** (-np.arange(count) / count)
        turned = op.Mul(op.Unsqueeze(boxes, [3]), op.Constant(value=ir.tensor(frequencies.astype(np.float32))))
        return op.Concat(op.Sin(turned), op.Cos(turned), axis=3)
