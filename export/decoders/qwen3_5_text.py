"""Qwen3.5's decoder (Qwen3-Next's, without experts): most layers are Gated DeltaNet, the others gated attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.states import State
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.decoder import Decoder
from export.decoders.gemma import GemmaNorm
from export.decoders.qwen2_5_vl_text import read_sections
from export.decoders.qwen3_vl_text import alternating_axes
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.gated_attention import GatedAttention
from export.nn.gated_delta import GatedDeltaNet
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.recurrence import DeltaHeads
from export.nn.rotary import Angles, rotary_angles_by_axis

DEFAULTS: Raw = {
    "vocab_size": 248_320,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_DEFAULT_SECTIONS = (11, 11, 10)
_DEFAULT_PART, _DEFAULT_INTERVAL = 0.25, 4
_ATTENTION, _RECURRENT = "full_attention", "linear_attention"


class _Layer(Module):
    """What mixes tokens, normed before it, then a feed-forward, each with its residual."""

    def __init__(self, config: DecoderConfig, dialect: Dialect) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            GemmaNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(2)
        )
        self.mlp = GatedMLP(config)

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        left = self._mixed(op, self.input_layernorm(op, x), around, states)
        x = op.Add(x, left.hidden)
        return Left(op.Add(x, self.mlp(op, self.post_attention_layernorm(op, x))), left.states, left.queries)

    @abstractmethod
    def _mixed(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what of x [B, T, D] is added to the residual."""


class _AttentionLayer(_Layer):
    def __init__(self, config: DecoderConfig, dialect: Dialect, attention: GatedAttention) -> None:
        super().__init__(config, dialect)
        self.self_attn = attention

    def _mixed(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        attended, present, queries = self.self_attn(op, x, around.angles[0], CacheRows(*states), around.lengths)
        return Left(attended, (present.key, present.value), queries)


class _RecurrentLayer(_Layer):
    def __init__(self, config: DecoderConfig, dialect: Dialect, recurrent: GatedDeltaNet) -> None:
        super().__init__(config, dialect)
        self.linear_attn = recurrent

    def _mixed(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        mixed, after = self.linear_attn(op, x, *states)
        return Left(mixed, after, None)


class Qwen35Text(Decoder):
    """`model_type` qwen3_5_text.

    Args:
        config: Sizes.
        axes: [C/2] the axis by which each pair of a head turns; 0 of those that do not.
        has_attention: Of each layer; the others are recurrent.
        heads: Of recurrent layers.
        taps: Tokens that their convolutions span.
    """

    position_axes = (3,)

    def __init__(
        self,
        config: DecoderConfig,
        axes: npt.NDArray[np.int64],
        has_attention: tuple[bool, ...],
        heads: DeltaHeads,
        taps: int,
    ) -> None:
        super().__init__(config)
        self._axes = axes
        self._has_attention = has_attention
        self._heads = heads
        self._taps = taps

    @classmethod
    def read(cls, raw: Raw) -> Qwen35Text:
        """Return the decoder that a text config describes."""
        full = {**DEFAULTS, **raw}
        _refuse_other_gates(full)
        # transformers reads no mlp_bias
        bias, sizes = bool(full.get("attention_bias", False)), {**full, "mlp_bias": False}
        config = read_sizes(sizes, qkv_bias=bias, default_rotary_part=_DEFAULT_PART)
        turned = config.rope.turned_size(config.head_size)
        axes = alternating_axes(read_sections(raw, _DEFAULT_SECTIONS, turned))
        still = (config.head_size - turned) // 2
        kinds = _attention_layers(full, config.num_layers)
        return cls(config, np.pad(axes, (0, still)), kinds, _heads(full), int(full["linear_conv_kernel_dim"]))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return gated attention or a gated delta rule, and a gated feed-forward."""
        config = self.config
        if not self._has_attention[number]:
            return _RecurrentLayer(config, dialect, GatedDeltaNet(config, dialect, self._heads, self._taps))
        order = config.rope.head_order(config.head_size)
        query_norm, key_norm = (
            GemmaNorm(config.head_size, config.rms_norm_eps, dialect, order=order) for _ in range(2)
        )
        attention = GatedAttention(config, dialect, number, (query_norm, key_norm))
        return _AttentionLayer(config, dialect, attention)

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer, of 1 + w."""
        return GemmaNorm(self.config.hidden_size, self.config.rms_norm_eps, dialect)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return the angles of tokens at `position_ids` [3, B, T]."""
        config = self.config
        return (rotary_angles_by_axis(op, position_ids, config.rope, config.head_size, self._axes),)

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return keys and values, or the last inputs of a convolution and the rule's memory."""
        if self._has_attention[number]:
            return super().states_of(number)
        heads = self._heads
        shapes: dict[str, tuple[int | str, ...]] = {
            "conv": ("B", self._taps - 1, heads.mixed_width),
            "recurrent": ("B", heads.num_values, heads.key_size, heads.value_size),
        }
        return tuple(
            State(
                input=f"past_{kind}.{number}",
                output=f"present_{kind}.{number}",
                kind="fixed",
                dtype="float32",
                shape=shape,
                keeps_float32=kind == "recurrent",
            )
            for kind, shape in shapes.items()
        )


def _refuse_other_gates(full: Raw) -> None:
    """Refuse what decoders of this kind could have and transformers does not read.

    Raises:
        UnsupportedConfigError: Attention without a gate, or another activation than SiLU.
    """
    if full.get("attn_output_gate", True) is not True:
        raise UnsupportedConfigError(
            f"text_config.attn_output_gate {full['attn_output_gate']!r}: attention is built with its gate, as "
            "transformers has it whatever the config says; check that weights and config belong together"
        )
    if full["hidden_act"] not in ("silu", "swish"):
        raise UnsupportedConfigError(
            f"text_config.hidden_act {full['hidden_act']!r}: convolutions and feed-forwards are built with silu"
        )


def _heads(full: Raw) -> DeltaHeads:
    """Return the heads of recurrent layers.

    Raises:
        UnsupportedConfigError: Values that do not share keys evenly, or a convolution of one token.
    """
    heads = DeltaHeads(
        full["linear_num_key_heads"],
        full["linear_num_value_heads"],
        full["linear_key_head_dim"],
        full["linear_value_head_dim"],
    )
    if heads.num_values % heads.num_keys:
        raise UnsupportedConfigError(
            f"text_config.linear_num_value_heads {heads.num_values} is not a multiple of linear_num_key_heads "
            f"{heads.num_keys}"
        )
    if full["linear_conv_kernel_dim"] < 2:
        raise UnsupportedConfigError(
            f"text_config.linear_conv_kernel_dim {full['linear_conv_kernel_dim']}: a convolution spans 2 tokens at "
            "least"
        )
    return heads


def _attention_layers(full: Raw, num_layers: int) -> tuple[bool, ...]:
    """Return of each layer whether it is attention.

    Raises:
        UnsupportedConfigError: A layer of another kind, another number of them, or none with attention.
    """
    kinds = full.get("layer_types")
    if kinds is None:
        interval = full.get("full_attention_interval", _DEFAULT_INTERVAL)
        kinds = [_RECURRENT if number % interval else _ATTENTION for number in range(1, num_layers + 1)]
    if len(kinds) != num_layers or not {_ATTENTION} <= set(kinds) <= {_ATTENTION, _RECURRENT}:
        raise UnsupportedConfigError(
            f"text_config.layer_types {kinds!r:.200}: wanted is one of {_ATTENTION} and {_RECURRENT} for each of the "
            f"{num_layers} layers, {_ATTENTION} of one at least"
        )
    return tuple(kind == _ATTENTION for kind in kinds)
