"""In the place of a decoder in EmbeddingGemma 2 (google/embeddinggemma-2): Gemma 4's layers, looking both ways.

Layers with windows and layers that see everything have heads of different sizes, and turn by different angles. What
every layer lets in of a token's own is made of the token's embedding alone: there is no second table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw
from export.decoders.gemma2 import FULL, SLIDING, read_gemma, read_windows
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, activation
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import BareRMSNorm, RMSNorm
from export.nn.reach import within_reach
from export.nn.rotary import Angles, rotary_angles
from export.nn.shared_heads import for_each_query
from export.rope import RopeConfig

DEFAULTS: Raw = {
    "vocab_size": 262_144,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 262_144,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 512,
    "embedding_dim": 768,
    "pad_token_id": 0,
}
_ROPES: Mapping[str, Raw] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "default", "rope_theta": 1_000_000.0},
}
_WHOLE_HEADS: Raw = {"head_dim": 512, "num_key_value_heads": 1}
"""Of layers that see everything, where a config says nothing of them."""
_PATTERN = 6
"""Every so many layers one sees everything, where the config does not list their kinds."""


@dataclass(frozen=True)
class EmbeddingGemma2Config:
    """Sizes and switches.

    Attributes:
        sizes: Of layers; heads are those of layers with windows.
        kinds: FULL or SLIDING, of each layer.
        heads: By kind.
        ropes: By kind.
        reach: Tokens that a layer with a window sees to each side of a token.
        per_layer: P, numbers of a token for each layer.
        embedding_size: E.
    """

    sizes: DecoderConfig
    kinds: tuple[str, ...]
    heads: Mapping[str, Heads]
    ropes: Mapping[str, RopeConfig]
    reach: int
    per_layer: int
    embedding_size: int

    @classmethod
    def read(cls, raw: Raw) -> EmbeddingGemma2Config:
        """Return the encoder of a text config.

        Raises:
            UnsupportedConfigError: Layers of another kind, or heads of several sizes in layers of one.
        """
        full = {**DEFAULTS, **raw}
        num = int(full["num_hidden_layers"])
        stated = list(full.get("layer_types") or ())
        listed = stated or [FULL if number % _PATTERN == 0 else SLIDING for number in range(1, num + 1)]
        kinds = (*listed[:-1], FULL)  # whatever the config says, as transformers has it
        ropes = {**_ROPES, **(full.get("rope_parameters") or {})}
        whole = {**full, "layer_types": kinds, "rope_parameters": ropes[SLIDING], "rope_scaling": None}
        read_windows(whole, _PATTERN)
        sizes = read_gemma(whole)
        return cls(
            sizes,
            kinds,
            {kind: _heads(full, kinds, kind) for kind in sorted(set(kinds))},
            {kind: RopeConfig.read({"rope_parameters": ropes[kind]}) for kind in sorted(set(kinds))},
            int(full["sliding_window"]),
            int(full["hidden_size_per_layer_input"]),
            int(full["embedding_dim"]),
        )

    def norm(self, dialect: Dialect, size: int | None = None) -> RMSNorm:
        """Return a norm over the encoder's width, or another."""
        return RMSNorm(self.sizes.hidden_size if size is None else size, self.sizes.rms_norm_eps, dialect)


def _heads(full: Raw, kinds: tuple[str, ...], kind: str) -> Heads:
    """Return the heads of layers of a kind; scores are not scaled, for queries and keys are normed."""
    usual = {key: full[key] for key in ("head_dim", "num_key_value_heads")}
    of_layers = full.get("per_layer_config")
    numbers = [str(number) for number, each in enumerate(kinds) if each == kind]
    if of_layers is None:
        found = [{**usual, **(_WHOLE_HEADS if kind == FULL else {})}]
    else:
        found = [{**usual, **(of_layers.get(number) or {})} for number in numbers]
    if any(each != found[0] or set(each) != set(usual) for each in found):
        raise UnsupportedConfigError(
            f"text_config.per_layer_config {of_layers!r}: built are head_dim and num_key_value_heads, one of each for "
            f"all layers of kind {kind}"
        )
    num, num_kv = int(full["num_attention_heads"]), int(found[0]["num_key_value_heads"])
    if num % num_kv:
        raise UnsupportedConfigError(
            f"num_attention_heads {num} is not a multiple of the {num_kv} num_key_value_heads of layers of kind {kind}"
        )
    return Heads(num, num_kv, int(found[0]["head_dim"]), 1.0)


@dataclass(frozen=True)
class _Seen:
    """What layers of a kind need to know of the tokens."""

    angles: Angles
    bias: ir.Value


class _Attention(Module):
    """Grouped queries over the whole input, queries, keys and values normed by head."""

    def __init__(self, config: EmbeddingGemma2Config, heads: Heads, dialect: Dialect) -> None:
        super().__init__()
        width, bias = config.sizes.hidden_size, config.sizes.qkv_bias
        self.q_proj = Linear(width, heads.num * heads.size, rows=None, bias=bias)
        self.k_proj = Linear(width, heads.num_kv * heads.size, rows=None, bias=bias)
        self.v_proj = Linear(width, heads.num_kv * heads.size, rows=None, bias=bias)
        self.o_proj = Linear(heads.num * heads.size, width, rows=None, bias=bias)
        self.q_norm, self.k_norm = (config.norm(dialect, heads.size) for _ in range(2))
        self.v_norm = BareRMSNorm(heads.size, config.sizes.rms_norm_eps, dialect)
        self.heads, self.dialect = heads, dialect

    def forward(self, op: OpBuilder, x: ir.Value, seen: _Seen) -> ir.Value:
        heads, (cos, sin) = self.heads, (seen.angles.cos, seen.angles.sin)
        query = self._normed(op, self.q_norm, self.q_proj(op, x), heads.num)
        key = self._normed(op, self.k_norm, self.k_proj(op, x), heads.num_kv)
        value = self._normed(op, self.v_norm, self.v_proj(op, x), heads.num_kv)
        query = self.dialect.rotary(op, query, cos, sin, heads.num)
        key = self.dialect.rotary(op, key, cos, sin, heads.num_kv)
        key, value = (for_each_query(op, each, heads.num, heads.num_kv, heads.size) for each in (key, value))
        shared = replace(heads, num_kv=heads.num)
        return self.o_proj(op, self.dialect.attention(op, query, key, value, shared, seen.bias))

    def _normed(self, op: OpBuilder, norm: Module, x: ir.Value, num: int) -> ir.Value:
        """Return x [B, T, num*C] with every head normed."""
        apart = op.Reshape(x, [0, 0, num, self.heads.size])
        return op.Reshape(norm(op, apart), [0, 0, num * self.heads.size])


class _OwnNumbers(Module):
    """A gate that lets a token's own numbers in."""

    def __init__(self, config: EmbeddingGemma2Config, dialect: Dialect) -> None:
        super().__init__()
        width, size = config.sizes.hidden_size, config.per_layer
        self.per_layer_input_gate = Linear(width, size, rows=None, bias=False)
        self.per_layer_projection = Linear(size, width, rows=None, bias=False)
        self.post_per_layer_input_norm = config.norm(dialect)
        self.hidden_act = config.sizes.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value, numbers: ir.Value) -> ir.Value:
        """Return [B, T, D] of numbers [B, T, P], as x lets them in."""
        gate = activation(op, self.hidden_act, self.per_layer_input_gate(op, x))
        return self.post_per_layer_input_norm(op, self.per_layer_projection(op, op.Mul(gate, numbers)))


class _Layer(Module):
    """Attention and feed-forward, each between two norms, then a token's own numbers; all of it times a scalar."""

    def __init__(self, config: EmbeddingGemma2Config, heads: Heads, dialect: Dialect) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (config.norm(dialect) for _ in range(2))
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = (config.norm(dialect) for _ in range(2))
        self.self_attn = _Attention(config, heads, dialect)
        self.mlp = GatedMLP(config.sizes)
        self.ple_block = _OwnNumbers(config, dialect)
        self.layer_scalar = Weight(1)

    def forward(self, op: OpBuilder, x: ir.Value, numbers: ir.Value, seen: _Seen) -> ir.Value:
        attended = self.self_attn(op, self.input_layernorm(op, x), seen)
        x = op.Add(x, self.post_attention_layernorm(op, attended))
        fed = self.mlp(op, self.pre_feedforward_layernorm(op, x))
        x = op.Add(x, self.post_feedforward_layernorm(op, fed))
        return op.Mul(op.Add(x, self.ple_block(op, x, numbers)), self.layer_scalar)


class _Numbers(Module):
    """What embeddings say for each layer, normed."""

    def __init__(self, config: EmbeddingGemma2Config, dialect: Dialect) -> None:
        super().__init__()
        width, self.num, self.size = config.sizes.hidden_size, config.sizes.num_layers, config.per_layer
        self.per_layer_model_projection = Linear(width, self.num * self.size, rows=None, bias=False)
        self.per_layer_projection_norm = config.norm(dialect, self.size)
        self.scale = width**-0.5

    def forward(self, op: OpBuilder, x: ir.Value) -> tuple[ir.Value, ...]:
        """Return [B, T, P] of each layer, from [B, T, D]."""
        said = op.Mul(self.per_layer_model_projection(op, x), self.scale)
        normed = self.per_layer_projection_norm(op, op.Reshape(said, [0, 0, self.num, self.size]))
        flat = op.Reshape(normed, [0, 0, self.num * self.size])
        if self.num == 1:
            return (flat,)
        return tuple(op.Split(flat, axis=-1, num_outputs=self.num, _outputs=self.num))


class EmbeddingGemma2Encoder(Module):
    """Embeddings, of words and of images, to normed states.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: EmbeddingGemma2Config, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.ple = _Numbers(config, dialect)
        self.layers = ModuleList([_Layer(config, config.heads[kind], dialect) for kind in config.kinds])
        self.norm = config.norm(dialect)
        self.config = config

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value, bias: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D].

        Args:
            op: The builder.
            x: Embeddings, scaled.
            position_ids: [B, T] int64.
            bias: [B, 1, T, T] added to scores: 0 where a token may look, whatever its layer's window.
        """
        seen = {kind: self._seen(op, kind, position_ids, bias) for kind in self.config.heads}
        numbers = self.ple(op, x)
        for layer, kind, own in zip(self.layers, self.config.kinds, numbers, strict=True):
            x = layer(op, x, own, seen[kind])
        return self.norm(op, x)

    def _seen(self, op: OpBuilder, kind: str, position_ids: ir.Value, bias: ir.Value) -> _Seen:
        rope, size = self.config.ropes[kind], self.config.heads[kind].size
        angles = rotary_angles(op, position_ids, rope, size, f"{kind}_inverse_frequencies")
        return _Seen(angles, bias if kind == FULL else within_reach(op, position_ids, bias, self.config.reach))
