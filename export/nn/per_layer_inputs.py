"""What a second table says of tokens for each layer, and what their embeddings do (Gemma 3n, Gemma 4)."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import RMSNorm


class PerLayerInputs(Module):
    """What embeddings say for each layer, normed, and the numbers of tokens: their sum over the root of 2.

    Args:
        config: L layers, and D.
        dialect: How its norm is written.
        size: P, numbers of a token for each layer.
        num_streams: Embeddings are the first D of so many times D numbers.
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, size: int, num_streams: int = 1) -> None:
        super().__init__("")
        num, self.size = config.num_layers, size
        self.num_layers, self.width = num, config.hidden_size
        self.num_streams = num_streams
        self.scale = config.hidden_size**-0.5
        self.per_layer_model_projection = Linear(config.hidden_size, num * size, rows=None, bias=False)
        self.per_layer_projection_norm = RMSNorm(size, config.rms_norm_eps, dialect)

    def forward(self, op: OpBuilder, x: ir.Value, of_tokens: ir.Value) -> tuple[ir.Value, ...]:
        """Return [B, T, P] of each layer, from embeddings [B, T, D] and numbers of tokens [B, T, L*P]."""
        embeddings = x if self.num_streams == 1 else op.Slice(x, [0], [self.width], [2])
        said = op.Mul(self.per_layer_model_projection(op, embeddings), self.scale)
        normed = self.per_layer_projection_norm(op, op.Reshape(said, [0, 0, self.num_layers, self.size]))
        both = op.Add(op.Reshape(normed, [0, 0, self.num_layers * self.size]), of_tokens)
        scaled = op.Mul(both, math.sqrt(0.5))
        if self.num_layers == 1:
            return (scaled,)
        return tuple(op.Split(scaled, axis=-1, num_outputs=self.num_layers, _outputs=self.num_layers))
