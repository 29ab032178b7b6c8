"""Streams of hidden states side by side, of which layers compute one: alternating updates (arXiv 2301.13310)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import RMSNorm

_LEAST_MAGNITUDE = 1e-5**0.5
"""Of a stream that is given the magnitude of another (transformers, its square)."""
_LEAST = 1e-30
"""Keeps a divisor from 0."""


@dataclass(frozen=True)
class Streams:
    """What goes from layer to layer.

    Attributes:
        num: A; the first are the embeddings.
        active: The one that a layer computes.
        has_scale: What numbers of tokens are let in by is scaled.
    """

    num: int
    active: int
    has_scale: bool


class SpreadStreams(Module):
    """Embeddings, and beside them what matrices make of them, of their magnitude."""

    def __init__(self, size: int, num_streams: int) -> None:
        super().__init__("")
        made = [Linear(size, size, rows=None, bias=False) for _ in range(1, num_streams)]
        self.altup_projections = ModuleList(made)

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value) -> ir.Value:
        """Return [B, T, A*D] of embeddings [B, T, D]."""
        magnitude = magnitude_of(op, x)
        made = [_scaled_to(op, each(op, x), magnitude) for each in self.altup_projections]
        return op.Concat(x, *made, axis=-1) if made else x


class JoinedStreams(Module):
    """The mean of the first stream and of what matrices make of others, of the first one's magnitude; normed."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, num_streams: int) -> None:
        super().__init__("")
        size = config.hidden_size
        made = [Linear(size, size, rows=None, bias=False) for _ in range(1, num_streams)]
        self.altup_unembed_projections = ModuleList(made)
        self.norm = RMSNorm(size, config.rms_norm_eps, dialect)
        self.num, self.size = num_streams, size

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, N, D] of streams [B, N, A*D]."""
        parts = [op.Slice(x, [at * self.size], [(at + 1) * self.size], [2]) for at in range(self.num)]
        first, magnitude = parts[0], magnitude_of(op, parts[0])
        for part, projection in zip(parts[1:], self.altup_unembed_projections, strict=True):
            first = op.Add(first, _scaled_to(op, projection(op, part), magnitude))
        return self.norm(op, op.Mul(first, 1 / self.num))


def magnitude_of(op: OpBuilder, x: ir.Value) -> ir.Value:
    """Return [..., 1], the root of the mean square of x [..., D].

    Of parts of the largest: squares of loud channels overflow float16, in which variants compute this.
    """
    largest = op.Max(op.ReduceMax(op.Abs(x), [-1], keepdims=1), _LEAST)
    part = op.Div(x, largest)
    return op.Mul(op.Sqrt(op.ReduceMean(op.Mul(part, part), [-1], keepdims=1)), largest)


def _scaled_to(op: OpBuilder, x: ir.Value, magnitude: ir.Value) -> ir.Value:
    """Return x [..., D] of another's magnitude [..., 1]."""
    return op.Mul(op.Div(x, op.Max(magnitude_of(op, x), _LEAST_MAGNITUDE)), magnitude)


class AltUp(Module):
    """What predicts all streams of a layer before it computes one, and corrects them by that one (arXiv 2301.13310).

    As the paper's algorithm 1, with coefficients that follow from the stream itself: tanh of a matrix over its norm.
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, streams: Streams) -> None:
        super().__init__()
        size, num = config.hidden_size, streams.num
        self.correction_coefs = Linear(num, num, rows=None, bias=False, role="router")
        self.prediction_coefs = Linear(num, num**2, rows=None, bias=False, role="router")
        self.modality_router = Linear(size, num, rows=None, bias=False, role="router")
        self.router_norm = RMSNorm(size, config.rms_norm_eps, dialect)
        self.correct_output_scale = Weight(size) if streams.has_scale else None
        self.size, self.num, self.active = size, num, streams.active

    def forward(self, op: OpBuilder, streams: ir.Value, computed: ir.Value | None = None) -> tuple[ir.Value, ir.Value]:
        """Return [B, T, A, D] predicted before one is computed, or corrected by that one; and the active of them.

        Corrected, the active stream is scaled where the model does; it is what lets in a token's numbers.
        """
        if computed is None:
            predicted = self._predicted(op, streams)
            return predicted, self._active_of(op, predicted)
        corrected = self._corrected(op, streams, computed)
        active = self._active_of(op, corrected)
        scale = self.correct_output_scale
        return corrected, active if scale is None else op.Mul(active, scale)

    def _routed(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, T, A] from -1 to 1 of x [B, T, D]."""
        routed = self.modality_router(op, self.router_norm(op, x))
        return op.Tanh(op.Mul(routed, 1 / self.size))  # and not before: what norms give has digits in float16

    def _active_of(self, op: OpBuilder, streams: ir.Value) -> ir.Value:
        """Return [B, T, D], the stream that layers compute, of [B, T, A, D]."""
        return op.Gather(streams, self.active, axis=2)

    def _predicted(self, op: OpBuilder, streams: ir.Value) -> ir.Value:
        """Return [B, T, A, D]: each stream, and a sum of all that the active one weighs."""
        coefficients = self.prediction_coefs(op, self._routed(op, self._active_of(op, streams)))
        mixed = op.MatMul(op.Reshape(coefficients, [0, 0, self.num, self.num]), streams)
        return op.Add(mixed, streams)

    def _corrected(self, op: OpBuilder, predicted: ir.Value, computed: ir.Value) -> ir.Value:
        """Return [B, T, A, D]: predictions, and in parts how far the computed stream [B, T, D] is from its own."""
        parts = op.Add(self.correction_coefs(op, self._routed(op, computed)), 1.0)
        missed = op.Sub(computed, self._active_of(op, predicted))
        return op.Add(predicted, op.Mul(op.Unsqueeze(missed, [2]), op.Unsqueeze(parts, [3])))
