"""LFM3-VL (Liquid AI, as transformers has it): convolutions over patches of any shape, squares of them, and an LFM3."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.layouts.table import KnownImagePrompt
from export.config import Raw, sub_config
from export.connectors.patch_merger import merged_squares
from export.found_processor import FoundProcessor
from export.image_processors.videos import VideoSettings
from export.models.qwen2_vl import AnyShape
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.linear import Linear, activation
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.patches import Grid
from export.towers.lfm3_vl import Lfm3Tower, Lfm3TowerConfig
from export.vision_language import VisionLanguage

_DEFAULTS: Raw = {
    "projector_hidden_act": "gelu",
    "projector_hidden_size": 4096,
    "projector_bias": True,
    "tie_word_embeddings": True,
}
_TOWER, _PROJECTOR = "model.vision_tower", "model.multi_modal_projector"
_EPS = 1e-6
"""Of the projector's norm, which no config of the model changes."""


class _Projector(Module):
    """Patches normed, squares of them put together, and two matrices with an activation between."""

    def __init__(self, config: Raw, tower: Lfm3TowerConfig, out_size: int) -> None:
        super().__init__(_PROJECTOR)
        wide, inner = tower.hidden_size * tower.merged**2, config["projector_hidden_size"]
        rows, bias = tower.usual_rows // tower.merged**2, bool(config["projector_bias"])
        self.layer_norm = LayerNorm(tower.hidden_size, _EPS)
        self.linear_1 = Linear(wide, inner, rows=rows, bias=bias)
        self.linear_2 = Linear(inner, out_size, rows=rows, bias=bias)
        self.tower, self.hidden_act = tower, config["projector_hidden_act"]

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        """Return [I, N / merged^2, out_size] from [I, N, D], row by row."""
        squares = merged_squares(op, self.layer_norm(op, x), grid, self.tower.hidden_size, self.tower.merged)
        return self.linear_2(op, activation(op, self.hidden_act, self.linear_1(op, squares)))


class Lfm3VL(AnyShape):
    """`model_type` lfm3_vl."""

    text_type = "lfm3"
    takes_groups = True
    video_settings = VideoSettings(least_px=128 * 32 * 32, most_px=768 * 32 * 32, of_all=True)
    group_tokens = ("<|vision_start|>", "<|vision_end|>")
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (rf"^{_TOWER}\.patchifier\.", f"{_TOWER}.patch_embed."),
        (rf"^{_TOWER}\.(.*)\.([qk])_layernorm\.", rf"{_TOWER}.\1.\2_norm."),
        (r"^(model\.language_model\..*)\.self_attn\.gate_proj\.", r"\1.self_attn.g_proj."),
    )
    unused = VisionLanguage.unused

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})

    @property
    def tower(self) -> Lfm3TowerConfig:
        """Sizes of the tower."""
        return Lfm3TowerConfig.read(sub_config(self.config, "vision_config"))

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projector."""
        projector = _Projector(self.config, self.tower, self.decoder.config.hidden_size)
        return Chain(Lfm3Tower(self.tower, dialect, _TOWER), projector)

    def image_prompt(self, found: FoundProcessor) -> KnownImagePrompt:
        """Return one image token for each square of patches, all on one axis.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        return super().image_prompt(found).model_copy(update={"is_flat": True})
