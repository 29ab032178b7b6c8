"""GLM-OCR's decoder (zai-org/GLM-OCR): GLM-4 with four norms a layer, turned by time, height and width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.qwen2_5_vl_text import Qwen25VLText, read_sections
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.linear import Linear, PackedLinear, activation
from export.nn.module import Module
from export.nn.norms import RMSNorm

DEFAULTS: Raw = {
    "vocab_size": 59_392,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
}
_DEFAULT_SECTIONS = (8, 12, 12)
_PACKED = "gate_up_proj.weight"


class _MLP(Module):
    """A gated feed-forward whose first two matrices the checkpoint keeps as one."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate, self.up = (
            PackedLinear(size, part, f"{name}_proj", (_PACKED, None), rows=None, out_size=inner)
            for part, name in enumerate(("gate", "up"))
        )
        self.down_proj = Linear(inner, size, rows=None, bias=False)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        gate = activation(op, self.hidden_act, self.gate(op, x))
        return self.down_proj(op, op.Mul(gate, self.up(op, x)))


class _Layer(Module):
    """Attention and feed-forward, each between two norms."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, number: int) -> None:
        super().__init__()
        norms = [RMSNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(4)]
        self.input_layernorm, self.post_self_attn_layernorm = norms[:2]
        self.post_attention_layernorm, self.post_mlp_layernorm = norms[2:]
        self.self_attn = CachedAttention(config, dialect, number)
        self.mlp = _MLP(config)

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        normed, past = self.input_layernorm(op, x), CacheRows(*states)
        attended, present, queries = self.self_attn(op, normed, around.first_angles, past, around.lengths)
        x = op.Add(x, self.post_self_attn_layernorm(op, attended))
        fed = self.mlp(op, self.post_attention_layernorm(op, x))
        return Left(op.Add(x, self.post_mlp_layernorm(op, fed)), (present.key, present.value), queries)


class GlmOcrText(Qwen25VLText):
    """`model_type` glm_ocr_text."""

    @classmethod
    def read(cls, raw: Raw) -> GlmOcrText:
        """Return the decoder that a text config describes."""
        # transformers reads no biases
        config = read_sizes({**DEFAULTS, **raw, "attention_bias": False, "mlp_bias": False}, qkv_bias=False)
        sections = read_sections(raw, _DEFAULT_SECTIONS, config.head_size)
        interleaved = replace(config.rope, is_interleaved=True)
        return cls(replace(config, rope=interleaved), np.repeat(np.arange(len(sections)), sections))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a gated feed-forward, each between two norms."""
        return _Layer(self.config, dialect, number)
