"""Ministral 3 (Mistral AI, 2025): a Mistral turned by YaRN, whose queries grow with their position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw
from export.decoders.mistral import Mistral
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, DecoderLayer, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.rotary import Angles

_ROPE: Raw = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
DEFAULTS: Raw = {
    "vocab_size": 131_072,
    "num_hidden_layers": 34,
    "head_dim": 128,
    "max_position_embeddings": 262_144,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}
"""Where they are others than Mistral's."""


class _Layer(DecoderLayer):
    """A layer whose queries turn by angles of their own, which make them longer."""

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values."""
        of_keys, of_queries = around.angles
        normed, past = self.input_layernorm(op, x), CacheRows(*states)
        attended, present, queries = self.self_attn(op, normed, of_keys, past, around.lengths, of_queries)
        x = op.Add(x, attended)
        x = op.Add(x, self.mlp(op, self.post_attention_layernorm(op, x)))
        return Left(x, (present.key, present.value), queries)


class Ministral3(Mistral):
    """`model_type` ministral3.

    Args:
        config: Sizes.
        window: Rows that the tokens of every layer see; None: all.
        growth: By how much queries grow with the logarithm of how often the context of training came before them.
        original_positions: The context of training.
    """

    def __init__(self, config: DecoderConfig, window: int | None, growth: float, original_positions: int) -> None:
        super().__init__(config, window)
        self._growth = growth
        self._original_positions = original_positions

    @classmethod
    def read(cls, raw: Raw) -> Ministral3:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: Nothing says how queries grow.
        """
        given: dict[str, Any] = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or _ROPE)
        growth, original = given.get("llama_4_scaling_beta"), given.get("original_max_position_embeddings")
        if growth is None or not original:
            raise UnsupportedConfigError(
                f"text_config.rope_parameters {given!r}: a ministral3 wants llama_4_scaling_beta and "
                "original_max_position_embeddings, by which its queries grow"
            )
        plain = Mistral.read({**DEFAULTS, **raw, "rope_scaling": None, "rope_parameters": given})
        return cls(plain.config, plain.window_of(0), float(growth), int(original))

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return the angles of keys, and those of queries, scaled by 1 + b log(1 + floor(position / context)).

        What turns is linear: cos and sin times a number make queries times that number (Llama 4's temperature, of
        which Meta's release says that attention over long texts gets too flat).
        """
        (of_keys,) = super().angles(op, position_ids)
        passed = op.Cast(op.Div(position_ids, self._original_positions), to=ir.DataType.FLOAT)
        scale = op.Unsqueeze(op.Add(op.Mul(op.Log(op.Add(passed, 1.0)), self._growth), 1.0), [2])
        return of_keys, Angles(op.Mul(of_keys.cos, scale), op.Mul(of_keys.sin, scale))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a gated feed-forward."""
        attention = CachedAttention(self.config, dialect, number)
        return _Layer(self.config, dialect, attention, GatedMLP(self.config))
