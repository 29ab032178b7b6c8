"""FILIP (arXiv 2111.07783): CLIP's towers, which give a vector for every patch and every token (section 3.1).

No code is published. `model_type` filip is a clip checkpoint by its keys and config, whose projections stand behind all
patches and tokens instead of one of each. A class token is read and gives no vector; padding gives none.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.models.clip import Clip, ClipTexts
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.towers.clip import ClipTower


class _Patches(Module):
    """Every patch, normed as the class token is in CLIP, projected."""

    def __init__(self, tower: ClipTower, size: int, eps: float, embedding_size: int) -> None:
        super().__init__()
        self.vision_model = tower
        self.post_layernorm = LayerNorm(size, eps, name="vision_model.post_layernorm")
        self.visual_projection = Linear(size, embedding_size, rows=tower.embeddings.num_rows, bias=False)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        hidden = self.vision_model(op, pixel_values).states[-1]
        patches = op.Slice(hidden, [1], [2**31 - 1], [1])
        return self.visual_projection(op, self.post_layernorm(op, patches))


class _Tokens(Module):
    def __init__(self, tower: ClipTexts, embedding_size: int) -> None:
        super().__init__()
        self.text_model = tower
        self.text_projection = Linear(tower.size, embedding_size, rows=tower.embeddings.num_rows, bias=False)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        return self.text_projection(op, self.text_model(op, input_ids, attention_mask))


class Filip(Clip):
    """`model_type` filip."""

    vectors = "tokens"

    @property
    def num_patches(self) -> int:
        """Vectors of an image."""
        return self._vision.grid**2

    def vision(self, dialect: Dialect) -> Module:
        """Return the module pixel_values [I, 3, height, width] -> image_embeds [I, P, E]."""
        config = self._vision
        tower = ClipTower(config, dialect, "vision_model")
        return _Patches(tower, config.tower.hidden_size, config.tower.layer_norm_eps, self.embedding_size)

    def text(self, dialect: Dialect) -> Module:
        """Return the module (input_ids, attention_mask) [B, T] -> text_embeds [B, T, E]."""
        return _Tokens(ClipTexts(self._text, None, dialect, pools=False), self.embedding_size)
