"""MobileCLIP's text tower (arXiv 2311.17049, section 4.1), in the names of apple/ml-mobileclip.

Of S0 the first and the last layer mix words by a convolution along the text (Text-RepMixer), and those between attend;
of the others all attend. Nothing masks padding: a text is read to the longest length, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.nn.convolution import Pointwise
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Embedding, Linear, PackedLinear
from export.nn.merged_conv import Branch, MergedConv
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.residual_block import Projection
from export.nn.vit import attention_bias
from export.towers.fastvit import mixer_branches

_EPS = 1e-5
"""Of layer norms."""
_SIDE, _RATIO = 11, 4
"""Words that a mixer sees at once, and how much wider its feed-forward is inside (RepMixerBlock's defaults)."""
_UNIT = 16
"""Inner widths of layers that attend are multiples of it."""
_KINDS = ("base", "mct")
_PACKED = ("1.qkv_proj.weight", "1.qkv_proj.bias")


@dataclass(frozen=True)
class MobileClipTextConfig:
    """Sizes.

    Attributes:
        width: D.
        vocab_size: Ids are below it.
        num_tokens: Of every text, padding among them.
        inner: Of the feed-forward of each layer that attends.
        heads: Of the same layers.
        mixes: A layer that mixes by convolution stands before those that attend, and one behind.
        is_causal: A word sees those before it.
    """

    width: int
    vocab_size: int
    num_tokens: int
    inner: tuple[int, ...]
    heads: tuple[int, ...]
    mixes: bool
    is_causal: bool

    @classmethod
    def read(cls, raw: Raw) -> MobileClipTextConfig:
        """Return the tower of a `text_cfg`.

        Raises:
            UnsupportedConfigError: A switch that is not built, or heads that do not divide the width.
        """
        kind, norm = raw.get("model_name"), raw.get("norm_layer", "layer_norm_fp32")
        if kind not in _KINDS or norm not in ("layer_norm", "layer_norm_fp32") or raw.get("no_pos_embedding", False):
            raise UnsupportedConfigError(
                f"text_cfg.model_name {kind!r}, norm_layer {norm!r}, no_pos_embedding "
                f"{raw.get('no_pos_embedding', False)!r}; built are {' and '.join(_KINDS)} with layer_norm or "
                "layer_norm_fp32 and positions"
            )
        width, num = int(raw["dim"]), int(raw["n_transformer_layers"])
        ratios = _of_layers(raw["ffn_multiplier_per_layer"], num, "ffn_multiplier_per_layer")
        heads = _of_layers(raw["n_heads_per_layer"], num, "n_heads_per_layer")
        if any(width % each for each in heads):
            raise UnsupportedConfigError(f"text_cfg.dim {width} is not a multiple of n_heads_per_layer {heads}")
        return cls(
            width,
            int(raw["vocab_size"]),
            int(raw["context_length"]),
            tuple(math.ceil(width * float(ratio) / _UNIT) * _UNIT for ratio in ratios),
            tuple(int(each) for each in heads),
            mixes=kind == "mct",
            is_causal=bool(raw["causal_masking"]),
        )


def _of_layers(given: Any, num: int, key: str) -> Sequence[Any]:
    found = given if isinstance(given, list) else [given] * num
    if len(found) != num:
        raise UnsupportedConfigError(f"text_cfg.{key} lists {len(found)} layers of {num}")
    return found


class _Along(Module):
    """Each channel convolved along the text by itself, from one convolution or from branches of training."""

    def __init__(self, channels: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.reparam_conv = MergedConv((channels, channels), _SIDE, branches, groups=channels, is_flat=True)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, D, 1, T] from the same."""
        return self.reparam_conv(op, x)


class _FeedForward(Module):
    def __init__(self, channels: int, *, rows: int) -> None:
        super().__init__()
        self.conv = _Along(channels, [Branch("conv.weight", _SIDE, norm="bn")])
        self.fc1 = Pointwise(channels, _RATIO * channels, rows=rows)
        self.fc2 = Pointwise(_RATIO * channels, channels, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, 1, T, D] from [B, D, 1, T]."""
        last = op.Transpose(self.conv(op, x), perm=[0, 2, 3, 1])
        return self.fc2(op, op.Gelu(self.fc1(op, last)))


class _MixerLayer(Module):
    """Words mixed by a convolution, then a feed-forward that begins with another."""

    def __init__(self, channels: int, *, rows: int) -> None:
        super().__init__()
        self.token_mixer = _Along(channels, mixer_branches(_SIDE, has_scale=False))
        self.mlp = _FeedForward(channels, rows=rows)
        self.gamma = Weight(channels, 1, 1, name="layer_scale.gamma")

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Return [B, T, D] from [B, T, D]; what a word may look at is no question here."""
        mixed = self.token_mixer(op, op.Unsqueeze(op.Transpose(x, perm=[0, 2, 1]), [2]))
        fed = op.Transpose(self.mlp(op, mixed), perm=[0, 3, 1, 2])
        both = op.Add(mixed, op.Mul(fed, self.gamma))
        return op.Transpose(op.Squeeze(both, [2]), perm=[0, 2, 1])


class _Attention(Module):
    """A norm, and attention among words."""

    def __init__(self, width: int, num_heads: int, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, _EPS, name="0")
        self.query, self.key, self.value = (
            PackedLinear(width, part, f"1.{name}_proj", _PACKED, rows=rows) for part, name in enumerate("qkv")
        )
        self.out = Linear(width, width, rows=rows, name="1.out_proj")
        size = width // num_heads
        self.heads, self.dialect = Heads(num_heads, num_heads, size, float(size) ** -0.5), dialect

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        normed = self.norm(op, x)
        query, key, value = (each(op, normed) for each in (self.query, self.key, self.value))
        return self.out(op, self.dialect.attention(op, query, key, value, self.heads, bias))


class _Inner(Module):
    """A norm, and two matrices."""

    def __init__(self, width: int, inner: int, *, rows: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, _EPS, name="0")
        self.wide, self.narrow = Linear(width, inner, rows=rows, name="1"), Linear(inner, width, rows=rows, name="4")

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.narrow(op, op.Gelu(self.wide(op, self.norm(op, x))))


class _Layer(Module):
    def __init__(self, width: int, inner: int, num_heads: int, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.pre_norm_mha = _Attention(width, num_heads, dialect, rows=rows)
        self.pre_norm_ffn = _Inner(width, inner, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        x = op.Add(x, self.pre_norm_mha(op, x, bias))
        return op.Add(x, self.pre_norm_ffn(op, x))


class MobileClipText(Module):
    """Token ids to the vector of a text: what the token of the highest id became, and a matrix.

    Args:
        config: Sizes.
        dialect: How attention is written.
        embedding_size: E.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: MobileClipTextConfig, dialect: Dialect, embedding_size: int, name: str) -> None:
        super().__init__(name)
        width, rows = config.width, config.num_tokens
        self.embedding_layer = Embedding(config.vocab_size, width)
        self.places = Weight(1, 1, rows, width, name="positional_embedding.pos_embed.pos_embed")
        layers: list[Module] = [
            _Layer(width, inner, heads, dialect, rows=rows)
            for inner, heads in zip(config.inner, config.heads, strict=True)
        ]
        if config.mixes:
            layers = [_MixerLayer(width, rows=rows), *layers, _MixerLayer(width, rows=rows)]
        self.transformer = ModuleList(layers)
        self.final_layer_norm = LayerNorm(width, _EPS)
        self.projection = Projection(width, embedding_size, "projection_layer")
        self.is_causal = config.is_causal

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        """Return [B, E] from [B, T] ids and mask; T is the longest text's."""
        places = op.Slice(op.Squeeze(self.places, [0]), [0], op.Shape(input_ids, start=1, end=2), [1])
        x = op.Add(self.embedding_layer(op, input_ids), places)
        bias = attention_bias(op, attention_mask, is_causal=True) if self.is_causal else None
        for layer in self.transformer:
            x = layer(op, x, bias)
        end = op.ArgMax(input_ids, axis=1, keepdims=1)
        return self.projection(op, self.final_layer_norm(op, op.GatherND(x, end, batch_dims=1)))
