"""GroupViT (arXiv 2202.11094; nvidia/groupvit-gcc-yfcc): patches gathered into groups, and CLIP's texts.

Its masks, which say what group a pixel is of, are not drawn.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, sub_config
from export.dual_encoder import DualEncoder, TextTower
from export.models.clip import EOS_UNSET, ClipTexts
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.normed_linear import NormedLinear
from export.towers.groupvit import GroupVitConfig, GroupVitTower

_TEXT_DEFAULTS: Raw = {
    "vocab_size": 49_408,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49_407,
}
_EPS = 1e-5
"""Of the batch norms between projections, PyTorch's own."""


class _Projection(Module):
    """Two matrices with a batch norm and ReLU between."""

    def __init__(self, sizes: tuple[int, int, int], name: str) -> None:
        super().__init__(name)
        taken, inner, given = sizes
        self.wide = NormedLinear(taken, inner, ("0", "1"), _EPS)
        self.narrow = Linear(inner, given, rows=1, name="3")

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, E] from [B, D]."""
        return self.narrow(op, op.Relu(self.wide(op, x)))


class _Projected(Module):
    def __init__(self, tower: Module, projection: Module) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, op: OpBuilder, *inputs: ir.Value) -> ir.Value:
        return self.projection(op, self.tower(op, *inputs))


class GroupVit(DualEncoder):
    """`model_type` groupvit."""

    scalars = ("logit_scale",)
    image_processor = "CLIPImageProcessor"
    pads_to_max = False
    unused = (*DualEncoder.unused, r".*\.num_batches_tracked")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = GroupVitConfig.read(sub_config(config, "vision_config"))
        self._text = {**_TEXT_DEFAULTS, **sub_config(config, "text_config")}
        self._embedding_size = int(config.get("projection_dim", 256))
        self._inner = int(config.get("projection_intermediate_dim", 4096))

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.vision.image_size_px

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        vocab_size, longest = self._text["vocab_size"], self._text["max_position_embeddings"]
        return TextTower(self._embedding_size, int(vocab_size), int(longest), scoring="softmax")

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        sizes = (self._vision.tower.hidden_size, self._inner, self._embedding_size)
        return _Projected(GroupVitTower(self._vision, dialect, "vision_model"), _Projection(sizes, "visual_projection"))

    def text(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        end = int(self._text["eos_token_id"])
        tower = ClipTexts(self._text, None if end == EOS_UNSET else end, dialect)
        return _Projected(tower, _Projection((tower.size, self._inner, self._embedding_size), "text_projection"))
