"""CLIP (Radford et al., arXiv 2103.00020): a ViT with a class token and a causal text tower."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, TowerConfig, VisionConfig, tower_config
from export.dual_encoder import DualEncoder, TextTower
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.vit import Encoder, TextEmbeddings, attention_bias
from export.towers.clip import VISION_DEFAULTS, ProjectedClipTower

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
EOS_UNSET = 2
"""What old configs say for `eos_token_id`; the end of text is then the highest id of a row."""


class ClipTexts(Module):
    """CLIP's text tower.

    Args:
        raw: Of the tower, every key.
        end: A text is pooled at its first token of that id; None: at the highest id.
        dialect: How attention is written.
        pools: One token is wanted, not all.
    """

    def __init__(self, raw: Raw, end: int | None, dialect: Dialect, *, pools: bool = True) -> None:
        super().__init__("text_model")
        tower = TowerConfig.read(raw, {})
        self.embeddings = TextEmbeddings(raw["vocab_size"], raw["max_position_embeddings"], tower.hidden_size)
        self.encoder = Encoder(tower, dialect, rows=self.embeddings.num_rows)
        self.final_layer_norm = LayerNorm(tower.hidden_size, tower.layer_norm_eps)
        self.size = tower.hidden_size
        self.end, self.pools = end, pools

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        """Return [B, D], or [B, T, D], from [B, T] ids and mask."""
        bias = attention_bias(op, attention_mask, is_causal=True)
        hidden = self.encoder(op, self.embeddings(op, input_ids), bias).states[-1]
        if not self.pools:
            return self.final_layer_norm(op, hidden)
        return self.pooled(op, hidden, input_ids)

    def pooled(self, op: OpBuilder, hidden: ir.Value, input_ids: ir.Value) -> ir.Value:
        """Return [B, D], what the end of each text became, normed, of [B, T, D]."""
        end = op.ArgMax(self._end_scores(op, input_ids), axis=1, keepdims=1)
        return self.final_layer_norm(op, op.GatherND(hidden, end, batch_dims=1))

    def _end_scores(self, op: OpBuilder, input_ids: ir.Value) -> ir.Value:
        return input_ids if self.end is None else op.Cast(op.Equal(input_ids, self.end), to=ir.DataType.INT64)


class _Text(Module):
    def __init__(self, tower: ClipTexts, embedding_size: int) -> None:
        super().__init__()
        self.text_model = tower
        self.text_projection = Linear(tower.size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        return self.text_projection(op, self.text_model(op, input_ids, attention_mask))


class ClipImages(DualEncoder):
    """What images are embedded by CLIP's tower and a projection.

    Class attributes:
        projection_dim: Where a config leaves it out.
    """

    scalars = ("logit_scale",)
    image_processor = "CLIPImageProcessor"
    pads_to_max = False
    projection_dim: ClassVar[int] = 512

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = VisionConfig.read(tower_config(config, "vision_config", VISION_DEFAULTS), {})

    @property
    def image_size_px(self) -> int | None:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def embedding_size(self) -> int:
        """E."""
        return int(self.config.get("projection_dim", self.projection_dim))

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        return ProjectedClipTower(self._vision, dialect, self.embedding_size)


class Clip(ClipImages):
    """`model_type` clip.

    Class attributes:
        has_older_ends: A config whose end of text is 2 was written before configs said it.
    """

    has_older_ends: ClassVar[bool] = True

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._text = tower_config(config, "text_config", TEXT_DEFAULTS)

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        vocab_size, longest = self._text["vocab_size"], self._text["max_position_embeddings"]
        return TextTower(self.embedding_size, int(vocab_size), int(longest), scoring="softmax")

    @property
    def end(self) -> int | None:
        """The token that ends a text; None: the one of the highest id."""
        end = int(self._text["eos_token_id"])
        return None if self.has_older_ends and end == EOS_UNSET else end

    def text(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        tower = ClipTexts(self._text, self.end, dialect)
        return _Text(tower, self.embedding_size)
