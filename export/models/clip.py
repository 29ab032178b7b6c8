"""CLIP (Radford et al., arXiv 2103.00020): a ViT with a class token and a causal text tower."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, TowerConfig, VisionConfig, sub_config
from export.family import DualEncoder, TextTower
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.vit import Encoder, TextEmbeddings, attention_bias
from export.towers.clip import VISION_DEFAULTS, ClipTower

TEXT_DEFAULTS: Raw = {
    "vocab_size": 49_408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49_407,
}
_EOS_UNSET = 2
"""What old configs say for `eos_token_id`; the end of text is then the highest id of a row."""


class _PooledTower(ClipTower):
    """The tower, and what its class token became."""

    def __init__(self, config: VisionConfig, dialect: Dialect) -> None:
        super().__init__(config, dialect, "vision_model")
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        passed = super().forward(op, pixel_values)
        return self.post_layernorm(op, op.Gather(passed.states[-1], 0, axis=1))


class _Vision(Module):
    def __init__(self, config: VisionConfig, dialect: Dialect, embedding_size: int) -> None:
        super().__init__()
        self.vision_model = _PooledTower(config, dialect)
        self.visual_projection = Linear(config.tower.hidden_size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.visual_projection(op, self.vision_model(op, pixel_values))


class _TextTower(Module):
    def __init__(self, tower: TowerConfig, raw: Raw, dialect: Dialect) -> None:
        super().__init__("text_model")
        self.embeddings = TextEmbeddings(raw["vocab_size"], raw["max_position_embeddings"], tower.hidden_size)
        self.encoder = Encoder(tower, dialect, rows=self.embeddings.num_rows)
        self.final_layer_norm = LayerNorm(tower.hidden_size, tower.layer_norm_eps)
        self.eos_token_id = int(raw["eos_token_id"])

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        bias = attention_bias(op, attention_mask, is_causal=True)
        hidden = self.encoder(op, self.embeddings(op, input_ids), bias).states[-1]
        end = op.ArgMax(self._end_scores(op, input_ids), axis=1, keepdims=1)
        return self.final_layer_norm(op, op.GatherND(hidden, end, batch_dims=1))

    def _end_scores(self, op: OpBuilder, input_ids: ir.Value) -> ir.Value:
        if self.eos_token_id == _EOS_UNSET:
            return input_ids
        return op.Cast(op.Equal(input_ids, self.eos_token_id), to=ir.DataType.INT64)


class _Text(Module):
    def __init__(self, tower: TowerConfig, raw: Raw, dialect: Dialect, embedding_size: int) -> None:
        super().__init__()
        self.text_model = _TextTower(tower, raw, dialect)
        self.text_projection = Linear(tower.hidden_size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        return self.text_projection(op, self.text_model(op, input_ids, attention_mask))


def _tower_config(config: Raw, key: str, defaults: Raw) -> Raw:
    """Return a tower's config with every key; the `{key}_dict` of old checkpoints goes before it, defaults and all."""
    older = config.get(f"{key}_dict")
    if older is None:
        return {**defaults, **sub_config(config, key)}
    return {**(config.get(key) or {}), **defaults, **older}


class Clip(DualEncoder):
    """`model_type` clip."""

    scalars = ("logit_scale",)
    image_processor = "CLIPImageProcessor"
    pads_to_max = False

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = VisionConfig.read(_tower_config(config, "vision_config", VISION_DEFAULTS), {})
        self._text = _tower_config(config, "text_config", TEXT_DEFAULTS)

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        size = int(self.config.get("projection_dim", 512))
        vocab_size, longest = self._text["vocab_size"], self._text["max_position_embeddings"]
        return TextTower(size, int(vocab_size), int(longest), scoring="softmax")

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        return _Vision(self._vision, dialect, self.text_tower.embedding_size)

    def text(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        tower = TowerConfig.read(self._text, {})
        return _Text(tower, self._text, dialect, self.text_tower.embedding_size)
