"""T5Gemma 2's encoder (arXiv 2512.14856): Gemma 3's layers over a whole text, features of an image in their places."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.decoders.gemma import GemmaNorm
from export.decoders.gemma3_text import Gemma3Text
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Embedding, Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList, Weight
from export.nn.rotary import Angles
from export.nn.vit import MASKED


class EndedEmbedding(Module):
    """Rows of a table, scaled; the token that ends an image has another row.

    Args:
        config: Sizes.
        scale: Of the table's rows.
        end_id: Of that token.
        name: Where the checkpoint keeps it; the attribute's name by default.
    """

    def __init__(self, config: DecoderConfig, scale: float, end_id: int, name: str | None = None) -> None:
        super().__init__(name)
        self.table = Embedding(config.vocab_size, config.hidden_size, name="", scale=scale)
        self.eoi_embedding = Weight(config.hidden_size)
        self.end_id = end_id

    def forward(self, op: OpBuilder, ids: ir.Value) -> ir.Value:
        """Return [B, T, D] of ids [B, T]."""
        is_end = op.Unsqueeze(op.Equal(ids, self.end_id), [2])
        return op.Where(is_end, self.eoi_embedding, self.table(op, ids))


class _Attention(Module):
    """Grouped queries over the whole text, or over a window around each token."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, scale: float, rows: int) -> None:
        super().__init__()
        size, num, num_kv = config.head_size, config.num_heads, config.num_kv_heads
        self.q_proj = Linear(config.hidden_size, num * size, rows=rows, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, num_kv * size, rows=rows, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, num_kv * size, rows=rows, bias=config.qkv_bias)
        self.o_proj = Linear(num * size, config.hidden_size, rows=rows, bias=config.out_bias)
        self.q_norm, self.k_norm = (GemmaNorm(size, config.rms_norm_eps, dialect) for _ in range(2))
        self.heads = Heads(num, num, size, scale)
        self.num_kv, self.dialect = num_kv, dialect

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles, bias: ir.Value | None) -> ir.Value:
        query = self._turned(op, self.q_norm, self.q_proj(op, x), angles, self.heads.num)
        key = self._repeated(op, self._turned(op, self.k_norm, self.k_proj(op, x), angles, self.num_kv))
        value = self._repeated(op, self.v_proj(op, x))
        return self.o_proj(op, self.dialect.attention(op, query, key, value, self.heads, bias))

    def _turned(self, op: OpBuilder, norm: Module, x: ir.Value, angles: Angles, num: int) -> ir.Value:
        size = self.heads.size
        normed = op.Reshape(norm(op, op.Reshape(x, [0, 0, num, size])), [0, 0, num * size])
        return self.dialect.rotary(op, normed, angles.cos, angles.sin, num)

    def _repeated(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, T, H*C] from [B, T, K*C], each head as often as queries share it."""
        num, size = self.heads.num, self.heads.size
        if num == self.num_kv:
            return x
        apart = op.Reshape(x, [0, 0, self.num_kv, 1, size])
        return op.Reshape(op.Expand(apart, [1, 1, 1, num // self.num_kv, 1]), [0, 0, num * size])


class _Layer(Module):
    def __init__(self, config: DecoderConfig, dialect: Dialect, scale: float, rows: int) -> None:
        super().__init__()
        norms = [GemmaNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(4)]
        self.pre_self_attn_layernorm, self.post_self_attn_layernorm = norms[:2]
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norms[2:]
        self.self_attn = _Attention(config, dialect, scale, rows)
        self.mlp = GatedMLP(config, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles, bias: ir.Value | None) -> ir.Value:
        attended = self.self_attn(op, self.pre_self_attn_layernorm(op, x), angles, bias)
        x = op.Add(x, self.post_self_attn_layernorm(op, attended))
        fed = self.mlp(op, self.pre_feedforward_layernorm(op, x))
        return op.Add(x, self.post_feedforward_layernorm(op, fed))


class GemmaEncoder(Module):
    """Features of an image and ids of a text to normed hidden states.

    Args:
        sizes: Gemma 3's decoder of the same sizes.
        window: Tokens around one that it sees in layers with windows.
        words: Ids to rows.
        image: Id in whose places features stand, and how many these are.
        dialect: How attention is written.
        rows: Tokens of a usual text.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self,
        sizes: Gemma3Text,
        window: int,
        words: Module,
        image: tuple[int, int],
        dialect: Dialect,
        *,
        rows: int,
        name: str,
    ) -> None:
        super().__init__(name)
        config = sizes.config
        self.embed_tokens = words
        self.layers = ModuleList([_Layer(config, dialect, sizes.scale, rows) for _ in range(config.num_layers)])
        self.norm = GemmaNorm(config.hidden_size, config.rms_norm_eps, dialect)
        self.sizes, self.window, self.image = sizes, window, image

    def forward(self, op: OpBuilder, features: ir.Value, ids: ir.Value) -> ir.Value:
        """Return [I, Q, D] of features [I, P, D] and ids [I, Q], P of them the image's, one behind the other.

        All texts of a run are one, so that the first says where the image stands.
        """
        image_id, num = self.image
        x = self.embed_tokens(op, ids)
        first = op.ArgMax(op.Cast(op.Equal(op.Slice(ids, [0], [1], [0]), image_id), to=ir.DataType.INT32), axis=1)
        start = op.Reshape(first, [1])
        before, behind = op.Slice(x, [0], start, [1]), op.Slice(x, op.Add(start, num), [2**31 - 1], [1])
        x = op.Concat(before, features, behind, axis=1)
        places = op.Unsqueeze(op.Range(0, op.Squeeze(op.Shape(x, start=1, end=2), [0]), 1), [0])
        angles, bias = self.sizes.angles(op, op.Expand(places, op.Shape(x, start=0, end=2))), self._bias(op, places)
        for number, layer in enumerate(self.layers):
            kind = self.sizes.angles_of(number)
            x = layer(op, x, angles[kind], bias if self.sizes.has_window(number) else None)
        return self.norm(op, x)

    def _bias(self, op: OpBuilder, places: ir.Value) -> ir.Value:
        """Return [1, 1, T, T]: 0 where a token is within the window around another of places [1, T].

        Half of it stands before a token, itself among them, the rest behind (transformers,
        `sliding_window_mask_function`).
        """
        apart = op.Sub(op.Unsqueeze(places, [2]), op.Unsqueeze(places, [1]))
        before, behind = (self.window + 1) // 2, self.window // 2 + 1
        is_seen = op.And(op.Less(apart, before), op.Greater(apart, -behind))
        return op.Unsqueeze(op.Where(is_seen, 0.0, MASKED), [1])
