"""Gemma 2 (arXiv 2408.00118): four norms a layer, windows in every other one, scores and logits that are capped."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.gemma import Gemma, GemmaNorm
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module

DEFAULTS: Raw = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
SLIDING, FULL = "sliding_attention", "full_attention"
_PATTERN = 2
"""Every so many layers one sees everything."""


class FourNorms(Module):
    """Attention and feed-forward, each between two norms, added to what came in.

    Args:
        config: Sizes of the norms.
        dialect: How they are written.
        attention: As `export.nn.attention.CachedAttention`.
        feed_forward: [B, T, D] -> [B, T, D].
        angles: Which of the decoder's angles the layer turns by.
    """

    def __init__(
        self, config: DecoderConfig, dialect: Dialect, attention: Module, feed_forward: Module, angles: int = 0
    ) -> None:
        super().__init__()
        norms = [GemmaNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(4)]
        self.input_layernorm, self.post_attention_layernorm = norms[:2]
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norms[2:]
        self.self_attn = attention
        self.mlp = feed_forward
        self.angles = angles

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values."""
        normed, past = self.input_layernorm(op, x), CacheRows(*states)
        attended, present, queries = self.self_attn(op, normed, around.angles[self.angles], past, around.lengths)
        x = op.Add(x, self.post_attention_layernorm(op, attended))
        fed = self.mlp(op, self.pre_feedforward_layernorm(op, x))
        return Left(op.Add(x, self.post_feedforward_layernorm(op, fed)), (present.key, present.value), queries)


class Gemma2(Gemma):
    """`model_type` gemma2.

    Args:
        config: Sizes.
        windows: Rows that the tokens of each layer see; None: all.
        scale: Of scores.
        caps: c of scores and of logits, as of `Heads` and `Decoder.logit_softcap`.
    """

    def __init__(
        self, config: DecoderConfig, windows: tuple[int | None, ...], scale: float, caps: tuple[float, float]
    ) -> None:
        super().__init__(config)
        self._windows, self._scale, self._caps = windows, scale, caps

    @classmethod
    def read(cls, raw: Raw) -> Gemma2:
        """Return the decoder that a text config describes."""
        merged = {**DEFAULTS, **raw}
        caps = merged["attn_logit_softcapping"] or 0.0, merged["final_logit_softcapping"] or 0.0
        return cls(read_gemma(merged), read_windows(merged, _PATTERN), read_scale(merged), caps)

    def window_of(self, number: int) -> int | None:
        """Return how many rows the tokens of a layer see; None: all."""
        return self._windows[number]

    @property
    def logit_softcap(self) -> float:
        """The c of logits; 0: none."""
        return self._caps[1]

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a gated feed-forward, each between two norms."""
        config = self.config
        attention = CachedAttention(config, dialect, number, scale=self._scale, softcap=self._caps[0])
        return FourNorms(config, dialect, attention, GatedMLP(config))


def read_gemma(merged: Raw) -> DecoderConfig:
    """Return the sizes in a config of Gemma 2 or 3, with the defaults of its kind.

    Raises:
        UnsupportedConfigError: Texts that see what comes behind them, or as `read_sizes`.
    """
    if merged.get("use_bidirectional_attention"):
        raise UnsupportedConfigError(
            "text_config.use_bidirectional_attention: texts that see what comes behind them are not built"
        )
    # transformers reads no mlp_bias, and the activation under this name alone
    sizes = {**merged, "mlp_bias": False, "hidden_act": merged["hidden_activation"]}
    return read_sizes(sizes, qkv_bias=bool(merged.get("attention_bias", False)))


def read_scale(merged: Raw) -> float:
    """Return what scores are multiplied by."""
    scale: float = float(merged["query_pre_attn_scalar"]) ** -0.5
    return scale


def read_windows(merged: Raw, pattern: int) -> tuple[int | None, ...]:
    """Return how many rows the tokens of each layer see; None: all that the model has positions for.

    Args:
        merged: With the defaults of its kind.
        pattern: Every so many layers one sees everything, where the config does not list their kinds.

    Raises:
        UnsupportedConfigError: Kinds of layers that are not built, or not one for each layer.
    """
    num_layers, window = merged["num_hidden_layers"], merged["sliding_window"]
    kinds = merged.get("layer_types") or [
        FULL if number % pattern == 0 else SLIDING for number in range(1, num_layers + 1)
    ]
    if set(kinds) - {SLIDING, FULL} or len(kinds) != num_layers:
        raise UnsupportedConfigError(
            f"text_config.layer_types lists {len(kinds)} layers of the kinds {', '.join(sorted(set(kinds)))}; built "
            f"are {SLIDING} and {FULL}, one for each of the {num_layers} layers"
        )
    if SLIDING in kinds and (not isinstance(window, int) or window < 1):
        raise UnsupportedConfigError(
            f"text_config.sliding_window {window!r}: layers of kind {SLIDING} need a number of tokens, 1 at least"
        )
    is_short = window is not None and window < merged["max_position_embeddings"]
    return tuple(window if kind == SLIDING and is_short else None for kind in kinds)
