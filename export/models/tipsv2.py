"""TIPSv2 (google/tipsv2-b14, -l14, -so400m14, -g14): DINOv2's tower with a register, and a tower of short texts.

Checkpoints keep the authors' names, which transformers turns into its own as it loads them. The image's vector is its
first class token's, as transformers' Tipsv2Model has it; the register, a second one that was trained on synthetic
captions, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import MissingWeightError, UnsupportedConfigError
from export.config import Raw, TowerConfig, sub_config
from export.dual_encoder import DualEncoder, TextTower
from export.nn.dialect import Dialect
from export.nn.linear import Embedding
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.residual_block import ResidualBlocks
from export.nn.sine_places import sine_places
from export.nn.vit import attention_bias
from export.towers.dinov2 import WITH_REGISTERS, Dinov2Tower, read_dinov2

_VISION_DEFAULTS: Raw = {"image_size": 448, "patch_size": 14, "num_register_tokens": 1}
_TEXT_DEFAULTS: Raw = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-5,
    "scale_sqrt_depth": True,
    "pooling_epsilon": 1e-8,
}
_TEMPERATURE = 0.005065968260169029
"""Of transformers, for published checkpoints hold none."""
_IMAGES, _TEXTS = "vision_encoder", "text_encoder"


class _Text(Module):
    """Attends in both directions; the mean of what its tokens became counts."""

    def __init__(self, raw: Raw, dialect: Dialect) -> None:
        super().__init__(_TEXTS)
        tower = TowerConfig.read(raw, {})
        self.size, self.epsilon = tower.hidden_size, float(raw["pooling_epsilon"])
        scale = math.sqrt(self.size) if raw["scale_sqrt_depth"] else 1.0
        self.token_embedding = Embedding(raw["vocab_size"], self.size, scale=scale)
        self.transformer = ResidualBlocks(tower, dialect, rows=raw["max_position_embeddings"], scales=False)
        self.ln_final = LayerNorm(self.size, tower.layer_norm_eps)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        """Return [B, D] from [B, T] ids and mask."""
        places = op.Unsqueeze(op.Range(0, op.Squeeze(op.Shape(input_ids, start=1, end=2), [0]), 1), [0])
        x = op.Add(self.token_embedding(op, input_ids), sine_places(op, places, self.size))
        hidden = self.transformer(op, x, attention_bias(op, attention_mask, is_causal=False))
        is_token = op.Unsqueeze(op.Cast(attention_mask, to=ir.DataType.FLOAT), [2])
        total = op.ReduceSum(op.Mul(self.ln_final(op, hidden), is_token), [1], keepdims=0)
        return op.Div(total, op.Add(op.ReduceSum(is_token, [1], keepdims=0), self.epsilon))


class Tipsv2(DualEncoder):
    """`model_type` tipsv2."""

    scalars = ("temperature",)
    image_processor = "Tipsv2ImageProcessor"
    pads_to_max = False
    renames: ClassVar[tuple[tuple[str, str], ...]] = tuple(
        (rf"^{_IMAGES}\.{pattern}", rf"{_IMAGES}.{name}")
        for pattern, name in (
            (r"patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
            (r"(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
            (r"pos_embed$", "embeddings.position_embeddings"),
            (r"norm\.", "layernorm."),
            (r"blocks\.", "encoder.layer."),
            (r"(.*)\.attn\.proj\.", r"\1.attention.output.dense."),
            (r"(.*)\.attn\.qkv\.", r"\1.attention.qkv."),
            (r"(.*)\.ls([12])\.gamma$", r"\1.layer_scale\2.lambda1"),
            (r"(.*)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
            (r"(.*)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
            (r"(.*)\.mlp\.w12\.", r"\1.mlp.weights_in."),
            (r"(.*)\.mlp\.w3\.", r"\1.mlp.weights_out."),
        )
    )
    unused = (*DualEncoder.unused, rf"{_IMAGES}\.embeddings\.mask_token")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        vision = {**_VISION_DEFAULTS, **sub_config(config, "vision_config"), "model_type": WITH_REGISTERS}
        self._vision = replace(read_dinov2(vision), kernel="triangle", packs_qkv=True)
        self._text = {**_TEXT_DEFAULTS, **sub_config(config, "text_config")}
        self._embedding_size = int(self._text["hidden_size"])
        if self._embedding_size != self._vision.tower.hidden_size:
            raise UnsupportedConfigError(
                f"text_config.hidden_size {self._embedding_size} differs from vision_config.hidden_size "
                f"{self._vision.tower.hidden_size}: the two embeddings cannot be compared"
            )
        if self._embedding_size % 2:
            raise UnsupportedConfigError(
                f"text_config.hidden_size {self._embedding_size} is odd: half of a place are sines"
            )

    @property
    def image_size_px(self) -> None:
        """None: positions follow an image's shape."""
        return

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        vocab_size, longest = self._text["vocab_size"], self._text["max_position_embeddings"]
        return TextTower(self._embedding_size, int(vocab_size), int(longest), scoring="softmax")

    def scores(self, scalar: Callable[[str], float]) -> tuple[float, float]:
        """Return what cosines are multiplied by: one over the temperature, the config's where none is stored."""
        try:
            temperature = scalar("temperature")
        except MissingWeightError:
            temperature = float(self.config.get("temperature_init_value", _TEMPERATURE))
        return 1 / temperature, 0.0

    def vision(self, dialect: Dialect) -> Module:
        """Return the tower down to its class token."""
        return Dinov2Tower(self._vision, dialect, _IMAGES)

    def text(self, dialect: Dialect) -> Module:
        """Return the tower down to its mean."""
        return _Text(self._text, dialect)
