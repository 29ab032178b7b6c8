"""LFM2 (arXiv 2511.23404): most layers are short gated convolutions, the others attention with normed heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.states import State
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.linear import Linear, activation
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.nn.short_convolution import ShortConvolution

DEFAULTS: Raw = {
    "vocab_size": 65_536,
    "hidden_size": 2560,
    "intermediate_size": 12_288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
}
_ATTENTION, _CONVOLUTION = "full_attention", "conv"


class GatedThree(Module):
    """w2(silu(w1(x)) * w3(x))."""

    def __init__(self, size: int, inner: int, rows: int | None = None) -> None:
        super().__init__()
        self.w1 = Linear(size, inner, rows=rows, bias=False)
        self.w3 = Linear(size, inner, rows=rows, bias=False)
        self.w2 = Linear(inner, size, rows=rows, bias=False)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., size] from [..., size]."""
        return self.w2(op, op.Mul(activation(op, "silu", self.w1(op, x)), self.w3(op, x)))


class _Layer(Module):
    """What mixes tokens, normed before it, then a feed-forward, each with its residual."""

    def __init__(self, config: DecoderConfig, dialect: Dialect) -> None:
        super().__init__()
        self.operator_norm, self.ffn_norm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(2)
        )
        self.feed_forward = GatedThree(config.hidden_size, config.intermediate_size)

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        left = self._mixed(op, self.operator_norm(op, x), around, states)
        x = op.Add(x, left.hidden)
        return Left(op.Add(x, self.feed_forward(op, self.ffn_norm(op, x))), left.states, left.queries)

    @abstractmethod
    def _mixed(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what of x [B, T, D] is added to the residual."""


class _AttentionLayer(_Layer):
    def __init__(self, config: DecoderConfig, dialect: Dialect, attention: CachedAttention) -> None:
        super().__init__(config, dialect)
        self.self_attn = attention

    def _mixed(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        attended, present, queries = self.self_attn(op, x, around.angles[0], CacheRows(*states), around.lengths)
        return Left(attended, (present.key, present.value), queries)


class _ConvolutionLayer(_Layer):
    def __init__(self, config: DecoderConfig, dialect: Dialect, convolution: ShortConvolution) -> None:
        super().__init__(config, dialect)
        self.conv = convolution

    def _mixed(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        mixed, state = self.conv(op, x, *states)
        return Left(mixed, (state,), None)


class Lfm2(Decoder):
    """`model_type` lfm2.

    Args:
        config: Sizes.
        has_attention: Of each layer; the others are convolutions.
        taps: Tokens that a convolution spans.
        conv_bias: Whether convolutions and their projections add one.
    """

    def __init__(self, config: DecoderConfig, has_attention: tuple[bool, ...], taps: int, *, conv_bias: bool) -> None:
        super().__init__(config)
        self._has_attention = has_attention
        self._taps = taps
        self._conv_bias = conv_bias

    @classmethod
    def read(cls, raw: Raw) -> Lfm2:
        """Return the decoder that a text config describes."""
        full = {**DEFAULTS, **raw}
        sizes = {
            "hidden_act": "silu",
            "rms_norm_eps": full["norm_eps"],
            "intermediate_size": _inner_size(full),
            "attention_bias": False,
            "mlp_bias": False,
        }
        taps = full["conv_L_cache"]
        if not isinstance(taps, int) or taps < 2:
            raise UnsupportedConfigError(f"text_config.conv_L_cache {taps!r}: a convolution spans 2 tokens at least")
        config = read_sizes({**full, **sizes}, qkv_bias=False)
        return cls(config, _attention_layers(full, config.num_layers), taps, conv_bias=bool(full["conv_bias"]))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return a convolution or attention with norms of queries and keys, and a gated feed-forward."""
        config = self.config
        if not self._has_attention[number]:
            convolution = ShortConvolution(config.hidden_size, self._taps, bias=self._conv_bias)
            return _ConvolutionLayer(config, dialect, convolution)
        query_norm, key_norm = (
            RMSNorm(config.head_size, config.rms_norm_eps, dialect, name=f"{part}_layernorm") for part in "qk"
        )
        attention = CachedAttention(config, dialect, number, (query_norm, key_norm), out_name="out_proj")
        return _AttentionLayer(config, dialect, attention)

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer, which the checkpoint names as if it stood before the first."""
        return RMSNorm(self.config.hidden_size, self.config.rms_norm_eps, dialect, name="embedding_norm")

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return keys and values, or the last inputs of a convolution, as transformers.js names them."""
        if self._has_attention[number]:
            return super().states_of(number)
        return (
            State(
                input=f"past_conv.{number}",
                output=f"present_conv.{number}",
                kind="fixed",
                dtype="float32",
                shape=("B", self._taps - 1, self.config.hidden_size),
            ),
        )


def _inner_size(full: Raw) -> int:
    """Return the width inside the feed-forward: two thirds of what is stated, in whole blocks."""
    stated = int(full.get("block_ff_dim") or full["intermediate_size"])
    if not full["block_auto_adjust_ff_dim"]:
        return stated
    inner, block, multiplier = int(2 * stated / 3), full["block_multiple_of"], full["block_ffn_dim_multiplier"]
    return inner if multiplier is None else -(-int(multiplier * inner) // block) * block


def _attention_layers(full: Raw, num_layers: int) -> tuple[bool, ...]:
    """Return of each layer whether it is attention.

    Raises:
        UnsupportedConfigError: A layer of another kind, another number of them, or none with attention.
    """
    kinds = full.get("layer_types")
    if kinds is None:
        with_attention = full.get("full_attn_idxs")
        chosen = range(num_layers) if with_attention is None else with_attention
        kinds = [_ATTENTION if number in chosen else _CONVOLUTION for number in range(num_layers)]
    if len(kinds) != num_layers or not {_ATTENTION} <= set(kinds) <= {_ATTENTION, _CONVOLUTION}:
        raise UnsupportedConfigError(
            f"text_config.layer_types {kinds!r:.200}: wanted is one of {_ATTENTION} and {_CONVOLUTION} for each of the "
            f"{num_layers} layers, {_ATTENTION} of one at least"
        )
    return tuple(kind == _ATTENTION for kind in kinds)
