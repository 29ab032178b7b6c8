"""ModernBERT (Warner et al., arXiv 2412.13663): rotary positions, gated MLPs, windows in most layers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, require
from export.nn.dialect import Dialect
from export.nn.linear import Embedding, Linear, PackedLinear, activation
from export.nn.module import Module, ModuleList
from export.nn.norms import LayerNorm
from export.nn.reach import within_reach
from export.nn.rotary import Angles, rotary_angles
from export.nn.vit import tower_heads
from export.rope import RopeConfig

DEFAULTS: Raw = {
    "vocab_size": 50_368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "classifier_pooling": "cls",
    "classifier_bias": False,
    "classifier_activation": "gelu",
}
"""Of transformers."""
_WHOLE, _WINDOW = "full_attention", "sliding_attention"
_THETAS = {_WHOLE: ("global_rope_theta", 160_000.0), _WINDOW: ("local_rope_theta", 10_000.0)}


@dataclass(frozen=True)
class ModernBertConfig:
    """Sizes and switches.

    Attributes:
        tower: Layers.
        vocab_size: Ids are below it.
        max_tokens: Longest text.
        kinds: Of each layer: "full_attention" or "sliding_attention".
        ropes: By kind.
        reach: Tokens that a layer with a window sees to each side of a token.
        norm_bias: Norms have a bias.
        attention_bias: So have the matrices of attention.
        mlp_bias: And of MLPs.
    """

    tower: TowerConfig
    vocab_size: int
    max_tokens: int
    kinds: tuple[str, ...]
    ropes: dict[str, RopeConfig]
    reach: int
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def read(cls, raw: Raw) -> ModernBertConfig:
        """Return the tower of a config, as transformers 4 or 5 writes it.

        Raises:
            UnsupportedConfigError: A layer of another kind, or positions that are scaled.
        """
        full = {**DEFAULTS, **raw}
        tower = TowerConfig.read(
            {**full, "hidden_act": full["hidden_activation"], "layer_norm_eps": full["norm_eps"]}, {}
        )
        every = int(full["global_attn_every_n_layers"])
        kinds = full.get("layer_types") or [_WINDOW if at % every else _WHOLE for at in range(tower.num_layers)]
        if len(kinds) != tower.num_layers or (unknown := set(kinds) - {_WHOLE, _WINDOW}):
            raise UnsupportedConfigError(
                f"layer_types {sorted(unknown) if len(kinds) == tower.num_layers else len(kinds)}: built are "
                f"{_WHOLE} and {_WINDOW}, one for each of {tower.num_layers} layers"
            )
        require(full, [("rope_scaling", None)])
        return cls(
            tower=tower,
            vocab_size=int(full["vocab_size"]),
            max_tokens=int(full["max_position_embeddings"]),
            kinds=tuple(kinds),
            ropes={kind: _rope(full, kind) for kind in sorted(set(kinds))},
            reach=int(full["local_attention"]) // 2,
            norm_bias=bool(full["norm_bias"]),
            attention_bias=bool(full["attention_bias"]),
            mlp_bias=bool(full["mlp_bias"]),
        )

    def norm(self, name: str | None = None) -> LayerNorm:
        """Return a norm over the tower's width."""
        return LayerNorm(self.tower.hidden_size, self.tower.layer_norm_eps, bias=self.norm_bias, name=name)


def _rope(full: Raw, kind: str) -> RopeConfig:
    """Return how layers of a kind turn."""
    stated = (full.get("rope_parameters") or {}).get(kind) or {}
    older, default = _THETAS[kind]
    rope = RopeConfig.read({"rope_parameters": {"rope_theta": full.get(older, default), **stated}})
    if rope.kind != "default":
        raise UnsupportedConfigError(f"rope_parameters.{kind}.rope_type is {rope.kind!r}; built is 'default'")
    return rope


@dataclass(frozen=True)
class _Seen:
    """What layers of a kind need to know of the tokens."""

    angles: Angles
    bias: ir.Value


class _Attention(Module):
    def __init__(self, config: ModernBertConfig, dialect: Dialect) -> None:
        super().__init__()
        size, bias = config.tower.hidden_size, config.attention_bias
        sources = ("Wqkv.weight", "Wqkv.bias" if bias else None)
        parts = ("query", "key", "value")
        self.query, self.key, self.value = (
            PackedLinear(size, part, name, sources, rows=config.max_tokens) for part, name in enumerate(parts)
        )
        self.out = Linear(size, size, rows=config.max_tokens, bias=bias, name="Wo")
        self.heads, self.dialect = tower_heads(config.tower), dialect

    def forward(self, op: OpBuilder, x: ir.Value, seen: _Seen) -> ir.Value:
        cos, sin = seen.angles.cos, seen.angles.sin
        query, key = (self.dialect.rotary(op, each(op, x), cos, sin, self.heads.num) for each in (self.query, self.key))
        return self.out(op, self.dialect.attention(op, query, key, self.value(op, x), self.heads, seen.bias))


class _GatedMLP(Module):
    """The activated half of a matrix times the other half (section 2.1.1: GeGLU)."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        size, inner, rows = config.tower.hidden_size, config.tower.intermediate_size, config.max_tokens
        self.wide = Linear(size, 2 * inner, rows=rows, bias=config.mlp_bias, name="Wi")
        self.narrow = Linear(inner, size, rows=rows, bias=config.mlp_bias, name="Wo")
        self.hidden_act = config.tower.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        value, gate = op.Split(self.wide(op, x), num_outputs=2, axis=-1, _outputs=2)
        return self.narrow(op, op.Mul(activation(op, self.hidden_act, value), gate))


class _Layer(Module):
    """Pre-norm attention and MLP; the first layer's input is normed by the embeddings already."""

    def __init__(self, config: ModernBertConfig, dialect: Dialect, *, is_first: bool) -> None:
        super().__init__()
        self.attn_norm = None if is_first else config.norm()
        self.attn = _Attention(config, dialect)
        self.mlp_norm = config.norm()
        self.mlp = _GatedMLP(config)

    def forward(self, op: OpBuilder, x: ir.Value, seen: _Seen) -> ir.Value:
        normed = x if self.attn_norm is None else self.attn_norm(op, x)
        x = op.Add(x, self.attn(op, normed, seen))
        return op.Add(x, self.mlp(op, self.mlp_norm(op, x)))


class ModernBertEmbeddings(Module):
    """Words, normed."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.tok_embeddings = Embedding(config.vocab_size, config.tower.hidden_size)
        self.norm = config.norm()

    def forward(self, op: OpBuilder, input_ids: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T] int64."""
        return self.norm(op, self.tok_embeddings(op, input_ids))


class ModernBertLayers(Module):
    """Normed words to hidden states.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it; "": where the module around is.
    """

    def __init__(self, config: ModernBertConfig, dialect: Dialect, name: str = "") -> None:
        super().__init__(name)
        layers = [_Layer(config, dialect, is_first=at == 0) for at in range(config.tower.num_layers)]
        self.layers = ModuleList(layers)
        self.final_norm = config.norm()
        self.config = config

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value, bias: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D].

        Args:
            op: The builder.
            x: Normed words.
            position_ids: [B, T] int64.
            bias: [B, 1, T, T] added to scores: 0 where a token may look, whatever its layer's window.
        """
        seen = {kind: self._seen(op, kind, position_ids, bias) for kind in self.config.ropes}
        for layer, kind in zip(self.layers, self.config.kinds, strict=True):
            x = layer(op, x, seen[kind])
        return self.final_norm(op, x)

    def _seen(self, op: OpBuilder, kind: str, position_ids: ir.Value, bias: ir.Value) -> _Seen:
        tower = self.config.tower
        head_size = tower.hidden_size // tower.num_heads
        angles = rotary_angles(op, position_ids, self.config.ropes[kind], head_size, f"{kind}_inverse_frequencies")
        if kind == _WHOLE:
            return _Seen(angles, bias)
        return _Seen(angles, within_reach(op, position_ids, bias, self.config.reach))
